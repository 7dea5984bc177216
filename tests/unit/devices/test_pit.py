"""The 8254 against its data sheet, on a clock that stands still between steps."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.clock import SECOND, Clock
from vmm.devices.pit import FREQUENCY, Pit, nanoseconds
from vmm.devices.system_control import PortB


class Bench:
    """A PIT with its port 61h, a hand-moved clock and the rises of line 0."""

    def __init__(self) -> None:
        self.time = 0
        self.clock = Clock(lambda: self.time)
        self.rises = 0
        self.level = False
        self.pit = Pit(self.clock, self.line)
        self.port_b = PortB(self.clock, self.pit)
        self.rises = 0

    def line(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level

    def up(self) -> bool:
        """The level of the line, as a call: type checkers think that a variable which they saw cannot change."""
        return self.level

    def load(self, counter: int, mode: int, count: int, bcd: int = 0) -> None:
        self.pit.access(3, 1, counter << 6 | 0x30 | mode << 1 | bcd)
        self.pit.access(counter, 1, count & 0xFF)
        self.pit.access(counter, 1, count >> 8)

    def to(self, tick: int) -> None:
        """Run on to a tick of the input clock, alarm by alarm."""
        end = nanoseconds(tick)
        while (due := self.clock.next_deadline()) is not None and due <= end:
            self.time = max(self.time, due)
            self.clock.run_due()
        self.time = end

    def count(self, counter: int) -> int:
        self.pit.access(3, 1, counter << 6)
        return self.pit.access(counter, 1, None) | self.pit.access(counter, 1, None) << 8


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield Bench()


@given(st.integers(12, 65536), st.sampled_from([2, 3]), st.integers(1, 50))
def test_periodic_rises_without_drift(count: int, mode: int, periods: int) -> None:
    """After n periods exactly n rises, at any count."""
    bench = Bench()
    bench.load(0, mode, count & 0xFFFF)
    bench.rises = 0
    bench.to(count * periods)
    assert bench.rises == periods


def test_late_vmm_gets_one_interrupt_and_keeps_the_phase(bench: Bench) -> None:
    """Ten periods slept through are one rise; the next comes at the eleventh."""
    bench.load(0, 2, 1000)
    bench.rises, bench.time = 0, nanoseconds(10_500)
    bench.clock.run_due()
    bench.clock.run_due()
    assert bench.rises == 1
    assert bench.clock.next_deadline() == nanoseconds(11_000)


def test_shortest_period_does_not_storm(bench: Bench) -> None:
    """A count of 1 cannot take all of the VMM's time."""
    bench.load(0, 2, 1)
    bench.rises = 0
    bench.to(FREQUENCY // 1000)
    assert 50 <= bench.rises <= 101


def test_one_shot(bench: Bench) -> None:
    """Mode 0: low until the count is over, one rise, no more."""
    bench.load(0, 0, 1000)
    assert not bench.up()
    bench.to(999)
    assert not bench.up()
    bench.to(1000)
    assert bench.up()
    bench.to(300_000)
    assert bench.rises == 1
    assert bench.clock.next_deadline() is None


def test_mode_4_strobes_after_the_count(bench: Bench) -> None:
    """Low for the one tick at zero, so the rise is a tick later."""
    bench.load(0, 4, 1000)
    bench.rises = 0
    bench.to(1000)
    assert bench.rises == 0
    bench.to(1001)
    assert bench.rises == 1


def test_starts_at_18_hertz(bench: Bench) -> None:
    """As firmware leaves it."""
    bench.to(65536 * 3)
    assert bench.rises == 3


def test_counts_down_and_wraps(bench: Bench) -> None:
    """Mode 0 goes on below zero; mode 2 reloads; mode 3 counts by twos."""
    for mode, expected in ((0, 0x10000 - 500), (2, 500), (3, 1000)):
        bench.load(0, mode, 1000)
        start = bench.time * FREQUENCY // SECOND
        bench.time = bench.time + nanoseconds(1500)
        assert abs(bench.count(0) - expected) <= 2, (mode, start)


def test_latch_holds(bench: Bench) -> None:
    """Both bytes of one moment, and a second latch command changes nothing."""
    bench.load(0, 2, 0x8000)
    bench.pit.access(3, 1, 0)
    bench.to(0x1234)
    bench.pit.access(3, 1, 0)
    assert bench.pit.access(0, 1, None) | bench.pit.access(0, 1, None) << 8 == 0x8000
    assert bench.count(0) == 0x8000 - 0x1234


def test_read_back_status(bench: Bench) -> None:
    """OUT, null count, format and mode; then the count that was latched with it."""
    bench.pit.access(3, 1, 0x30)  # mode 0, no count yet
    bench.pit.access(3, 1, 0xE2)
    assert bench.pit.access(0, 1, None) == 0x40 | 0x30
    bench.pit.access(0, 1, 0x10)
    bench.pit.access(0, 1, 0x00)
    bench.to(0x20)
    bench.pit.access(3, 1, 0xC2)
    assert bench.pit.access(0, 1, None) == 0x80 | 0x30
    assert bench.pit.access(0, 1, None) == 0xF0
    assert bench.pit.access(0, 1, None) == 0xFF


def test_new_count_waits_for_the_period(bench: Bench) -> None:
    """Modes 2 and 3 take a new count at the end of the running period."""
    bench.load(0, 2, 1000)
    bench.rises = 0
    bench.to(100)
    bench.pit.access(0, 1, 200)
    bench.pit.access(0, 1, 0)
    bench.to(999)
    assert bench.rises == 0
    bench.to(1000)
    assert bench.rises == 1
    bench.to(1401)  # the start of the new period is rounded to a nanosecond
    assert bench.rises == 3


def test_bcd(bench: Bench) -> None:
    """Digits on both ways; 0 is 10000."""
    bench.load(0, 2, 0x1234, bcd=1)
    bench.time += nanoseconds(34)
    assert bench.count(0) == 0x1200
    bench.load(0, 2, 0, bcd=1)
    bench.time += nanoseconds(1)
    assert bench.count(0) == 0x9999


def test_gate_2_measures_time(bench: Bench) -> None:
    """How kernels calibrate: gate on, one-shot, wait for bit 5 of port 61h."""
    bench.port_b.access(0, 1, 1)
    bench.load(2, 0, 11932)
    bench.to(11931)
    assert not bench.port_b.access(0, 1, None) & 0x20
    bench.to(11932)
    assert bench.port_b.access(0, 1, None) & 0x20
    assert bench.port_b.access(0, 1, None) & 0x0F == 1


def test_gate_low_stops_mode_0(bench: Bench) -> None:
    """The count pauses while the gate is low, and a count loaded meanwhile waits."""
    bench.load(2, 0, 1000)
    bench.to(5000)
    assert bench.count(2) == 1000
    bench.port_b.access(0, 1, 1)
    bench.to(5400)
    bench.port_b.access(0, 1, 0)
    bench.to(9000)
    assert abs(bench.count(2) - 600) <= 1
    bench.port_b.access(0, 1, 1)
    bench.to(9500)
    assert abs(bench.count(2) - 100) <= 1


def test_gate_rise_restarts_mode_3_and_triggers_mode_1(bench: Bench) -> None:
    """Mode 3 has OUT high while the gate is low; mode 1 is low for the count after the rise."""
    bench.port_b.access(0, 1, 1)
    bench.load(2, 3, 1000)
    bench.to(700)
    assert not bench.pit.output2(bench.time)
    bench.port_b.access(0, 1, 0)
    assert bench.pit.output2(bench.time)
    bench.port_b.access(0, 1, 1)
    assert bench.pit.output2(bench.time)
    bench.port_b.access(0, 1, 0)
    bench.load(2, 1, 100)
    assert bench.pit.output2(bench.time)
    bench.port_b.access(0, 1, 1)
    assert not bench.pit.output2(bench.time)
    bench.time += nanoseconds(101)
    assert bench.pit.output2(bench.time)


def test_refresh_toggles(bench: Bench) -> None:
    """Bit 4 of port 61h changes every 15 us."""
    seen = set()
    for bench.time in range(0, 60_000, 5_000):
        seen.add(bench.port_b.access(0, 1, None) & 0x10)
    assert seen == {0, 0x10}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 255), st.integers(0, 10**8)), max_size=40))
