"""The local APIC against the SDM: priorities, the timer, messages and the local vector table."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.clock import Clock
from vmm.devices.lapic import LocalApic

ID, VERSION, TPR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR_LOW, ICR_HIGH = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
TIMER, LINT0, LINT1, ERROR, INITIAL, CURRENT, DIVIDE = 0x320, 0x350, 0x360, 0x370, 0x380, 0x390, 0x3E0
MASKED, PERIODIC = 0x10000, 0x20000


class Bench:
    """A local APIC with a hand-moved clock, its changes and its EOI messages."""

    def __init__(self) -> None:
        self.time = 0
        self.clock = Clock(lambda: self.time)
        self.changes = 0
        self.eois: list[int] = []
        self.nmis = 0
        self.apic = LocalApic(self.clock, self.changed, self.eois.append, self.nmi)

    def nmi(self) -> None:
        self.nmis += 1

    def changed(self) -> None:
        self.changes += 1

    def read(self, register: int) -> int:
        return self.apic.access(register, 4, None)

    def write(self, register: int, value: int) -> None:
        self.apic.access(register, 4, value)

    def fixed(self, vector: int, level: bool = False) -> bool:
        return self.apic.receive(0, False, 0, vector, level)

    def to(self, time: int) -> int:
        """Run on to a time; how often the timer's vector 20h came (each is served at once)."""
        count = 0
        while (due := self.clock.next_deadline()) is not None and due <= time:
            self.time = max(self.time, due)
            self.clock.run_due()
            while self.apic.interrupting:
                assert self.apic.acknowledge() == 0x20
                self.write(EOI, 0)
                count += 1
        self.time = time
        return count


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield Bench()


def test_as_firmware_leaves_it(bench: Bench) -> None:
    """Enabled, the 8259 on LINT0, NMI on LINT1, the rest masked: as on QEMU after its firmware."""
    assert bench.read(VERSION) == 0x00050014
    assert bench.read(SVR) == 0x1FF
    assert (bench.read(LINT0), bench.read(LINT1), bench.read(TIMER)) == (0x8700, 0x8400, MASKED)
    assert bench.read(DFR) == 0xFFFFFFFF
    assert bench.apic.takes_extint()


def test_priorities(bench: Bench) -> None:
    """The highest vector first; nothing of a served class or lower; TPR holds back its class (SDM 3A 11.8.3)."""
    bench.fixed(0x31)
    bench.fixed(0x45)
    assert bench.apic.acknowledge() == 0x45
    assert bench.read(PPR) == 0x40
    assert not bench.apic.interrupting
    bench.fixed(0x4F)  # same class
    assert not bench.apic.interrupting
    bench.fixed(0x50)
    assert bench.apic.acknowledge() == 0x50
    assert bench.read(ISR + 0x20) == 1 << 5 | 1 << 16
    bench.write(EOI, 0)
    bench.write(EOI, 0)
    assert bench.apic.acknowledge() == 0x4F
    bench.write(EOI, 0)
    bench.write(TPR, 0x3F)
    assert not bench.apic.interrupting
    assert bench.read(PPR) == 0x3F
    bench.write(TPR, 0x2F)
    assert bench.apic.acknowledge() == 0x31


def test_level_interrupts_send_eoi(bench: Bench) -> None:
    """Edge ones do not."""
    bench.fixed(0x40)
    bench.fixed(0x51, level=True)
    assert bench.read(TMR + 0x20) == 1 << 17
    for _ in range(2):
        bench.apic.acknowledge()
        bench.write(EOI, 0)
    bench.write(EOI, 0)  # nothing in service
    assert bench.eois == [0x51]


def test_xv6_timer(bench: Bench) -> None:
    """Periodic, divided by 1, 10,000,000 counts: a hundred a second."""
    bench.write(DIVIDE, 0x0B)
    bench.write(TIMER, PERIODIC | 0x20)
    bench.write(INITIAL, 10_000_000)
    assert bench.to(1_000_000_000) == 100


