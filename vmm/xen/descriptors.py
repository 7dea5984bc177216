"""Descriptor tables of a Xen guest: its own pages, validated, which the CPU reads as they are.

A page of descriptors has a type (`Kind.DESCRIPTORS`), so the guest cannot write it but through `update`. The VMM's own selectors lie in the GDT's
page 14 and stay. LDT pages are taken when they are first used. Call gates stay in the table for the VMM's eyes only: a long-mode CPU raises #GP
for them, and they are emulated.
"""

from __future__ import annotations

from typing import Final

from vmm.cpu_state import Cpu
from vmm.faults import GuestPageFault
from vmm.machine import FRAME, Machine
from vmm.mmu.direct import DirectMmu
from vmm.mmu.frames import Errno, Frames, Kind, Refused
from vmm.mmu.host import GDT, LDT, HostSpace
from vmm.x86.descriptors import CALL_GATE, CODE, PRESENT, SEGMENT, dpl, system_type

KERNEL_CODE, KERNEL_DATA, USER_CODE, USER_DATA = 0xE019, 0xE021, 0xE02B, 0xE033
GDT_PAGES: Final = 14
_LDT_FIRST, _LDT_PAGES = 16, 16  # pages of the host's table behind the GDT's
_ENTRIES = FRAME // 8
_FLAT_CODE, _FLAT_DATA = 0x00CF9B00_0000FFFF, 0x00CF9300_0000FFFF
_LONG = 1 << 21
_KERNEL_LEVEL = 1 << 13


def checked(descriptor: int) -> int:
    """A descriptor as it may stand in a table: none for the VMM's level. Raises Refused for one that a guest may not have."""
    high = descriptor >> 32
    if not high & PRESENT:
        return descriptor
    if not dpl(high):
        high |= _KERNEL_LEVEL
    kind = system_type(high)
    if high & SEGMENT:
        if high & CODE and high & _LONG:
            raise Refused(Errno.INVAL, "a 64-bit code segment")
    elif kind == CALL_GATE:
        target = descriptor >> 16 & 0xFFFC
        if not target or target >= GDT_PAGES * FRAME and target not in (KERNEL_CODE & ~3, USER_CODE & ~3):
            raise Refused(Errno.INVAL, "a call gate to the VMM's segments")
    elif kind:
        raise Refused(Errno.INVAL, "a system descriptor")
    return descriptor & 0xFFFFFFFF | high << 32


