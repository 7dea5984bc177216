"""Code and stores kept coherent where the guest owns its page tables and uses NX: no frame is both compiled from and writable below.

The engine notices a store to code only through a mapping that is executable too (errata 6 and 14). So while this is on, the nested entry of each
frame that code was compiled from is read-only; a write to it drops that code first. A frame that goes to and fro becomes mixed: writable, and the
engine looks at each store to it. Knows frames and their uses; knows no guest instruction.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from vmm.faults import GuestFault
from vmm.machine import FRAME, Machine
from vmm.memory import EXECUTED, MIXED, GuestMemory
from vmm.mmu.nested import NestedMmu
from vmm.mmu.walk import GuestPaging

_FLIPS, _GAP = 30, 0.020  # so many writes to a frame of code, each so many seconds after the last at most, make it mixed
_MOST_MIXED = 8  # the engine keeps them in a list


class Coherence:
    """Keeps one guest's code coherent from `start` on. look: makes `paging` walk the tables that are in use."""

    def __init__(self, machine: Machine, memory: GuestMemory, nested: NestedMmu, paging: GuestPaging, look: Callable[[], None]) -> None:
        self.machine, self.memory, self.nested, self.paging, self.look = machine, memory, nested, paging, look
        self.on = False
        self.flips: dict[int, tuple[int, float]] = {}  # gfn -> how often, and when last
        self.mixed: dict[int, Callable[[], None]] = {}  # gfn -> what ends it; the oldest first

    def start(self) -> None:
        """From now on."""
        if not self.on:
            self.on = True
            self.memory.state[:] = bytes(self.memory.count)
            self.memory.before_write, self.memory.after_write = self.written, lambda gfn: None
            self.nested.on_write = self.written
            self.machine.watch_code(self._compiled)

    def _compiled(self, linear: int, size: int) -> None:
        """The engine has compiled a block."""
        self.look()
        for page in range(linear & ~0xFFF, linear + size, FRAME):
            try:
                gfn = self.paging.walk(page).gpa >> 12
            except GuestFault:
                continue  # the end of a block that stops in front of a page that is not there
            if gfn < self.memory.count and not self.memory.state[gfn]:
                self.memory.state[gfn] = EXECUTED
                self.nested.protect(gfn)

    def written(self, gfn: int) -> bool:
        """A frame is about to be written, by the guest or for it. True: it may be."""
        uses = self.memory.state[gfn]
        if uses == MIXED:
            self.machine.drop_frame_code(self.memory.frames[gfn])  # only the VMM's own writes get here: the guest's do not fault
        elif uses:
            self.machine.drop_frame_code(self.memory.frames[gfn])
            self.memory.state[gfn] = 0
            self._count(gfn)
            self.nested.open(gfn)
        return True

    def _count(self, gfn: int) -> None:
        count, last = self.flips.get(gfn, (0, 0.0))
        now = time.monotonic()
        count = count + 1 if now - last < _GAP else 1
        self.flips[gfn] = count, now
        if count > _FLIPS:
            del self.flips[gfn]
            if len(self.mixed) == _MOST_MIXED:
                self._unmix(next(iter(self.mixed)))
            self.memory.state[gfn] = MIXED
            self.mixed[gfn] = self.machine.watch_stores(self.memory.frames[gfn] * FRAME, FRAME)

    def _unmix(self, gfn: int) -> None:
        self.mixed.pop(gfn)()
        self.machine.drop_frame_code(self.memory.frames[gfn])
        self.memory.state[gfn] = 0
