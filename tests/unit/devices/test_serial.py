"""The 16550A against its data sheet, and what kernels do with it."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.devices.serial import Serial


class Bench:
    """A UART with what it sent and how often its line rose."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.level = False
        self.rises = 0
        self.uart = Serial(self.out.extend, self.line)

    def line(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level

    def up(self) -> bool:
        """The level of the line, as a call: type checkers think that a variable which they saw cannot change."""
        return self.level

    def read(self, offset: int) -> int:
        return self.uart.access(offset, 1, None)

    def write(self, offset: int, value: int) -> None:
        self.uart.access(offset, 1, value)


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield Bench()


def test_sends(bench: Bench) -> None:
    """Always ready, every byte in order."""
    for byte in b"xv6...\n\xff":
        assert bench.read(5) & 0x60 == 0x60
        bench.write(0, byte)
    assert bench.out == b"xv6...\n\xff"


def test_divisor_latch(bench: Bench) -> None:
    """DLAB moves offsets 0 and 1; nothing is sent meanwhile."""
    bench.write(3, 0x83)
    bench.write(0, 0x34)
    bench.write(1, 0x12)
    assert (bench.read(0), bench.read(1)) == (0x34, 0x12)
    bench.write(3, 0x03)
    assert bench.read(1) == 0
    assert bench.out == b""


def test_receives_without_fifo_an_interrupt_each(bench: Bench) -> None:
    """An edge for every byte, as a one-byte-per-interrupt driver on an edge-triggered controller needs."""
    bench.write(1, 1)
    bench.uart.receive(b"abc")
    got = bytearray()
    for n in range(1, 4):
        assert bench.rises == n
        assert bench.read(2) == 0x04
        got.append(bench.read(0))
    assert got == b"abc"
    assert not bench.up()
    assert (bench.read(2), bench.read(5) & 1) == (1, 0)


def test_fifo_trigger_and_time_out(bench: Bench) -> None:
    """At the trigger level "data available", below it "time-out", both with the FIFO bits."""
    bench.write(2, 0x81)  # trigger 8
    bench.write(1, 1)
    bench.uart.receive(b"1234567")
    assert bench.read(2) == 0xCC
    bench.uart.receive(b"8")
    assert bench.read(2) == 0xC4
    bench.read(0)
    assert bench.read(2) == 0xCC


def test_nothing_typed_is_lost(bench: Bench) -> None:
    """More than a FIFO waits on the wire, and `room` tells the sender to stop."""
    data = bytes(range(256)) * 20
    bench.write(2, 1)
    bench.uart.receive(data)
    assert bench.uart.room() == 0
    got = bytearray()
    while bench.read(5) & 1:
        got.append(bench.read(0))
    assert got == data
    assert bench.uart.room() > 0
    assert not bench.read(5) & 2


def test_transmit_interrupt(bench: Bench) -> None:
    """On enabling, and an edge after each byte; reading IIR ends it."""
    bench.write(1, 2)
    assert bench.read(2) == 2
    assert bench.read(2) == 1
    assert not bench.up()
    for n in range(3):
        before = bench.rises
        bench.write(0, n)
        assert bench.rises == before + 1
    bench.write(0, 3)
    assert bench.rises == 5


def test_priorities(bench: Bench) -> None:
    """Line status before data before transmitter before modem status; the read of a lower cause is not lost."""
    bench.write(4, 0x10)
    bench.read(6)
    bench.write(1, 0x0F)
    bench.write(4, 0x11)  # DSR changes
    bench.write(0, 1)
    bench.write(0, 2)  # overrun
    assert bench.read(2) == 0x06
    assert bench.read(5) & 0x03 == 0x03
    assert bench.read(2) == 0x04
    assert bench.read(0) == 2
    assert bench.read(2) == 0x02
    assert bench.read(2) == 0x00
    assert bench.read(6) & 0x02
    assert bench.read(2) == 0x01


def test_loopback(bench: Bench) -> None:
    """Bytes come back and are not sent; modem outputs are inputs (the probe of Linux)."""
    bench.write(4, 0x1A)
    assert bench.read(6) & 0xF0 == 0x90
    bench.write(0, 0xAE)
    assert bench.read(0) == 0xAE
    assert bench.out == b""
    bench.write(4, 0x0F)
    assert bench.read(6) & 0xF0 == 0xB0


def test_identifies_as_16550a(bench: Bench) -> None:
    """FIFO bits in IIR, a scratch register, and only four bits in IER."""
    bench.write(2, 0x01)
    assert bench.read(2) & 0xC0 == 0xC0
    bench.write(2, 0x00)
    assert bench.read(2) & 0xC0 == 0
    bench.write(7, 0xA5)
    assert bench.read(7) == 0xA5
    bench.write(1, 0xFF)
    assert bench.read(1) == 0x0F


def test_clearing_the_fifo_ends_its_interrupt(bench: Bench) -> None:
    """FCR bit 1."""
    bench.write(2, 1)
    bench.write(1, 1)
    bench.uart.receive(b"ab")
    assert bench.up()
    bench.write(2, 3)
    assert not bench.up()
    assert not bench.read(5) & 1


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(-2, 255))))
def test_whatever_a_guest_writes(steps: list[tuple[int, int]]) -> None:
    """Nothing raises, reads are bytes, and the line is what IIR says."""
    bench = Bench()
    for offset, value in steps:
        if value == -2:
            bench.uart.receive(bytes(offset))
        else:
            assert 0 <= bench.uart.access(offset, 1, None if value < 0 else value) <= 255
        assert bench.up() == (bench.uart._cause() != 1)
