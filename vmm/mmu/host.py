"""The host's own half of the linear address space: above 4 GiB, out of reach of 32-bit guests, the same under every root.

Holds the shadow descriptor tables and the scratch mappings through which compiled code of a frame is dropped. Knows no guest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vmm.cpu_state import Cpu
from vmm.machine import FRAME, Machine

TABLE_ENTRY = 0x27  # P W U A: rights are the leaves' business
LEAF = 0x63  # P W A D, supervisor
NX = 1 << 63

BASE = 1 << 39  # the second entry of the top-level table
# No multiple of 64 pages from the window's first page: the CPU's TLB would hold one or the other, and loads of segments need both (72 ns, not 35).
_FIRST_PAGE = 0x14
GDT, LDT, USER_GDT, USER_LDT = (BASE + _FIRST_PAGE * FRAME + n * 0x10000 for n in range(4))
SCRATCH = BASE + 0x200000
DESCRIPTOR_PAGES = 64
_SCRATCH_PAGES = 512


class Host(Protocol):
    """What shadow tables need of the VMM's own address space. top_entry: its entry in the top-level tables, or 0."""

    top_entry: int

    @property
    def drop_code(self) -> Callable[[int], None]:
        """Drops what the engine compiled from a frame."""
        ...


class HostSpace:
    """The shared tables. `top_entry` goes into entry 1 of every top-level table.

    descriptors: index into `machine.quads` of what lies at GDT: four shadow tables of 8,192 descriptors each.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        quads = machine.quads
        pointers = machine.allocate_run(4 + DESCRIPTOR_PAGES)
        directory, descriptors, scratch = pointers + 1, pointers + 2, pointers + 3
        tables = pointers + 4
        self.top_entry = pointers * FRAME | TABLE_ENTRY
        quads[pointers * 512] = directory * FRAME | TABLE_ENTRY
        quads[directory * 512] = descriptors * FRAME | TABLE_ENTRY
        quads[directory * 512 + 1] = scratch * FRAME | TABLE_ENTRY
        for page in range(DESCRIPTOR_PAGES):
            quads[descriptors * 512 + _FIRST_PAGE + page] = (tables + page) * FRAME | LEAF | NX
        self.descriptors = tables * 512
        self._descriptor_pages = descriptors * 512 + _FIRST_PAGE
        self._scratch, self._next = scratch * 512, 0

    def show_descriptors(self, page: int, hfn: int | None) -> None:
        """Puts a frame, or nothing, in the place of page `page` of the tables at GDT. The TLB is not flushed."""
        self.machine.quads[self._descriptor_pages + page] = 0 if hfn is None else hfn * FRAME | LEAF | NX

    def drop_code(self, hfn: int) -> None:
        """Drops what the engine compiled from a frame.

        The engine looks the frame up by a linear address as a fetch at the current privilege (erratum 6): so through a scratch
        page of that privilege, a new one each time, since its TLB may know the old ones.
        """
        machine = self.machine
        if self._next == _SCRATCH_PAGES:
            self._next = 0
            machine.flush_tlb()
        user = 4 if machine.state[Cpu.HFLAGS] & 3 == 3 else 0
        machine.quads[self._scratch + self._next] = hfn << 12 | 0x61 | user
        machine.drop_code(SCRATCH + self._next * FRAME, FRAME)
        self._next += 1
