"""The 8254 programmable interval timer: three counters of 1.193182 MHz, of which the first drives ISA line 0.

Knows counting modes, gates and outputs as functions of the clock. Must not know what line 0 leads to, nor port 61h.
Source: Intel 8254 data sheet (order number 231164). A count is loaded with the write, not a clock pulse (838 ns) after it.
"""

from collections.abc import Callable

from vmm.clock import SECOND, Alarm, Clock

FREQUENCY = 1_193_182
SHORTEST_REARM = 10_000
"""Nanoseconds: a guest that sets a period of a few ticks gets no more than 100,000 interrupts a second."""

LOW, HIGH, BOTH = 1, 2, 3


def ticks(nanoseconds: int) -> int:
    """Whole input clock pulses in a time."""
    return nanoseconds * FREQUENCY // SECOND


def nanoseconds(count: int) -> int:
    """The first nanosecond at which `count` pulses have passed."""
    return -(-count * SECOND // FREQUENCY)


class Counter:
    """One counter. Everything it shows follows from `start`, the time when it held `reload`: nothing has to tick."""

    def __init__(self, *, gate: bool) -> None:
        self.mode = 3
        self.bcd = False
        self.format = BOTH
        self.reload = 0x10000
        self.loaded = False
        """Has a count been written since the control word?"""
        self.start = 0
        self.frozen: int | None = None
        """Ticks counted when the gate stopped it, or None while it counts."""
        self.gate = gate
        self.triggered = False
        """Modes 1 and 5: has the gate started it?"""
        self.next_reload: int | None = None
        self.next_start = 0
        """A count written in mode 2 or 3 waits for the end of the period."""
        self.low_byte: int | None = None
        """The first byte of a two-byte write."""
        self.read_high = False
        self.latched: int | None = None
        self.latched_status: int | None = None

    def control(self, word: int, now: int) -> None:
        """A control word: format and mode; the counter then waits for a count."""
        self.format = word >> 4 & 3
        mode = word >> 1 & 7
        self.mode = mode - 4 if mode > 5 else mode
        self.bcd = bool(word & 1)
        self.loaded = self.triggered = self.read_high = False
        self.low_byte = self.next_reload = self.latched = self.latched_status = None
        self.frozen = None
        self.start = now

    def latch_count(self, now: int) -> None:
        """Keep the count for the next reads; a latch that has not been read stays."""
        if self.latched is None:
            self.latched = self._shown(now)

    def latch_status(self, now: int) -> None:
        """Keep the status byte for the next read: output, null count, format, mode."""
        if self.latched_status is None:
            null = not self.loaded or self.next_reload is not None
            self.latched_status = self.output(now) << 7 | null << 6 | self.format << 4 | self.mode << 1 | self.bcd

    def read(self, now: int) -> int:
        if self.latched_status is not None:
            status, self.latched_status = self.latched_status, None
            return status
        count = self._shown(now) if self.latched is None else self.latched
        high = self.format == HIGH or self.format == BOTH and self.read_high
        if self.format == BOTH:
            self.read_high = not self.read_high
        if self.format != BOTH or high:
            self.latched = None
        return count >> 8 & 0xFF if high else count & 0xFF

    def write(self, value: int, now: int) -> None:
        if self.format == BOTH and self.low_byte is None:
            self.low_byte = value
            if self.mode == 0:
                self.loaded = False  # the first byte stops the counting (data sheet, "Mode 0")
            return
        count = value << 8 if self.format == HIGH else value
        if self.format == BOTH:
            count = value << 8 | (self.low_byte or 0)
            self.low_byte = None
        self._load(self._decode(count), now)

    def set_gate(self, level: bool, now: int) -> None:
        """The gate input: stops modes 0, 2, 3 and 4 while low, (re)starts modes 1, 2, 3 and 5 when it rises."""
        if level == self.gate:
            return
        self.sync(now)
        elapsed = self._elapsed(now)
        self.gate = level
        if self.mode in (1, 5):
            if level:
                self.start, self.triggered = now, True
        elif not level:
            self.frozen = elapsed
        else:
            self.start = now if self.mode in (2, 3) else now - nanoseconds(elapsed)
            self.frozen = None

    def output(self, now: int) -> bool:
        """The level of OUT."""
        self.sync(now)
        if not self.loaded:
            return self.mode != 0
        count, elapsed = self.reload, self._elapsed(now)
        match self.mode:
            case 0:
                return elapsed >= count
            case 1:
                return not self.triggered or elapsed >= count
            case 2:
                return not self.gate or elapsed % count != count - 1
            case 3:
                return not self.gate or elapsed % count < (count + 1) // 2
            case 4:
                return elapsed != count
            case _:
                return not self.triggered or elapsed != count

    def next_rise(self, now: int) -> int | None:
        """When OUT rises next, or None if it does not as things stand."""
        self.sync(now)
        if not self.loaded or self.frozen is not None:
            return None
        if self.mode in (2, 3):
            if self.next_reload is not None:
                return self.next_start
            return self.start + nanoseconds((self._elapsed(now) // self.reload + 1) * self.reload)
        if self.mode in (1, 5) and not self.triggered:
            return None
        rise = self.start + nanoseconds(self.reload + (self.mode >= 4))
        return rise if rise > now else None

    def sync(self, now: int) -> None:
        """Take over a count that waited for the end of a period."""
        if self.next_reload is not None and now >= self.next_start:
            self.start, self.reload = self.next_start, self.next_reload
            self.next_reload = None

    def _load(self, count: int, now: int) -> None:
        count = count or (10_000 if self.bcd else 0x10000)
        self.sync(now)
        if self.loaded and self.mode in (2, 3) and self.frozen is None:
            if self.next_reload is None:
                self.next_start = self.start + nanoseconds((self._elapsed(now) // self.reload + 1) * self.reload)
            self.next_reload = count
            return
        self.reload = count
        self.loaded = True
        if self.mode not in (1, 5):
            self.start = now
            self.frozen = None if self.gate else 0

    def _elapsed(self, now: int) -> int:
        return ticks(now - self.start) if self.frozen is None else self.frozen

    def _shown(self, now: int) -> int:
        """The 16 bits that a read shows."""
        self.sync(now)
        elapsed = self._elapsed(now) if self.loaded else 0
        if self.mode == 2:
            count = self.reload - elapsed % self.reload
        elif self.mode == 3:
            count = self.reload - 2 * elapsed % self.reload & ~1  # counts by twos, twice a period
        elif self.mode in (1, 5) and not self.triggered:
            count = self.reload
        else:
            count = self.reload - elapsed  # goes on below zero from the top
        if self.bcd:
            return int(str(count % 10_000), 16)
        return count & 0xFFFF

    def _decode(self, count: int) -> int:
        if not self.bcd:
            return count
        # Digits above 9 are not defined by the data sheet; they weigh what they say.
        return sum((count >> 4 * digit & 0xF) * 10**digit for digit in range(4))


class Pit:
    """The chip: counters at offsets 0 to 2, the control word at 3. Gates 0 and 1 are tied high, gate 2 is port 61h's.

    Line 0 rises where OUT0 does, and stays high until the next rise, where it falls for no time: an edge-triggered controller
    sees the same. Rises that the VMM slept through are one, and the next keeps the phase.
    """

    def __init__(self, clock: Clock, line: Callable[[bool], None]) -> None:
        """Starts as PC firmware leaves it: counter 0 in mode 2 with 65536 (18.2 Hz)."""
        self._clock = clock
        self._line = line
        self.counters = (Counter(gate=True), Counter(gate=True), Counter(gate=False))
        self.alarm: Alarm | None = None
        for counter, word in ((0, 0x34), (1, 0x54), (2, 0xB6)):
            self.access(3, 1, word)
            if counter == 1:
                self.access(1, 1, 18)  # DRAM refresh, every 15 us
        self.access(0, 1, 0)
        self.access(0, 1, 0)

    def access(self, offset: int, size: int, value: int | None) -> int:
        now = self._clock.now()
        if offset == 3:
            if value is not None:
                self._control(value, now)
            return 0 if value is not None else 0xFF
        counter = self.counters[offset]
        if value is None:
            return counter.read(now)
        counter.write(value, now)
        if offset == 0:
            self._arm(now)
        return 0

    def set_gate2(self, level: bool) -> None:
        self.counters[2].set_gate(level, self._clock.now())

    def output2(self, now: int) -> bool:
        return self.counters[2].output(now)

    def _control(self, word: int, now: int) -> None:
        select = word >> 6
        if select == 3:
            for i, counter in enumerate(self.counters):
                if word >> i + 1 & 1:
                    if not word & 0x20:
                        counter.latch_count(now)
                    if not word & 0x10:
                        counter.latch_status(now)
        elif word & 0x30 == 0:
            self.counters[select].latch_count(now)
        else:
            self.counters[select].control(word, now)
            if select == 0:
                self._line(self.counters[0].mode != 0)
                self._arm(now)

    def _arm(self, now: int, earliest: int = 0) -> None:
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None
        rise = self.counters[0].next_rise(now)
        if rise is not None:
            self.alarm = self._clock.at(max(rise, earliest), self._rise)

    def _rise(self) -> None:
        self._line(False)
        self._line(True)
        now = self._clock.now()
        self._arm(now, earliest=now + SHORTEST_REARM)