def test_whatever_a_guest_writes(steps: list[tuple[int, int, int]]) -> None:
    """Nothing raises, reads are bytes, and alarms lie ahead."""
    bench = Bench()
    for offset, value, pause in steps:
        result = bench.pit.access(offset, 1, None if value < 0 else value)
        assert 0 <= result <= 255
        bench.port_b.access(0, 1, value & 1)
        bench.time += pause
        bench.clock.run_due()
        due = bench.clock.next_deadline()
        assert due is None or due > bench.time


@pytest.mark.parametrize(("gaps", "shown"), [
    ((1500, 1500, 1500, 10_000_000, 1500), [0, 0, 0, 0, 1]),
    ((1500, 1500, 1500, 9_994_000, 11_000, 1500), [0, 0, 0, 0, 1, 1]),
    ((1500, 1500, 9_992_000, 20_000, 1500), [0, 0, 0, 1, 1]),
    ((9_990_000, 5000, 6000, 5000), [0, 0, 1, 1]),
    ((9_990_000, 1_000_000), [0, 1]),
    ((20_000_000,), [1]),
])  # fmt: skip
@pytest.mark.parametrize("real", (True, False))
def test_a_stall_while_the_output_is_polled(bench: Bench, gaps: tuple[int, ...], shown: list[int], real: bool) -> None:
    """A rise within a round that took far longer than the one before shows one read later, in real time; otherwise at once."""
    bench.clock.real = real
    bench.port_b.access(0, 1, 1)
    bench.load(2, 0, 11_932)  # 10 ms
    reads = []
    for gap in gaps:
        bench.time += gap
        reads.append(bench.port_b.access(0, 1, None) >> 5 & 1)
    if not real:
        shown = [int(sum(gaps[: n + 1]) >= 10_000_153) for n in range(len(gaps))]
    assert reads == shown