@pytest.mark.parametrize("code, divider", [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)])
def test_one_shot_and_dividers(code: int, divider: int) -> None:
    """SDM 3A figure "Divide Configuration Register"."""
    bench = Bench()
    bench.write(TIMER, 0x20)
    bench.write(DIVIDE, code)
    bench.write(INITIAL, 1000)
    bench.time = 500 * divider
    assert bench.read(CURRENT) == 500
    assert bench.to(1000 * divider - 1) == 0
    assert bench.to(1000 * divider) == 1
    assert bench.read(CURRENT) == 0
    assert bench.to(10**9) == 0


def test_late_timer_is_one_interrupt_in_phase(bench: Bench) -> None:
    """Slept-through periods do not storm, and the phase stays."""
    bench.write(DIVIDE, 0x0B)
    bench.write(TIMER, PERIODIC | 0x20)
    bench.write(INITIAL, 100_000)
    bench.time = 1_050_000
    assert bench.to(1_050_000) == 1
    assert bench.clock.next_deadline() == 1_100_000


def test_timer_stops(bench: Bench) -> None:
    """Initial count 0 stops it; a masked one counts in silence."""
    bench.write(DIVIDE, 0x0B)
    bench.write(TIMER, PERIODIC | MASKED | 0x20)
    bench.write(INITIAL, 100_000)
    assert bench.to(1_000_010) == 0
    assert bench.read(CURRENT) == 99_990
    bench.write(TIMER, PERIODIC | 0x20)
    assert bench.to(1_100_000) == 1
    bench.write(INITIAL, 0)
    assert bench.to(2_000_000) == 0
    assert bench.read(CURRENT) == 0
    assert bench.clock.next_deadline() is None


def test_change_of_mode_keeps_the_count(bench: Bench) -> None:
    """From periodic to one-shot in the middle."""
    bench.write(DIVIDE, 0x0B)
    bench.write(TIMER, PERIODIC | 0x20)
    bench.write(INITIAL, 100_000)
    bench.to(340_000)
    bench.write(TIMER, 0x20)
    assert bench.read(CURRENT) == 60_000
    assert bench.to(2_000_000) == 1


def test_software_disable(bench: Bench) -> None:
    """Masks the whole local table, refuses messages, passes the 8259 through; enabling unmasks nothing."""
    bench.write(TIMER, 0x20)
    bench.write(SVR, 0xFF)
    assert bench.read(TIMER) == MASKED | 0x20
    bench.write(TIMER, 0x20)
    assert bench.read(TIMER) == MASKED | 0x20
    assert not bench.fixed(0x40)
    assert bench.apic.takes_extint()
    bench.write(SVR, 0x1FF)
    assert bench.read(TIMER) == MASKED | 0x20
    assert not bench.apic.takes_extint()


def test_lint0(bench: Bench) -> None:
    """Masked or fixed it is no ExtINT; fixed it interrupts with its own vector on the rise."""
    bench.write(LINT0, MASKED | 0x700)
    assert not bench.apic.takes_extint()
    bench.write(LINT0, 0x41)
    assert not bench.apic.takes_extint()
    bench.apic.set_lint0(True)
    bench.apic.set_lint0(True)
    assert bench.apic.acknowledge() == 0x41
    bench.write(EOI, 0)
    assert not bench.apic.interrupting


def test_non_maskable_interrupts(bench: Bench) -> None:
    """By a message of any vector, to oneself by destination or shorthand, by either pin set up for it: to the CPU's NMI pin, and into no register."""
    assert not bench.apic.receive(0, False, 4, 0, False)
    bench.apic.receive(5, False, 4, 0, False)  # somebody else
    assert bench.nmis == 1
    for low, count in ((0x400, 2), (0x80400, 3), (0xC0400, 3)):
        bench.write(ICR_LOW, low)
        assert bench.nmis == count
    bench.apic.pulse_lint1()
    bench.write(LINT1, MASKED | 0x400)
    bench.apic.pulse_lint1()
    bench.write(LINT1, 0x42)
    bench.apic.pulse_lint1()
    assert (bench.nmis, bench.apic.acknowledge()) == (4, 0x42)
    bench.write(LINT0, 0x400)
    bench.apic.set_lint0(True)
    bench.apic.set_lint0(True)
    bench.write(SVR, 0xFF)  # software-disabled, an APIC still takes such messages; its pins are masked
    bench.write(ICR_LOW, 0x400)
    bench.apic.pulse_lint1()
    assert (bench.nmis, bench.read(ESR)) == (6, 0)


