"""Where each frame is mapped, and with which rights: so that a right can be taken back from every mapping at once.

Keeps W^X per physical page: stores to a page that is writable and executable are slow on this CPU, and code on it goes stale
through other mappings (errata 5, 6). A page that one mapping keeps writing and executing in turn becomes both, there alone.
Knows leaf entries and the uses of frames; knows no guest table.
"""

from __future__ import annotations

from vmm.machine import Machine
from vmm.memory import EXECUTED, MIXED, GuestMemory
from vmm.mmu.host import NX, HostSpace
from vmm.x86.bits import Pte

HFN_BITS = 0x000FFFFFFFFFF000  # the frame in an entry
_W = Pte.W
_PLACES = 64  # remembered places of one frame before they are looked through
_FLIPS = 4  # times that a page may change between written and executed before it becomes both


class ReverseMap:
    """The mappings of one guest's frames. An entry is remembered by its index into `machine.quads`; it may have changed since."""

    def __init__(self, machine: Machine, memory: GuestMemory, host: HostSpace) -> None:
        self.machine, self.memory, self.host, self.quads = machine, memory, host, machine.quads
        self.clear()

    def clear(self) -> None:
        """Forgets everything: no entry is left."""
        self.writable: dict[int, list[int]] = {}  # gfn -> entries that map it writable
        self.executable: dict[int, list[int]] = {}
        self.borrowed: dict[int, list[int]] = {}  # hfn outside guest memory -> entries that map it read-only
        self.flips: dict[int, int] = {}

    def add(self, gfn: int, entry: int, index: int) -> None:
        """Remembers where a guest frame is mapped writable or executable, so that the right can be taken back."""
        if entry & _W:
            places = self.writable.setdefault(gfn, [])
            places.append(index)
            if len(places) > _PLACES:
                self.writable[gfn] = self._still(places, gfn)
        if not entry & NX:
            self.executable.setdefault(gfn, []).append(index)

    def _still(self, places: list[int], gfn: int) -> list[int]:
        """Those places, each once, that map the frame writable now."""
        frame = self.memory.frames[gfn] << 12
        return [index for index in dict.fromkeys(places) if self.quads[index] & _W and self.quads[index] & HFN_BITS == frame]

    def protect(self, gfn: int) -> None:
        """Takes the right to write from every mapping of a guest frame."""
        frame, changed = self.memory.frames[gfn] << 12, False
        for index in self.writable.pop(gfn, ()):
            entry = self.quads[index]
            if entry & _W and entry & HFN_BITS == frame:
                self.quads[index] = entry & ~_W
                changed = True
        if changed:
            self.machine.flush_tlb()

    def make_executable(self, gfn: int) -> None:
        state = self.memory.state
        if not state[gfn] & EXECUTED:
            state[gfn] |= EXECUTED
            self.protect(gfn)

    def end_execution(self, gfn: int) -> None:
        """The frame will be written: no mapping of it stays executable, and compiled code of it is dropped."""
        frame = self.memory.frames[gfn] << 12
        for index in self.executable.pop(gfn, ()):
            entry = self.quads[index]
            if entry & HFN_BITS == frame:
                self.quads[index] = entry & ~_W | NX
        self.machine.flush_tlb()
        self.host.drop_code(self.memory.frames[gfn])
        self.memory.state[gfn] &= ~(EXECUTED | MIXED)

    def becomes_both(self, gfn: int) -> bool:
        """A user writes a page that he executes: whether that has happened so often that the page becomes both."""
        if not self.memory.state[gfn] & EXECUTED or self.memory.state[gfn] & ~(EXECUTED | MIXED):
            return False
        flips = self.flips[gfn] = self.flips.get(gfn, 0) + 1
        if flips <= _FLIPS:
            return False
        self.end_execution(gfn)  # whatever else maps it must ask again: one mapping alone may be both (erratum 6)
        self.memory.state[gfn] |= EXECUTED
        return True

    def forget_borrowed(self, hfn: int) -> None:
        """Takes away all mappings of a frame that stood in for a device's registers."""
        for index in self.borrowed.pop(hfn, ()):
            if self.quads[index] & HFN_BITS == hfn << 12:
                self.quads[index] = 0
        self.machine.flush_tlb()
