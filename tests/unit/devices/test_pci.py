"""PCI configuration as firmware and kernels probe it, the reset register between its ports, and the power management block."""

from collections.abc import Iterator

import pytest

from tests.unit.devices.memory import GuestRam
from vmm.board import Board, Stop, StopKind, build_board
from vmm.clock import Clock
from vmm.devices.pci import HOST_BRIDGE, IDE, ISA_BRIDGE, POWER

NOBODY = 0xFFFFFFFF


class Bench:
    """A board, its time, and the stops it asked for."""

    def __init__(self) -> None:
        self.time = 0
        self.stops: list[Stop] = []
        self.board: Board = build_board(GuestRam(1 << 20), Clock(lambda: self.time), console=lambda data: None, disks=[], stop=self.stops.append,
                                        interrupts_changed=lambda: None, date=0)
        self.port = self.board.bus.port

    def config(self, function: int, register: int, size: int = 4, value: int | None = None) -> int:
        self.port(0xCF8, 4, 1 << 31 | function << 8 | register & 0xFC)
        return self.port(0xCFC + (register & 3), size, value)


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield Bench()


def test_kernels_find_mechanism_1(bench: Bench) -> None:
    """The probe that Linux does: a byte to CFBh changes nothing, the address register of 32 bits keeps what is written."""
    bench.port(0xCFB, 1, 1)
    before = bench.port(0xCF8, 4, None)
    bench.port(0xCF8, 4, 0x80000000)
    assert (before, bench.port(0xCF8, 4, None)) == (0, 0x80000000)
    assert bench.port(0xCFC, 2, None) == 0x8086
    assert bench.port(0xCF8, 2, None) == 0xFFFF
    bench.port(0xCF8, 4, 0)
    assert bench.port(0xCFC, 4, None) == NOBODY


@pytest.mark.parametrize("function, identity, kind", [(HOST_BRIDGE, 0x12378086, 0x0600), (ISA_BRIDGE, 0x70008086, 0x0601),
                                                      (IDE, 0x70108086, 0x0101), (POWER, 0x71138086, 0x0680)])
def test_functions(bench: Bench, function: int, identity: int, kind: int) -> None:
    """Who is there, of which class, in halves and bytes too; identities cannot be written."""
    bench.config(function, 0, value=0)
    assert bench.config(function, 0) == identity
    assert bench.config(function, 2, 2) == identity >> 16
    assert bench.config(function, 0x0B, 1) << 8 | bench.config(function, 0x0A, 1) == kind


def test_a_scan_of_the_whole_space_finds_four(bench: Bench) -> None:
    """Every bus, device and function; device 1 says that it has several functions."""
    found = [function for function in range(0x10000) if bench.config(function, 0) != NOBODY]
    assert found == [HOST_BRIDGE, ISA_BRIDGE, IDE, POWER]
    assert [bench.config(function, 0x0E, 1) for function in found] == [0, 0x80, 0, 0]


def test_no_base_address_asks_for_room(bench: Bench) -> None:
    """Ports are where the ISA has them: a base address register that is sized answers 0."""
    for function in (HOST_BRIDGE, ISA_BRIDGE, IDE, POWER):
        for register in (*range(0x10, 0x28, 4), 0x30):
            bench.config(function, register, value=NOBODY)
            assert bench.config(function, register) == 0


def test_only_what_can_be_written_is(bench: Bench) -> None:
    """PAM takes its two bits for each part; the power management block's address leaves room for 64 bytes."""
    bench.config(HOST_BRIDGE, 0x58, value=0xFFFFFFFF)
    assert bench.config(HOST_BRIDGE, 0x58) == 0x33333000 | 0x0
    bench.config(HOST_BRIDGE, 0x5C, value=0)
    assert list(bench.board.pci.attributes()) == [0x30, 0x33, 0x33, 0, 0, 0, 0]
    bench.config(POWER, 0x40, value=0xFFFFFFFF)
    assert bench.config(POWER, 0x40) == 0xFFC1


def test_the_power_management_block_moves(bench: Bench) -> None:
    """To where its base register says, but never over another device; it can be switched off."""
    bench.config(POWER, 0x40, value=0xB000)
    bench.time = 10**9
    assert (bench.port(0xB008, 4, None), bench.port(0x608, 4, None)) == (3_579_545, NOBODY)
    bench.config(POWER, 0x40, value=0x03C0)
    assert (bench.port(0x3CC, 1, None), bench.port(0x3C4, 1, None)) == (0x67, 0)
    bench.port(0x3F9, 1, 5)
    assert bench.port(0x3F9, 1, None) == 5
    bench.config(POWER, 0x40, value=0xB000)
    bench.config(POWER, 0x80, 1, 0)
    assert bench.port(0xB008, 4, None) == NOBODY
    assert bench.port(0x3CC, 1, None) == 0x67


def test_accesses_that_leave_the_word(bench: Bench) -> None:
    """Nobody answers."""
    bench.port(0xCF8, 4, 0x80000000)
    assert bench.port(0xCFD, 4, None) == NOBODY
    bench.port(0xCFF, 2, 0)
    assert bench.port(0xCFF, 2, None) == 0xFFFF


def test_reset_register(bench: Bench) -> None:
    """Port CF9h resets when bit 2 rises, and not before."""
    bench.port(0xCF9, 1, 2)
    assert (bench.port(0xCF9, 1, None), bench.stops) == (2, [])
    bench.port(0xCF9, 1, 6)
    assert [(stop.kind, stop.by) for stop in bench.stops] == [(StopKind.RESET, "port CF9h")]


def test_power_management_timer(bench: Bench) -> None:
    """24 bits at 3.579545 MHz; a read is of 32 bits at once."""
    bench.time = 10**9
    assert bench.port(0x608, 4, None) == 3_579_545
    bench.time = 5 * 10**9
    assert bench.port(0x608, 4, None) == 5 * 3_579_545 & 0xFFFFFF


def test_power_management_registers(bench: Bench) -> None:
    """ACPI owns the chip from the start; only S5 powers it off."""
    assert bench.port(0x604, 2, None) == 1
    bench.port(0x602, 2, 0xFFFF)
    assert bench.port(0x600, 4, None) == 0x0521 << 16
    bench.port(0x603, 1, 0)
    assert bench.port(0x602, 2, None) == 0x21
    bench.port(0x604, 2, 0x2400)
    assert bench.stops == []
    bench.port(0x604, 2, 0x2000)
    assert [stop.kind for stop in bench.stops] == [StopKind.POWER_OFF]
