"""The CMOS clock: dates, formats, interrupts and what firmware stored."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.clock import SECOND, Clock
from vmm.devices.rtc import Rtc

DATE = int(datetime(2024, 2, 28, 23, 59, 58, tzinfo=UTC).timestamp())
MIB = 1 << 20


class Bench:
    """An RTC with a hand-moved clock and its line."""

    def __init__(self, date: int = DATE, memory: int = 256 * MIB) -> None:
        self.time = 0
        self.clock = Clock(lambda: self.time)
        self.level = False
        self.rises = 0
        self.rtc = Rtc(self.clock, self.line, memory_size=memory, date=date)

    def line(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level

    def up(self) -> bool:
        """The level of the line, as a call: type checkers think that a variable which they saw cannot change."""
        return self.level

    def read(self, index: int) -> int:
        self.rtc.access(0, 1, index)
        return self.rtc.access(1, 1, None)

    def write(self, index: int, value: int) -> None:
        self.rtc.access(0, 1, index)
        self.rtc.access(1, 1, value)

    def date(self) -> list[int]:
        return [self.read(i) for i in (0x32, 9, 8, 7, 4, 2, 0)]

    def to(self, time: int) -> None:
        while (due := self.clock.next_deadline()) is not None and due <= time:
            self.time = max(self.time, due)
            self.clock.run_due()
        self.time = time


def test_reads_bcd_and_moves_on() -> None:
    """Two seconds later it is leap day."""
    bench = Bench()
    assert bench.date() == [0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x58]
    assert bench.read(6) == 4  # Wednesday, Sunday being 1
    bench.time = 2 * SECOND
    assert bench.date() == [0x20, 0x24, 0x02, 0x29, 0x00, 0x00, 0x00]
    assert bench.read(0x0D) == 0x80


@pytest.mark.parametrize("mode, hour", [(0x02, 0x23), (0x06, 23), (0x00, 0x91), (0x04, 0x8B)])
def test_formats(mode: int, hour: int) -> None:
    """BCD or binary, 24 or 12 hours."""
    bench = Bench()
    bench.write(0x0B, mode)
    assert bench.read(4) == hour


@given(st.datetimes(datetime(1971, 1, 1), datetime(2099, 1, 1)), st.sampled_from([0x00, 0x02, 0x04, 0x06]))
def test_set_time_is_read_back(date: datetime, mode: int) -> None:
    """Under SET, in every format, and it goes on from there."""
    bench = Bench()
    bench.write(0x0B, mode | 0x80)
    source = Bench(date=int(date.replace(tzinfo=UTC).timestamp()))
    source.write(0x0B, mode)
    for index in (0x32, 9, 8, 7, 4, 2, 0):
        bench.write(index, source.read(index))
    bench.time += 3600 * SECOND
    assert bench.read(0) == source.read(0)  # frozen
    bench.write(0x0B, mode)
    assert bench.date() == source.date()
    bench.time += SECOND
    later = Bench(date=int((date.replace(tzinfo=UTC) + timedelta(seconds=1)).timestamp()))
    later.write(0x0B, mode)
    assert bench.date() == later.date()


def test_nonsense_dates_leave_the_time() -> None:
    """Month 0 or FFh, whatever the century."""
    bench = Bench()
    for index, value in ((8, 0), (8, 0xFF), (0x32, 0), (7, 0x31), (0, 0xAA)):
        bench.write(index, value)
    assert bench.date()[1:5] == [0x24, 0x02, 0x28, 0x23]


def test_update_in_progress_before_the_second() -> None:
    """For the last 244 us, so that readers who wait for it have time."""
    bench = Bench()
    bench.time = SECOND - 244_001
    assert not bench.read(0x0A) & 0x80
    bench.time += 2
    assert bench.read(0x0A) & 0x80
    bench.time = SECOND
    assert not bench.read(0x0A) & 0x80


def test_periodic_interrupt() -> None:
    """1024 Hz by default; the line stays up until register C is read."""
    bench = Bench()
    bench.write(0x0B, 0x42)
    bench.to(SECOND // 2)
    assert bench.rises == 1
    assert bench.up()
    assert bench.read(0x0C) & 0xC0 == 0xC0
    assert not bench.up()
    assert bench.read(0x0C) == 0
    bench.rises = 0
    for n in range(1, 101):
        bench.to(SECOND // 2 + n * SECOND // 1024 + 1000)
        bench.read(0x0C)
    assert bench.rises == 100


def test_update_and_alarm_interrupts() -> None:
    """At each second, and at the alarm's time with wildcards."""
    bench = Bench()
    bench.write(0x0B, 0x12)
    bench.to(SECOND)
    assert bench.read(0x0C) & 0xB0 == 0x90
    bench.write(0x0B, 0x22)
    for index, value in ((5, 0xC0), (3, 0xFF), (1, 0x10)):  # second 10 of any minute
        bench.write(index, value)
    bench.read(0x0C)
    bench.to(11 * SECOND)
    assert not bench.up()
    bench.to(12 * SECOND)
    assert bench.up()
    assert bench.read(0x0C) & 0xA0 == 0xA0


def test_memory_size() -> None:
    """640 KiB; KiB above 1 MiB, at most 65535; 64 KiB blocks above 16 MiB."""
    bench = Bench(memory=256 * MIB)
    assert bench.read(0x15) | bench.read(0x16) << 8 == 640
    assert bench.read(0x30) | bench.read(0x31) << 8 == 0xFFFF
    assert bench.read(0x34) | bench.read(0x35) << 8 == 240 * 16
    bench = Bench(memory=8 * MIB)
    assert bench.read(0x17) | bench.read(0x18) << 8 == 7 * 1024
    assert bench.read(0x34) | bench.read(0x35) << 8 == 0
    checksum = sum(bench.read(i) for i in range(0x10, 0x2E))
    assert bench.read(0x2E) << 8 | bench.read(0x2F) == checksum


@given(st.lists(st.tuples(st.integers(0, 127), st.integers(-1, 255), st.integers(0, 100 * SECOND)), max_size=40))
def test_whatever_a_guest_writes(steps: list[tuple[int, int, int]]) -> None:
    """Nothing raises, and reads are bytes."""
    bench = Bench()
    for index, value, pause in steps:
        bench.rtc.access(0, 1, index)
        assert 0 <= bench.rtc.access(1, 1, None if value < 0 else value) <= 255
        bench.time += pause
        bench.clock.run_due()
