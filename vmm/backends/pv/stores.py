"""Stores of a guest's kernel into its page tables, which are read-only to it: emulated as updates.

The CPU runs the one instruction on a copy of the page; what it changed there is validated and written as if the guest had asked for it. So there is
no second implementation of the instruction set. Knows the engine for its single step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.machine import FRAME
from vmm.mmu.frames import Refused
from vmm.x86.bits import Fault, Vector

if TYPE_CHECKING:
    from vmm.backends.pv.engine import Paravirtual

_STATE = 4 * 1400
_AROUND = 2  # entries that one store may reach


class TableStores:
    """The emulation for one engine."""

    def __init__(self, engine: Paravirtual) -> None:
        self.engine, self.machine, self.mmu = engine, engine.machine, engine.domain.mmu
        (self.copy,) = engine.machine.allocate(1)

    def begin(self, gva: int) -> None:
        """The instruction at EIP stores at `gva`, in a page table that is mapped read-only there."""
        machine, mmu = self.machine, self.mmu
        frame = mmu.translate(gva) >> 12
        memory, quads = machine.memory, machine.quads
        memory[self.copy * FRAME : (self.copy + 1) * FRAME] = memory[frame * FRAME : (frame + 1) * FRAME]
        image = bytes(machine.state.cast("B")[:_STATE])
        undo = mmu.map_scratch(gva, self.copy, user=False)
        first = (gva & 0xFFF) >> 3

        def done(completed: bool) -> None:
            undo()
            if not completed:
                self._put_back(image)  # it faults again, at the place that is its own to fault at
                self._fault(gva)
                return
            try:
                for n in range(first, min(first + _AROUND, 512)):
                    value = quads[self.copy * 512 + n]
                    if value != quads[frame * 512 + n]:
                        mmu.update(frame * FRAME + 8 * n, value)
            except Refused as refused:
                self.engine.stats.refused[refused.why] += 1
                self._put_back(image)
                self.engine.uncount()
                self._fault(gva)

        self.engine.step(done)

    def _put_back(self, image: bytes) -> None:
        self.machine.state.cast("B")[: len(image)] = image
        self.machine.set_cr3(self.mmu.cr3)

    def _fault(self, gva: int) -> None:
        from vmm.exits import PageFault

        self.engine.stats.architectural[f"exception {Vector.PF}"] += 1
        self.engine.exit(PageFault(gva, Fault.P | Fault.W))