def test_self_ipi(bench: Bench) -> None:
    """By shorthand, by ID, by logical ID; others' reach nobody, and delivery is never pending."""
    bench.write(LDR, 1 << 24)
    for high, low, arrives in (
        (0, 0x40050, True),  # self
        (0, 0x80050, True),  # all including self
        (0, 0xC0050, False),  # all but self
        (0, 0x00050, True),
        (1 << 24, 0x00050, False),
        (0xFF << 24, 0x00050, True),
        (1 << 24, 0x00850, True),
        (2 << 24, 0x00850, False),
        (0, 0x00500, False),  # INIT
        (1 << 24, 0x00608, False),  # start-up of a CPU that is not there
        (0, 0x88500, False),  # xv6: INIT level de-assert to all
    ):
        bench.write(ICR_HIGH, high)
        bench.write(ICR_LOW, low)
        assert not bench.read(ICR_LOW) & 0x1000
        assert bench.apic.interrupting is arrives, (hex(high), hex(low))
        if arrives:
            assert bench.apic.acknowledge() == 0x50
            bench.write(EOI, 0)


def test_errors(bench: Bench) -> None:
    """Illegal vectors and registers show in ESR after a write to it, and interrupt through LVT error."""
    bench.write(ERROR, 0x33)
    bench.fixed(0x05)
    assert bench.read(ESR) == 0
    bench.write(ESR, 0)
    assert bench.read(ESR) == 0x40
    assert bench.apic.acknowledge() == 0x33
    bench.write(ICR_LOW, 0x40003)
    bench.read(0x40)
    bench.write(ESR, 0)
    assert bench.read(ESR) == 0xA0
    bench.write(ESR, 0)
    assert bench.read(ESR) == 0


def test_withdrawn_by_tpr_is_spurious(bench: Bench) -> None:
    """An acknowledge with nothing deliverable gives the spurious vector and serves nothing."""
    bench.write(SVR, 0x13F)
    bench.fixed(0x40)
    bench.write(TPR, 0xF0)
    assert bench.apic.acknowledge() == 0x3F
    assert bench.apic.isr == 0
    assert bench.apic.irr == 1 << 0x40


def test_clustered_logical_destinations(bench: Bench) -> None:
    """DFR's cluster model: the high half names the cluster, the low half its members."""
    bench.write(DFR, 0x0FFFFFFF)
    bench.write(LDR, 0x21 << 24)
    assert bench.apic.receive(0x21, True, 0, 0x40, False)
    assert bench.apic.receive(0xF1, True, 1, 0x40, False)
    assert not bench.apic.receive(0x31, True, 0, 0x40, False)
    assert not bench.apic.receive(0x22, True, 0, 0x40, False)


@given(st.lists(st.tuples(st.integers(0, 0xFFF), st.sampled_from([1, 2, 4]), st.integers(-1, 0xFFFFFFFF)), max_size=40))
def test_whatever_a_guest_writes(steps: list[tuple[int, int, int]]) -> None:
    """Nothing raises, reads fit their size, and the snapshot shows what reads show."""
    bench = Bench()
    for offset, size, value in steps:
        result = bench.apic.access(offset, size, None if value < 0 else value & (1 << 8 * size) - 1)
        assert 0 <= result < 1 << 8 * size
        bench.time += 12_345
        bench.clock.run_due()
        if bench.apic.interrupting:
            bench.apic.acknowledge()
    page = bench.apic.page()
    assert len(page) == 4096
    for register in (ID, VERSION, TPR, PPR, SVR, ISR, TMR, IRR, ICR_LOW, TIMER, LINT0, INITIAL, CURRENT, DIVIDE):
        assert int.from_bytes(page[register : register + 4], "little") == bench.read(register)
