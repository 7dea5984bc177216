"""Nested page tables: guest-physical to host-physical, walked by the CPU below the guest's own tables.

Filled on demand, 2 MiB at a time. RAM leads to the guest's frames, everything else to the machine's bus, where devices answer. No entry is ever
NX: this CPU dies of one that covers a guest page table (erratum 4), and a guest chooses what it uses as such. Knows no guest table.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.machine import BUS, FRAME, Machine, OutOfFrames
from vmm.memory import EXECUTED, GuestMemory
from vmm.x86.bits import Pte

_ALL = Pte.P | Pte.W | Pte.U | Pte.A | Pte.D  # this CPU sets no A and D in nested entries
_READ_ONLY = _ALL & ~Pte.W
_NOBODY = BUS >> 1  # where no device is: stands for all addresses that the bus does not have
_A20 = 1 << 20  # of a guest-physical address
_WIDTH = 48  # bits of guest-physical address that four levels translate


class NestedMmu:
    """The nested tables of one guest. root: their host-physical address. fills: faults that filled entries.

    on_write(gfn): called before a frame of code is opened for writing. lent: device pages that guests read without an exit, by gfn: the frame
    that stands for each until it is written. a20: whether the A20 gate is open; while it is not, every odd MiB is the even one below it.
    """

    def __init__(self, machine: Machine, memory: GuestMemory) -> None:
        self.machine, self.memory, self.quads = machine, memory, machine.quads
        self.fills = 0
        self.on_write: Callable[[int], object] = lambda gfn: True
        self.lent: dict[int, int] = {}
        self.on_bus: set[int] = set()  # ROM that was written and not executed since: the bus answers for it
        self.dirty: set[int] | None = None  # frames written since `watch_writes`; None: nobody watches
        self.touched: set[int] | None = None  # frames accessed since `watch_accesses`; None: nobody watches
        self.a20 = True
        self._filled = False
        self._tables: dict[tuple[int, int], int] = {}  # (level, gpa >> bits below it) -> hfn
        (self._top,) = machine.allocate(1)
        machine.clear(self._top)
        self.root = self._top * FRAME

    @property
    def frames(self) -> frozenset[int]:
        """The frames that hold tables."""
        return frozenset((self._top, *self._tables.values()))

    def fault(self, gpa: int, write: bool) -> None:
        """A nested page fault: makes the entries of the 2 MiB around `gpa`, or opens the page that is written."""
        self.fills += 1
        gpa &= (1 << _WIDTH) - 1 if self.a20 else (1 << _WIDTH) - 1 & ~_A20
        try:
            if gpa >> 12 in self.lent and write:
                self.take_back(gpa >> 12)
            elif (table := self._tables.get((0, gpa >> 21))) is None:
                self._fill(gpa >> 21)
            elif self.touched is not None and not self.quads[(table << 9) + (gpa >> 12 & 511)] & Pte.P:
                self.touched.add(gpa >> 12)
                self._put(table, gpa >> 12, self.memory.frames[gpa >> 12] << 12 | self._rights(gpa >> 12))
            elif write:
                self._written(gpa >> 12)
            else:
                self._fill(gpa >> 21)
        except OutOfFrames:  # a guest that touches addresses all over the place
            self.forget()
            self._fill(gpa >> 21)

    def fill_ram(self) -> None:
        """Makes the entries of all RAM, now and whenever they are dropped: no access to it faults for want of one."""
        self._filled = True
        for region in range((self.memory.count + 511) >> 9):
            self._fill(region)

    def _fill(self, region: int) -> None:
        first = region << 9
        if first < self.memory.count or first | 511 in self.memory.rom or not self.a20 and first < BUS >> 12:
            self._fill_table(region)  # ROM outside RAM ends with the address space
        else:
            place = first << 12 if first < BUS >> 12 else _NOBODY
            self.quads[(self._table(1, region >> 9) << 9) + (region & 511)] = BUS + place | _ALL | Pte.PS

    def _fill_table(self, region: int) -> None:
        """The entries of 512 pages, one by one."""
        quads, memory, first = self.quads, self.memory, region << 9
        at = self._table(0, region) << 9
        for slot, (hfn, uses) in enumerate(zip(memory.frames[first : first + 512], memory.state[first : first + 512], strict=True), at):
            quads[slot] = hfn << 12 | (_READ_ONLY if uses == EXECUTED or self.dirty is not None else _ALL)
        if self.touched is not None:
            for slot in range(at, at + min(512, max(0, memory.count - first))):
                quads[slot] = 0
        for gfn in range(max(first, memory.count), first + 512):
            quads[at + (gfn & 511)] = BUS + (gfn << 12) | _ALL
        for gfn in memory.rom:
            if gfn >> 9 == region:
                quads[at + (gfn & 511)] = self._rom_entry(gfn)
        if not self.a20:
            quads[at + 256 : at + 512] = quads[at : at + 256]

    def _put(self, table: int, gfn: int, entry: int) -> None:
        """Writes one page's entry."""
        slot = (table << 9) + (gfn & 511)
        if self.a20:
            self.quads[slot] = entry
        elif not slot & 256:
            self.quads[slot] = self.quads[slot | 256] = entry

    def set_a20(self, on: bool) -> None:
        """The A20 gate was opened or closed."""
        if on != self.a20:
            self.a20 = on
            self.forget()

    def _rom_entry(self, gfn: int) -> int:
        return BUS + (gfn << 12) | _ALL if gfn in self.on_bus else self.memory.rom[gfn] << 12 | _READ_ONLY

    def refresh(self, gfn: int) -> None:
        """Another frame stands behind `gfn`, or ROM begins or ends there."""
        self.on_bus.discard(gfn)
        if self.touched is not None:
            self.touched.add(gfn)  # its entry comes now, before any access
        table = self._tables.get((0, gfn >> 9))
        if table is not None:
            entry = self._rom_entry(gfn) if gfn in self.memory.rom else self.memory.frames[gfn] << 12 | self._rights(gfn)
            self._put(table, gfn, entry)
            self.machine.flush_tlb()

    def _rights(self, gfn: int) -> int:
        return _READ_ONLY if self.memory.state[gfn] == EXECUTED or self.dirty is not None else _ALL

    def executes_rom(self, gfn: int) -> bool:
        """The CPU found no code at `gfn`: whether that is ROM which it finds from now on."""
        if gfn not in self.on_bus:
            return False
        self.refresh(gfn)
        return True

    def _written(self, gfn: int) -> None:
        """A write to a page that is read-only below."""
        if gfn in self.memory.rom:
            self.on_bus.add(gfn)
            self._put(self._tables[0, gfn >> 9], gfn, self._rom_entry(gfn))
            self.machine.flush_tlb()
            return
        if self.dirty is not None:
            self.dirty.add(gfn)
        self.on_write(gfn)
        self.open(gfn)

    def open(self, gfn: int) -> None:
        """Lets the guest write a frame."""
        table = self._tables.get((0, gfn >> 9))
        if table is not None and gfn not in self.memory.rom:
            self._put(table, gfn, self.quads[(table << 9) + (gfn & 511)] | Pte.W)

    def protect(self, gfn: int) -> None:
        """Has the next write to a frame fault."""
        table = self._tables.get((0, gfn >> 9))
        if table is not None:
            self._put(table, gfn, self.quads[(table << 9) + (gfn & 511)] & ~Pte.W)
            self.machine.flush_tlb()

    def lend(self, gfn: int, hfn: int) -> None:
        """Lets guests read a frame in place of a device's page."""
        table = self._tables.get((0, gfn >> 9))
        if table is None:
            self._fill_table(gfn >> 9)
            table = self._tables[0, gfn >> 9]
        self.lent[gfn] = hfn
        self._put(table, gfn, hfn << 12 | _READ_ONLY)
        self.machine.flush_tlb()

    def take_back(self, gfn: int) -> None:
        """A device's page is the device's again."""
        if self.lent.pop(gfn, None) is not None:
            self._put(self._tables[0, gfn >> 9], gfn, BUS + (gfn << 12) | _ALL)
            self.machine.flush_tlb()

    def forget_borrowed(self, hfn: int) -> None:
        """Takes back the page that a frame stands for."""
        for gfn in [gfn for gfn, lent in self.lent.items() if lent == hfn]:
            self.take_back(gfn)

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

    def watch_writes(self) -> set[int]:
        """Begins a round of watching what the guest writes: returns the frames written since the last one; each page's next write is noticed."""
        written, self.dirty = self.dirty or set(), set()
        self.forget()
        return written

    def watch_accesses(self) -> set[int]:
        """The same for accesses of any kind, of the guest's page walks too: a frame that was not accessed has no entry. Devices and ROM are not told.

        Not where `fill_ram` has promised otherwise.
        """
        assert not self._filled, "no access is to fault"
        touched, self.touched = self.touched or set(), set()
        self.forget()
        return touched

    def end_watches(self) -> None:
        """Nobody watches any more."""
        self.dirty = self.touched = None
        self.forget()

    def forget(self) -> None:
        """Drops all entries: they come back on demand."""
        self.machine.release(list(self._tables.values()))
        self._tables.clear()
        self.lent.clear()
        self.machine.clear(self._top)
        self.machine.flush_tlb()
        if self._filled:
            self.fill_ram()

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
