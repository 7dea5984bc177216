"""The I/O APIC: pins, redirection entries, and the remote IRR of level-triggered ones."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.devices.ioapic import IoApic

MASKED, LEVEL, REMOTE_IRR = 0x10000, 0x8000, 0x4000


class Bench:
    """An I/O APIC and the messages it sent: (destination, logical, mode, vector, level)."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, bool, int, int, bool]] = []
        self.takes = True
        self.apic = IoApic(self.send, apic_id=1)

    def send(self, destination: int, logical: bool, mode: int, vector: int, level: bool) -> bool:
        self.sent.append((destination, logical, mode, vector, level))
        return self.takes

    def read(self, register: int) -> int:
        self.apic.access(0, 4, register)
        return self.apic.access(0x10, 4, None)

    def write(self, register: int, value: int) -> None:
        self.apic.access(0, 4, register)
        self.apic.access(0x10, 4, value)


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield Bench()


def test_identity(bench: Bench) -> None:
    """24 pins, version 11h, all masked; only four bits of the ID."""
    assert (bench.read(0), bench.read(1)) == (1 << 24, 0x170011)
    assert all(bench.read(0x10 + 2 * pin) == MASKED for pin in range(24))
    bench.write(0, 0xF5000000)
    assert bench.read(0) == 5 << 24


def test_edge_pin(bench: Bench) -> None:
    """As xv6 routes the disk: one message a rise; rises while masked are lost."""
    bench.apic.set_line(14, True)
    bench.write(0x10 + 28, 0x2E)
    bench.write(0x10 + 29, 7 << 24)
    assert bench.sent == []
    bench.apic.set_line(14, True)
    assert bench.sent == []
    bench.apic.set_line(14, False)
    bench.apic.set_line(14, True)
    assert bench.sent == [(7, False, 0, 0x2E, False)]


def test_level_pin(bench: Bench) -> None:
    """One message until EOI, again while asserted, and remote IRR shows it."""
    bench.write(0x10 + 20, LEVEL | 0x900 | 0x55)
    bench.apic.set_line(10, True)
    bench.apic.set_line(10, True)
    assert bench.sent == [(0, True, 1, 0x55, True)]
    assert bench.read(0x10 + 20) & REMOTE_IRR
    bench.apic.end_of_interrupt(0x54)
    assert len(bench.sent) == 1
    bench.apic.end_of_interrupt(0x55)
    assert len(bench.sent) == 2
    bench.apic.set_line(10, False)
    bench.apic.end_of_interrupt(0x55)
    assert len(bench.sent) == 2
    assert not bench.read(0x10 + 20) & REMOTE_IRR


def test_unmasking_a_level_pin(bench: Bench) -> None:
    """An asserted one interrupts at once; a message that nobody takes sets no remote IRR."""
    bench.apic.set_line(10, True)
    bench.takes = False
    bench.write(0x10 + 20, LEVEL | 0x55)
    assert len(bench.sent) == 1
    assert not bench.read(0x10 + 20) & REMOTE_IRR


def test_read_only_bits(bench: Bench) -> None:
    """Delivery status and remote IRR cannot be written; turning a pin to edge clears remote IRR."""
    bench.write(0x10, MASKED | 0x5000)
    assert bench.read(0x10) == MASKED
    bench.write(0x10, LEVEL | 0x30)
    bench.apic.set_line(0, True)
    bench.write(0x10, MASKED | 0x30)
    assert bench.read(0x10) == MASKED | 0x30


@given(st.lists(st.tuples(st.integers(0, 0x50), st.integers(-1, 0xFFFFFFFF), st.integers(0, 23))))
def test_whatever_a_guest_writes(steps: list[tuple[int, int, int]]) -> None:
    """Nothing raises, and reads are 32 bits."""
    bench = Bench()
    for register, value, pin in steps:
        if value < 0:
            assert 0 <= bench.read(register) < 1 << 32
        else:
            bench.write(register, value)
        bench.apic.set_line(pin, bool(value & 1))
        bench.apic.end_of_interrupt(value & 0xFF)
