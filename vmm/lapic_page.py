"""The local APIC's register page as memory that guests may read without an exit.

Its reads have no side effects, so a frame with the register values is mapped read-only in its place: kernels that read their
APIC ID in every lock (xv6) would otherwise exit each time. Writes go to the device. While the timer counts for somebody who
reads it (one-shot, or masked), the page is taken away, since the current count moves by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vmm.devices.lapic import CURRENT_COUNT, INITIAL_COUNT, IRR, ISR, KNOWN, LVT_TIMER, PPR, TMR, LocalApic
from vmm.machine import FRAME, Machine
from vmm.memory import GuestMemory

GFN = 0xFEE00000 >> 12
_MASKED, _PERIODIC = 1 << 16, 1 << 17
_VOLATILE = tuple(index for index in (PPR, CURRENT_COUNT, *range(ISR, ISR + 8), *range(TMR, TMR + 8), *range(IRR, IRR + 8)) if index in KNOWN)


class Lender(Protocol):
    """Maps a frame in place of a device's page."""

    def forget_borrowed(self, hfn: int) -> None:
        """Takes the frame away from wherever it stands for a device."""
        ...


class LapicPage:
    """A bus device in front of the local APIC that keeps the readable frame up to date. unread(): nobody can read it now: `update` will follow."""

    def __init__(self, machine: Machine, memory: GuestMemory, mmu: Lender, lapic: LocalApic, hfn: int) -> None:
        self.words, self.memory, self.mmu, self.lapic, self.hfn = machine.words, memory, mmu, lapic, hfn
        self.at = hfn * FRAME // 4
        machine.memory[hfn * FRAME : (hfn + 1) * FRAME] = lapic.page()
        self.unread: Callable[[], bool] = lambda: False
        self._offer()

    def restored(self) -> None:
        """Another state was put into the device."""
        self.update()
        self._offer()

    def update(self) -> None:
        """Brings the frame up to date whole."""
        start = self.hfn * FRAME
        self.memory.memory[start : start + FRAME] = self.lapic.page()

    def access(self, offset: int, size: int, value: int | None) -> int:
        """As the device; after a write the frame shows what it changed."""
        result = self.lapic.access(offset, size, value)
        if value is not None:
            index = offset >> 4
            if index in (LVT_TIMER, INITIAL_COUNT):
                self._offer()
            if not self.unread():
                if index in KNOWN:
                    self.words[self.at + 4 * index] = self.lapic.access(offset & ~0xF, 4, None)
                self.refresh()
        return result

    def refresh(self) -> None:
        """Registers that change by themselves: after an interrupt was taken or ended."""
        if self.unread():
            return
        for index in _VOLATILE:
            self.words[self.at + 4 * index] = self.lapic.access(16 * index, 4, None)

    def _offer(self) -> None:
        """Lets guests read the frame, or takes it away."""
        registers = self.lapic.registers
        counting = registers[INITIAL_COUNT] and (registers[LVT_TIMER] & _MASKED or not registers[LVT_TIMER] & _PERIODIC)
        if counting:
            if self.memory.read_only.pop(GFN, None) is not None:
                self.mmu.forget_borrowed(self.hfn)
        else:
            self.memory.read_only[GFN] = self.hfn