class XenDescriptors:
    """The GDT and LDT of one guest."""

    def __init__(self, machine: Machine, frames: Frames, mmu: DirectMmu, host: HostSpace) -> None:
        self.machine, self.frames, self.mmu, self.host, self.quads = machine, frames, mmu, host, machine.quads
        self.gdt: list[int] = []  # frames of the guest's GDT
        self.ldt_base, self.ldt_count = 0, 0
        self.ldt: dict[int, int] = {}  # page of the LDT -> frame
        frames.reclaim = self._reclaim
        own = host.descriptors + GDT_PAGES * _ENTRIES
        for selector, descriptor in ((KERNEL_CODE, _FLAT_CODE), (KERNEL_DATA, _FLAT_DATA), (USER_CODE, _FLAT_CODE), (USER_DATA, _FLAT_DATA)):
            self.quads[own + (selector >> 3) % _ENTRIES] = descriptor | (selector & 3) << 45
        for page in range(_LDT_PAGES):
            host.show_descriptors(_LDT_FIRST + page, None)

    def drop_all(self) -> None:
        """Nothing is derived from the tables."""

    def loaded(self, selector: int) -> None:
        """The CPU loads its segment registers itself."""

    def returned(self, selector: int) -> None:
        """IRET is the CPU's own."""

    def enter(self) -> None:
        """Points the CPU at the tables."""
        state = self.machine.state
        for register, linear, limit in ((Cpu.GDT, GDT, 0xFFFF), (Cpu.LDT, LDT, 0)):
            state[register + Cpu.BASE], state[register + Cpu.BASE + 1] = linear & 0xFFFFFFFF, linear >> 32
            state[register + Cpu.LIMIT] = limit
        state[Cpu.LDT] = 0

    def set_gdt(self, mfns: list[int]) -> None:
        """Loads another GDT. Raises Refused, and then the old one stays."""
        taken: list[int] = []
        try:
            for mfn in mfns:
                self._hold(mfn)
                taken.append(mfn)
        except Refused:
            for mfn in taken:
                self.frames.drop_type(mfn)
            raise
        old, self.gdt = self.gdt, mfns
        for page in range(GDT_PAGES):
            self.host.show_descriptors(page, mfns[page] if page < len(mfns) else self.host.descriptors // _ENTRIES + page)
        self.machine.flush_tlb()
        for mfn in old:
            self.frames.drop_type(mfn)

    def set_ldt(self, base: int, count: int) -> None:
        """Loads another LDT, page-aligned; 0 entries for none. Raises Refused."""
        if base & 0xFFF or count > 8192:
            raise Refused(Errno.INVAL, "an LDT that is not page-aligned or too large")
        self._empty_ldt()
        self.ldt_base, self.ldt_count = base, count
        state = self.machine.state
        state[Cpu.LDT], state[Cpu.LDT + Cpu.ATTRIBUTES] = (8, 0x8200) if count else (0, 0)
        state[Cpu.LDT + Cpu.LIMIT] = max(0, 8 * count - 1)

    def ldt_fault(self, linear: int) -> None:
        """The CPU missed a page of the LDT (linear address in the host's half): shows the guest's. Raises GuestPageFault where it has none."""
        page = linear - LDT >> 12
        gva = self.ldt_base + (linear - LDT) & 0xFFFFFFFF
        at = self.mmu.translate(gva)
        try:
            self._hold(at >> 12)
        except Refused:
            raise GuestPageFault(gva, 1) from None
        self.ldt[page] = at >> 12
        self.host.show_descriptors(_LDT_FIRST + page, at >> 12)

    def update(self, address: int, descriptor: int) -> None:
        """Writes one descriptor at a machine address. Raises Refused."""
        mfn, frames = address >> 12, self.frames
        if mfn >= frames.count or not frames.owned[mfn]:
            raise Refused(Errno.PERM, "a frame that is not the guest's")
        if address & 7:
            raise Refused(Errno.INVAL, "a descriptor across its place")
        value = checked(descriptor)
        if frames.typed[mfn] and frames.kind[mfn] not in (Kind.WRITABLE, Kind.DESCRIPTORS):
            raise Refused(Errno.INVAL, "a descriptor in a page table")
        self.quads[address >> 3] = value
        self.mmu.written(mfn)

    def descriptor(self, selector: int) -> int:
        """The descriptor behind a selector, 0 for none."""
        index = selector >> 3
        page = index // _ENTRIES
        if selector & 4:
            if index >= self.ldt_count:
                return 0
            frame = self.ldt.get(page)
            if frame is None:
                try:
                    self.ldt_fault(LDT + (index << 3))
                except GuestPageFault:
                    return 0
                frame = self.ldt[page]
        elif page < len(self.gdt):
            frame = self.gdt[page]
        else:
            return self.quads[self.host.descriptors + index]
        return self.quads[frame * _ENTRIES + index % _ENTRIES]

    def _hold(self, mfn: int) -> None:
        """A reference to a page of descriptors, checked by the first. Raises Refused."""
        if not self.frames.take_type(mfn, Kind.DESCRIPTORS):
            return
        at = mfn * _ENTRIES
        try:
            for n, descriptor in enumerate(self.quads[at : at + _ENTRIES].tolist()):
                if descriptor:
                    self.quads[at + n] = checked(descriptor)
        except Refused:
            self.frames.drop_type(mfn)
            raise

    def _empty_ldt(self) -> None:
        for page, mfn in self.ldt.items():
            self.host.show_descriptors(_LDT_FIRST + page, None)
            self.frames.drop_type(mfn)
        if self.ldt:
            self.machine.flush_tlb()
        self.ldt.clear()

    def _reclaim(self, mfn: int) -> None:
        """The guest wants a page that is only shown as part of the LDT for something else: it is shown again when it is used again."""
        if mfn in self.ldt.values():
            self._empty_ldt()
