"""The wiring of the interrupt controllers: from an ISA line to the vector that the CPU takes."""

from vmm.clock import Clock
from vmm.devices.interrupts import Interrupts

LINT0, SVR, EOI = 0x350, 0xF0, 0xB0


class Bench:
    """The controllers, the 8259 pair set up with vectors 20h and 28h, nothing masked; what was told of changes."""

    def __init__(self) -> None:
        self.told: list[bool] = []
        self.interrupts = Interrupts(Clock(lambda: 0), lambda: self.told.append(self.interrupts.pending()))
        pics = self.interrupts.pics
        for chip, base, wiring in ((pics.master, 0x20, 4), (pics.slave, 0x28, 2)):
            chip.access(0, 1, 0x11)
            for value in (base, wiring, 1, 0):
                chip.access(1, 1, value)

    def route(self, pin: int, entry: int) -> None:
        self.interrupts.ioapic.access(0, 4, 0x10 + 2 * pin)
        self.interrupts.ioapic.access(0x10, 4, entry)

    def lapic(self, register: int, value: int) -> None:
        self.interrupts.lapic.access(register, 4, value)


def test_8259_through_the_local_apic() -> None:
    """As firmware leaves it (virtual wire), as with the local APIC disabled, and not with LINT0 masked."""
    for writes, arrives in (([], True), ([(SVR, 0xFF)], True), ([(LINT0, 0x10700)], False)):
        bench = Bench()
        for register, value in writes:
            bench.lapic(register, value)
        bench.interrupts.line(4)(True)
        assert bench.interrupts.pending() is bench.interrupts.asserted is arrives
        if arrives:
            assert bench.interrupts.acknowledge() == 0x24
            assert bench.told == [True, False]


def test_masking_lint0_withdraws_a_request() -> None:
    """And unmasking it brings it back."""
    bench = Bench()
    bench.interrupts.line(4)(True)
    bench.lapic(LINT0, 0x10700)
    assert not bench.interrupts.pending()
    bench.lapic(LINT0, 0x00700)
    assert bench.told == [True, False, True]


def test_io_apic_way() -> None:
    """As xv6: LINT0 masked, the 8259 pair masked, the keyboard and the timer on I/O APIC pins 1 and 2."""
    bench = Bench()
    bench.lapic(LINT0, 0x10000)
    bench.route(1, 0x31)
    bench.route(2, 0x30)
    bench.interrupts.line(1)(True)
    assert bench.interrupts.acknowledge() == 0x31
    bench.interrupts.line(0)(True)
    assert not bench.interrupts.pending()  # the same class is in service
    bench.lapic(EOI, 0)
    assert bench.interrupts.acknowledge() == 0x30


def test_local_interrupts_come_first() -> None:
    """Both ways at once: the local APIC's own vector, then the 8259's."""
    bench = Bench()
    bench.route(5, 0x61)
    bench.interrupts.line(3)(True)
    bench.interrupts.line(5)(True)
    assert bench.interrupts.acknowledge() == 0x61
    assert bench.interrupts.acknowledge() == 0x23


def test_level_triggered_eoi_goes_round() -> None:
    """The local APIC's EOI reaches the I/O APIC, which interrupts again while the line is up."""
    bench = Bench()
    bench.lapic(LINT0, 0x10000)
    bench.route(11, 0x8000 | 0x71)
    line = bench.interrupts.line(11)
    line(True)
    assert bench.interrupts.acknowledge() == 0x71
    assert not bench.interrupts.pending()
    bench.lapic(EOI, 0)
    assert bench.interrupts.acknowledge() == 0x71
    line(False)
    bench.lapic(EOI, 0)
    assert not bench.interrupts.pending()


def test_nothing_to_acknowledge() -> None:
    """A spurious vector of whoever would have given one."""
    bench = Bench()
    assert bench.interrupts.acknowledge() == 0x27
    bench.lapic(LINT0, 0x10000)
    assert bench.interrupts.acknowledge() == 0xFF
