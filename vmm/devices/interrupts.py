"""From ISA lines to the CPU's INTR pin: the 8259 pair, the I/O APIC and the local APIC, wired as on a PC with an MP table.

Knows the wiring, and what the CPU asks: is there an interrupt, and which. Must not know the CPU's IF, nor what drives a line.
"""

from collections.abc import Callable
from functools import partial

from vmm.clock import Clock
from vmm.devices.ioapic import IoApic
from vmm.devices.lapic import LocalApic
from vmm.devices.pic import PicPair

LOCAL_APIC_ID = 0
IO_APIC_ID = 1
TIMER_PIN = 2
"""Where ISA line 0 arrives at the I/O APIC besides pin 0: the 8259's cascade takes no pin, and PCs use its place for the timer."""


class Interrupts:
    """All interrupt controllers of a one-CPU PC. Every change of `pending()` calls `changed`.

    nmi: the CPU's NMI pin. A back-end that can deliver non-maskable interrupts puts itself there.
    """

    def __init__(self, clock: Clock, changed: Callable[[], None]) -> None:
        self._tell = changed
        self.nmi: Callable[[], None] = lambda: None
        self.asserted = False
        """What `pending()` returns, as an attribute for the hottest loops."""
        self.pics = PicPair(self._set_pic_output)
        self.lapic = LocalApic(clock, self._update, self._end_of_interrupt, lambda: self.nmi(), apic_id=LOCAL_APIC_ID)
        self.ioapic = IoApic(self.lapic.receive, apic_id=IO_APIC_ID)

    def pending(self) -> bool:
        """Is INTR asserted? (Whether the CPU takes it is its IF's business.)"""
        return self.asserted

    def acknowledge(self) -> int:
        """INTA: the vector to deliver. When the request has gone meanwhile it is a spurious one, as on a real machine.

        The local APIC's own interrupts come before those that it passes through from the 8259 pair.
        """
        if self.lapic.interrupting or not self.lapic.takes_extint():
            return self.lapic.acknowledge()
        return self.pics.acknowledge()

    def raise_nmi(self) -> None:
        """A pulse on the board's NMI line: it reaches the CPU as the local APIC's LINT1 says."""
        self.lapic.pulse_lint1()

    def line(self, irq: int) -> Callable[[bool], None]:
        """The setter of ISA line `irq` (0 to 15) for the device that drives it."""
        return partial(self._set_line, irq)

    def _set_line(self, irq: int, level: bool) -> None:
        self.pics.set_line(irq, level)
        self.ioapic.set_line(irq, level)
        if irq == 0:
            self.ioapic.set_line(TIMER_PIN, level)

    def _set_pic_output(self, level: bool) -> None:
        self.lapic.set_lint0(level)
        self._update()

    def _end_of_interrupt(self, vector: int) -> None:
        self.ioapic.end_of_interrupt(vector)

    def _extint(self) -> bool:
        return self.pics.master.requesting and self.lapic.takes_extint()

    def _update(self) -> None:
        asserted = self.lapic.interrupting or self._extint()
        if asserted != self.asserted:
            self.asserted = asserted
            self._tell()
