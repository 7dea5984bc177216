"""The CMOS real-time clock (MC146818) and its battery-backed memory, with what PC firmware stores there.

Knows dates, its registers and how much memory to report. Must not know the host: it is given a date at its start and a clock.
Source: Motorola MC146818 data sheet; the PC's use of bytes 0Eh to 7Fh is the IBM AT's and later firmware's.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from vmm.clock import SECOND, Alarm, Clock

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
WEEKDAY, DAY, MONTH, YEAR, REG_A, REG_B, REG_C, REG_D = range(6, 14)
CENTURY = 0x32
TIME = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)
B_SET, B_BINARY, B_24H = 0x80, 0x04, 0x02
PERIODIC, ALARM, UPDATE = 0x40, 0x20, 0x10
"""One bit each for the enable in register B and the flag in register C."""
ENABLES = PERIODIC | ALARM | UPDATE
UPDATE_NOTICE = 244_000
"""Nanoseconds that "update in progress" shows before the second changes."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
KIB, MIB = 1 << 10, 1 << 20


class Rtc:
    """Index at offset 0, data at 1. Time is UTC. Interrupts drive ISA line 8 through `line`."""

    def __init__(self, clock: Clock, line: Callable[[bool], None], *, memory_size: int, date: int) -> None:
        """`memory_size` in bytes; `date` in seconds since 1970: what the clock shows at this moment."""
        self._clock = clock
        self._line = line
        self.index = 0
        self.ram = bytearray(128)
        self.ram[REG_A], self.ram[REG_B], self.ram[REG_D] = 0x26, B_24H, 0x80
        self._store_configuration(memory_size)
        self.base = date * SECOND - clock.now()
        """What to add to the clock: nanoseconds since 1970."""
        self.synced = self._time()
        """Flags in register C are right up to this time."""
        self.alarm: Alarm | None = None
        self._write_time()

    def access(self, offset: int, size: int, value: int | None) -> int:
        if offset == 0:
            if value is not None:
                self.index = value & 0x7F  # bit 7 masks NMI, which nothing here raises
            return 0xFF if value is None else 0
        if value is None:
            return self._read(self.index)
        self._write(self.index, value & 0xFF)
        return 0

    def _store_configuration(self, memory_size: int) -> None:
        ram = self.ram
        extended = min(max(memory_size - MIB, 0) // KIB, 0xFFFF)
        above_16 = min(max(min(memory_size, 1 << 32) - 16 * MIB, 0) // (64 * KIB), 0xFFFF)
        above_4g = max(memory_size - (1 << 32), 0) // (64 * KIB) & 0xFFFFFF
        ram[0x14] = 0x06  # equipment: coprocessor, pointing device bit as QEMU sets it
        ram[0x15:0x17] = (640).to_bytes(2, "little")
        ram[0x17:0x19] = ram[0x30:0x32] = extended.to_bytes(2, "little")
        ram[0x34:0x36] = above_16.to_bytes(2, "little")
        ram[0x3D] = 0x02  # what a BIOS boots from: the first disk
        ram[0x5B:0x5E] = above_4g.to_bytes(3, "little")
        ram[0x2E:0x30] = sum(ram[0x10:0x2E]).to_bytes(2, "big")

    def _time(self) -> int:
        """Nanoseconds since 1970 as this clock sees them."""
        return self.base + self._clock.now()

    def _read(self, index: int) -> int:
        if index in TIME:
            if not self.ram[REG_B] & B_SET:
                self._write_time()
        elif index == REG_A:
            coming = self._time() % SECOND >= SECOND - UPDATE_NOTICE and not self.ram[REG_B] & B_SET
            return self.ram[REG_A] | coming << 7
        elif index == REG_C:
            self._sync()
            flags, self.ram[REG_C] = self.ram[REG_C], 0
            self._line(False)
            self._arm()
            return flags
        return self.ram[index]

    def _write(self, index: int, value: int) -> None:
        ram = self.ram
        if index in (REG_C, REG_D):
            return
        self._sync()
        if index in TIME:
            self._set_field(index, value)
        elif index == REG_A:
            ram[REG_A] = value & 0x7F
        elif index == REG_B:
            self._set_mode(value)
        else:
            ram[index] = value
        self._raise_line()
        self._arm()

    def _set_field(self, index: int, value: int) -> None:
        if self.ram[REG_B] & B_SET:
            self.ram[index] = value
            return
        self._write_time()
        self.ram[index] = value
        self._read_time()

    def _set_mode(self, value: int) -> None:
        """Register B: SET freezes the time registers, and the time goes on from them when it is cleared."""
        was_set = self.ram[REG_B] & B_SET
        if not was_set:
            self._write_time()
        if value & B_SET:
            value &= ~UPDATE
        self.ram[REG_B] = value
        if was_set and not value & B_SET:
            self._read_time()

    # Between register bytes and time.

    def _encode(self, value: int) -> int:
        return value if self.ram[REG_B] & B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, byte: int) -> int:
        return byte if self.ram[REG_B] & B_BINARY else (byte >> 4) * 10 + (byte & 0xF)

    def _encode_hour(self, hour: int) -> int:
        if self.ram[REG_B] & B_24H:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (0x80 if hour >= 12 else 0)

    def _decode_hour(self, byte: int) -> int:
        if self.ram[REG_B] & B_24H:
            return self._decode(byte)
        return self._decode(byte & 0x7F) % 12 + (12 if byte & 0x80 else 0)

    def _write_time(self) -> None:
        """Time into the registers."""
        date = EPOCH + timedelta(seconds=self._time() // SECOND)
        ram, encode = self.ram, self._encode
        ram[SECONDS], ram[MINUTES], ram[HOURS] = encode(date.second), encode(date.minute), self._encode_hour(date.hour)
        ram[WEEKDAY], ram[DAY], ram[MONTH] = encode(date.isoweekday() % 7 + 1), encode(date.day), encode(date.month)
        ram[YEAR], ram[CENTURY] = encode(date.year % 100), encode(date.year // 100)

    def _read_time(self) -> None:
        """The registers into time. Bytes that are no date leave the time as it was."""
        ram, decode = self.ram, self._decode
        year = decode(ram[CENTURY]) * 100 + decode(ram[YEAR])
        if not 1 <= year <= 9000:  # room for the clock to run on
            return
        try:
            date = datetime(year, decode(ram[MONTH]), decode(ram[DAY]), self._decode_hour(ram[HOURS]),
                            decode(ram[MINUTES]), decode(ram[SECONDS]), tzinfo=UTC)
        except ValueError:
            return
        self.base = (date - EPOCH) // timedelta(seconds=1) * SECOND - self._clock.now()
        self.synced = self._time()

    # Flags and interrupts: computed when looked at, and at the time of the next enabled one.

    def _period(self) -> int:
        """The periodic rate in ticks of 32768 Hz, 0 for none."""
        rate = self.ram[REG_A] & 0x0F
        return 0 if rate == 0 else 1 << (rate + 6 if rate <= 2 else rate - 1)

    def _sync(self) -> None:
        """Bring register C up to now."""
        now, then, ram = self._time(), self.synced, self.ram
        self.synced = now
        period = self._period()
        if period and now * 32768 // SECOND // period > then * 32768 // SECOND // period:
            ram[REG_C] |= PERIODIC
        if not ram[REG_B] & B_SET and now // SECOND > then // SECOND:
            ram[REG_C] |= UPDATE
            if self._next_alarm(then // SECOND) * SECOND <= now:
                ram[REG_C] |= ALARM
        self._raise_line()

    def _raise_line(self) -> None:
        request = bool(self.ram[REG_B] & self.ram[REG_C] & ENABLES)
        self.ram[REG_C] = self.ram[REG_C] & ENABLES | request << 7
        self._line(request)

    def _next_alarm(self, after: int) -> int:
        """The first second since 1970 later than `after` that the alarm registers match; a byte from C0h on matches anything.
        A day later, as good as never, when nothing can match."""
        ram = self.ram
        hour, minute, second = (ram[i] if ram[i] >= 0xC0 else -1 for i in (HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM))
        hours = range(24) if hour >= 0 else (self._decode_hour(ram[HOURS_ALARM]),)
        minutes = range(60) if minute >= 0 else (self._decode(ram[MINUTES_ALARM]),)
        seconds = range(60) if second >= 0 else (self._decode(ram[SECONDS_ALARM]),)
        midnight = after - after % 86400
        for day in (midnight, midnight + 86400):
            for h in hours:
                for m in minutes:
                    start = day + h * 3600 + m * 60
                    if start + 59 <= after or h > 23 or m > 59:
                        continue
                    for s in seconds:
                        if s <= 59 and start + s > after:
                            return start + s
        return midnight + 2 * 86400

    def _arm(self) -> None:
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None
        enabled = self.ram[REG_B] & ENABLES
        if not enabled or self.ram[REG_C] & 0x80:
            return  # while a request waits to be read nothing more can happen on the line
        now, deadlines = self._time(), []
        period = self._period()
        if enabled & PERIODIC and period:
            tick = (now * 32768 // SECOND // period + 1) * period
            deadlines.append(-(-tick * SECOND // 32768))
        if not self.ram[REG_B] & B_SET:
            if enabled & UPDATE:
                deadlines.append((now // SECOND + 1) * SECOND)
            if enabled & ALARM:
                deadlines.append(self._next_alarm(now // SECOND) * SECOND)
        if deadlines:
            self.alarm = self._clock.at(min(deadlines) - self.base, self._expire)

    def _expire(self) -> None:
        self.alarm = None
        self._sync()
        self._arm()
