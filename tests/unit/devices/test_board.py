"""The whole board: devices at their addresses, and what a guest asks of the machine."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.devices.memory import GuestRam
from vmm.board import Board, Stop, StopKind, build_board
from vmm.clock import Clock
from vmm.errors import InputError


class Bench:
    """A board without disks, its console and the stops it asked for."""

    def __init__(self) -> None:
        self.time = 0
        self.clock = Clock(lambda: self.time)
        self.out = bytearray()
        self.stops: list[Stop] = []
        self.told = 0
        self.board: Board = build_board(GuestRam(1 << 20), self.clock, console=self.out.extend, disks=[], stop=self.stops.append,
                                        interrupts_changed=self.tell, date=0)
        self.port = self.board.bus.port
        self.told = 0

    def tell(self) -> None:
        self.told += 1


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield Bench()


@pytest.mark.parametrize(
    "port, size, value",
    [(0x21, 1, 0xB8), (0xA1, 1, 0x8E), (0x64, 1, 0x14), (0x92, 1, 0x02), (0x3FD, 1, 0x60), (0xE9, 1, 0xE9), (0x3CC, 1, 0x67),
     (0x4D0, 2, 0), (0x2FD, 1, 0xFF), (0x1F7, 1, 0xFF), (0xCFC, 4, 0xFFFFFFFF), (0x378, 1, 0xFF)],
)
def test_first_reads(bench: Bench, port: int, size: int, value: int) -> None:
    """What QEMU's PC shows after its firmware, and all ones where there is nothing."""
    assert bench.port(port, size, None) == value


def test_rtc_index_and_data(bench: Bench) -> None:
    """Port 70h selects for 71h."""
    bench.port(0x70, 1, 0x09)
    assert bench.port(0x71, 1, None) == 0x70


def test_console_ports(bench: Bench) -> None:
    """COM1 and the debug console come out in one order."""
    bench.port(0x3F8, 1, ord("a"))
    bench.port(0xE9, 1, ord("b"))
    assert bench.out == b"ab"


def test_stops(bench: Bench) -> None:
    """Debug exit with all 32 bits, power off, reset."""
    bench.port(0xF4, 4, 0x12345678)
    bench.port(0xF4, 1, 0)
    bench.port(0x604, 2, 0x2000)
    bench.port(0x64, 1, 0xFE)
    kinds = [(stop.kind, stop.value) for stop in bench.stops]
    assert kinds == [(StopKind.DEBUG_EXIT, 0x12345678), (StopKind.DEBUG_EXIT, 0), (StopKind.POWER_OFF, 0), (StopKind.RESET, 0)]


def test_timer_reaches_the_cpu(bench: Bench) -> None:
    """A kernel's usual start: vectors moved, 100 Hz, an EOI each; a hundred a second."""
    for port, values in ((0x20, [0x11]), (0x21, [0x20, 4, 1, 0xFE]), (0xA0, [0x11]), (0xA1, [0x28, 2, 1, 0xFF]), (0x43, [0x34])):
        for value in values:
            bench.port(port, 1, value)
    bench.port(0x40, 1, 11932 & 0xFF)
    bench.port(0x40, 1, 11932 >> 8)
    count = 0
    while (due := bench.clock.next_deadline()) is not None and due <= 1_000_050_000:
        bench.time = due
        bench.clock.run_due()
        assert bench.board.interrupts.pending()
        assert bench.board.interrupts.acknowledge() == 0x20
        bench.port(0x20, 1, 0x20)
        count += 1
    assert count == 100
    assert bench.told == 200


def test_device_memory(bench: Bench) -> None:
    """Both APICs; guest RAM is nobody's."""
    memory = bench.board.bus.memory
    assert memory(0xFEE00030, 4, None) == 0x00050014
    memory(0xFEC00000, 4, 1)
    assert memory(0xFEC00010, 4, None) == 0x00170011
    assert not bench.board.bus.memory_device(0xB8000)


def test_too_many_disks() -> None:
    """Said to the user, who gave them."""
    with pytest.raises(InputError, match="more than 4"):
        build_board(GuestRam(1 << 20), Clock(lambda: 0), console=lambda data: None, disks=[None] * 5, stop=lambda stop: None,
                    interrupts_changed=lambda: None)


def test_machine_without_a_megabyte() -> None:
    """Has no tables and no text memory, and is a machine all the same."""
    board = build_board(GuestRam(64 << 10), Clock(lambda: 0), console=lambda data: None, disks=[], stop=lambda stop: None,
                        interrupts_changed=lambda: None)
    assert board.vga.text() == [""] * 25


PORTS = [*range(0x20, 0x22), *range(0x40, 0x44), 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0xA0, 0xA1, 0xE9, *range(0x3C0, 0x3E0),
         *range(0x3F8, 0x400), 0x4D0, 0x4D1, 0x1F0, 0x3F6, 0x5000]


@given(st.lists(st.tuples(st.sampled_from(PORTS), st.sampled_from([1, 2, 4]), st.integers(-1, 0xFFFFFFFF)), max_size=60))
def test_whatever_a_guest_writes(steps: list[tuple[int, int, int]]) -> None:
    """At any port of any width: nothing raises, reads fit, `asserted` is always told of, and it can be acknowledged."""
    bench = Bench()
    before = bench.board.interrupts.asserted
    for port, size, value in steps:
        told = bench.told
        result = bench.port(port, size, None if value < 0 else value & (1 << 8 * size) - 1)
        assert 0 <= result < 1 << 8 * size
        bench.time += 1_000_003
        bench.clock.run_due()
        after = bench.board.interrupts.asserted
        assert after == before or bench.told > told
        if after:
            assert 0 <= bench.board.interrupts.acknowledge() <= 255
        before = bench.board.interrupts.asserted
