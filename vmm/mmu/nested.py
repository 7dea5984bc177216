"""Nested page tables: guest-physical to host-physical, walked by the CPU below the guest's own tables.

Filled on demand, 2 MiB at a time. RAM leads to the guest's frames, everything else to the machine's bus, where devices answer. No entry is ever
NX: this CPU dies of one that covers a guest page table (erratum 4), and a guest chooses what it uses as such. Knows no guest table.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.machine import BUS, FRAME, Machine, OutOfFrames
from vmm.memory import GuestMemory
from vmm.x86.bits import Pte

_ALL = Pte.P | Pte.W | Pte.U | Pte.A | Pte.D  # this CPU sets no A and D in nested entries
_NOBODY = BUS >> 1  # where no device is: stands for all addresses that the bus does not have
_WIDTH = 48  # bits of guest-physical address that four levels translate


class NestedMmu:
    """The nested tables of one guest. root: their host-physical address. fills: faults that filled entries."""

    def __init__(self, machine: Machine, memory: GuestMemory) -> None:
        self.machine, self.memory, self.quads = machine, memory, machine.quads
        self.fills = 0
        self._tables: dict[tuple[int, int], int] = {}  # (level, gpa >> bits below it) -> hfn
        (self._top,) = machine.allocate(1)
        machine.clear(self._top)
        self.root = self._top * FRAME
        self.dirty: set[int] | None = None  # frames written since `watch_writes`; None: nobody watches

    def fault(self, gpa: int, write: bool) -> None:
        """A nested page fault: makes the entries of the 2 MiB around `gpa`, or, while writes are watched, opens one page."""
        self.fills += 1
        try:
            self._fill(gpa & (1 << _WIDTH) - 1, write)
        except OutOfFrames:  # a guest that touches addresses all over the place
            self.forget()
            self._fill(gpa & (1 << _WIDTH) - 1, write)

    def _fill(self, gpa: int, write: bool) -> None:
        region, gfn, count = gpa >> 21, gpa >> 12, self.memory.count
        first = region << 9
        if first >= count:
            place = first << 12 if first < BUS >> 12 else _NOBODY
            self.quads[(self._table(1, region >> 9) << 9) + (region & 511)] = BUS + place | _ALL | Pte.PS
            return
        table = self._tables.get((0, region))
        if table is None:
            rights = _ALL if self.dirty is None else _ALL & ~Pte.W
            table = self._table(0, region)
            frames = self.memory.frames[first : first + 512]
            for slot, hfn in enumerate(frames, table << 9):
                self.quads[slot] = hfn << 12 | rights
            for slot in range(len(frames), 512):
                self.quads[(table << 9) + slot] = BUS + (first + slot << 12) | _ALL
        if write and gfn < count and self.dirty is not None:
            self.dirty.add(gfn)
            self.quads[(table << 9) + (gfn & 511)] |= Pte.W

    def _table(self, level: int, index: int) -> int:
        """The table of `level` (0: the lowest) for an address, made and linked when there is none."""
        if level == 3:
            return self._top
        hfn = self._tables.get((level, index))
        if hfn is None:
            above = self._table(level + 1, index >> 9)
            (hfn,) = self.machine.allocate(1)
            self.machine.clear(hfn)
            self._tables[level, index] = hfn
            self.quads[(above << 9) + (index & 511)] = hfn << 12 | _ALL
        return hfn

    @property
    def frames(self) -> frozenset[int]:
        """The frames that hold tables."""
        return frozenset((self._top, *self._tables.values()))

    def watch_writes(self) -> set[int]:
        """Begins a round of watching: returns the frames written since the last one; from now on each page's first write is noticed."""
        written, self.dirty = self.dirty or set(), set()
        self.forget()
        return written

    def forget(self) -> None:
        """Drops all entries: they come back on demand."""
        self.machine.release(list(self._tables.values()))
        self._tables.clear()
        self.machine.clear(self._top)
        self.machine.flush_tlb()

    # -- what emulated instructions ask for: the guest's own tables are the CPU's business -----------------------------------------------

    def load(self, user: bool) -> None:
        """The CPU has loaded the control register."""

    def drop_roots(self) -> None:
        """Nothing is derived from the guest's tables."""

    def invalidate(self, gva: int) -> None:
        """INVLPG."""
        self.machine.flush_tlb()

    def map_scratch(self, gva: int, hfn: int, user: bool) -> Callable[[], None]:
        """Device memory is reached over the machine's bus: no instruction needs another page in its place."""
        raise AssertionError("no instruction is stepped under nested paging")
