"""Where each frame is mapped, and with which rights: so that a right can be taken back from every mapping at once.

Keeps W^X per physical page: stores to a page that is writable and executable are slow on this CPU, and code on it goes stale
through other mappings (errata 5, 6). A page that one mapping keeps writing and executing in turn becomes both, there alone.
Knows leaf entries and the uses of frames; knows no guest table.
"""

from __future__ import annotations

from array import array

from vmm.machine import Machine
from vmm.memory import EXECUTED, MIXED, GuestMemory
from vmm.mmu.host import NX, Host
from vmm.x86.bits import Pte

HFN_BITS = 0x000FFFFFFFFFF000  # the frame in an entry
_W = Pte.W
_PLACES = 16  # remembered places of one frame before they are looked through
_FLIPS = 4  # times that a page may change between written and executed before it becomes both


class ReverseMap:
    """The mappings of one guest's frames. An entry is remembered by its index into `machine.quads`; it may have changed since."""

    def __init__(self, machine: Machine, memory: GuestMemory, host: Host) -> None:
        self.machine, self.memory, self.host, self.quads = machine, memory, host, machine.quads
        self.clear()

    def clear(self) -> None:
        """Forgets everything: no entry is left."""
        self.writable = array("I", bytes(4 * self.memory.count))  # by gfn: an entry that maps it writable; 0: none
        self.writable_too: dict[int, list[int]] = {}  # the others, where there are several
        self.executable: dict[int, list[int]] = {}
        self.borrowed: dict[int, list[int]] = {}  # hfn outside guest memory -> entries that map it read-only
        self.flips: dict[int, int] = {}

    def add(self, gfn: int, entry: int, index: int) -> None:
        """Remembers where a guest frame is mapped writable or executable, so that the right can be taken back."""
        if entry & _W:
            first = self.writable[gfn]
            if first in (0, index) or not self._maps(first, gfn, _W):
                self.writable[gfn] = index
            else:
                self._add_to(self.writable_too, gfn, index, _W)
        if not entry & NX:
            self._add_to(self.executable, gfn, index, 0)

    def _maps(self, index: int, gfn: int, right: int) -> bool:
        """Whether an entry still maps a guest frame, with a right."""
        entry = self.quads[index]
        return entry & right == right and entry & HFN_BITS == self.memory.frames[gfn] << 12

    def _add_to(self, places: dict[int, list[int]], gfn: int, index: int, right: int) -> None:
        known = places.setdefault(gfn, [])
        known.append(index)
        if len(known) % _PLACES == 0:
            places[gfn] = [place for place in dict.fromkeys(known) if self._maps(place, gfn, right)]

    def protect(self, gfn: int) -> None:
        """Takes the right to write from every mapping of a guest frame."""
        changed = False
        for index in (self.writable[gfn], *self.writable_too.pop(gfn, ())):
            if index and self._maps(index, gfn, _W):
                self.quads[index] &= ~_W
                changed = True
        self.writable[gfn] = 0
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
