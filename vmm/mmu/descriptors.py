"""Shadow descriptor tables: what the CPU reads when deprivileged guest code loads a segment register.

Filled on demand like a TLB: entries start absent, the load faults, the guest's descriptor is checked, copied with its
privilege adapted, and its page is write-protected; a write to that page drops the entries until one is filled again, when
those that are unchanged come back. So a load always sees the descriptor that stands in guest memory, and sets its
accessed bit. Gates and system descriptors are never shown to the CPU.

At its own privilege level the CPU cannot check what a guest's kernel may load: descriptors of DPL 0 and 1 look the same to it. So
translated kernel code leaves a load to the CPU only for selectors that were checked and are marked `loadable`.
"""

from __future__ import annotations

from typing import NamedTuple

from vmm.cpu_state import Cpu
from vmm.faults import GuestPageFault
from vmm.machine import Machine
from vmm.memory import DESCRIPTORS, GuestMemory
from vmm.mmu.host import GDT, LDT, USER_GDT, USER_LDT, HostSpace
from vmm.mmu.shadow import ShadowMmu
from vmm.mmu.walk import GuestPaging
from vmm.vcpu import Vcpu
from vmm.x86.descriptors import ACCESSED, CODE, CONFORMING, PRESENT, READABLE, SEGMENT, deprivileged, dpl, with_dpl

_ENTRIES = 8192
_SOFTWARE = 3 << 20  # bits of a segment descriptor that protected mode leaves to software and to 64-bit code
_EMPTY = memoryview(bytes(_ENTRIES * 8)).cast("Q")
_NONE_LOADABLE = bytes(1 << 16)
_NULL_LOADABLE = b"\1" * 4  # null selectors may always be loaded


class _Shown(NamedTuple):
    """A shadow descriptor: the guest's own, where it is, and the shadow made of it."""

    gpa: int
    guest: int
    shadow: int


class ShadowDescriptors:
    """The shadow GDT and LDT of one guest. ring: the CPL of the guest's kernel. With ring 3 user mode has tables of its own.

    loadable, same_code: a byte for each selector, where translated kernel code reads it (bt/window.py).
    """

    def __init__(self, machine: Machine, memory: GuestMemory, paging: GuestPaging, mmu: ShadowMmu, host: HostSpace, vcpu: Vcpu, ring: int) -> None:
        self.machine, self.memory, self.paging, self.mmu, self.vcpu, self.ring = machine, memory, paging, mmu, vcpu, ring
        self.quads, self.base = machine.quads, host.descriptors
        self.shown: dict[int, dict[int, _Shown]] = {}  # gfn of guest descriptors -> the quads indices of their shadows
        self.dropped: dict[int, list[tuple[int, _Shown, bytes, bytes]]] = {}  # the same of a page that was written since, with what was loadable
        self.pages: dict[int, int] = {}  # linear page of shown descriptors -> gfn
        self.loadable, self.same_code = memoryview(bytearray(1 << 16)), memoryview(bytearray(1 << 16))
        self.drop_all()
        self.enter(user=False)

    def use_memory(self, loadable: memoryview, same_code: memoryview) -> None:
        """Keeps `loadable` and `same_code` in two times 64 KiB of memory that translated code can read."""
        loadable[:], same_code[:] = self.loadable, self.same_code
        self.loadable, self.same_code = loadable, same_code

    def enter(self, user: bool) -> None:
        """Points the CPU at the tables of a mode."""
        own = user and self.ring == 3
        state = self.machine.state
        for register, linear in ((Cpu.GDT, USER_GDT if own else GDT), (Cpu.LDT, USER_LDT if own else LDT)):
            state[register + Cpu.BASE] = linear & 0xFFFFFFFF
            state[register + Cpu.BASE + 1] = linear >> 32
            state[register + Cpu.LIMIT] = 0xFFFF
        state[Cpu.LDT] = 8
        state[Cpu.LDT + Cpu.ATTRIBUTES] = 0x8200

    def drop_all(self) -> None:
        """Forgets all entries: after LGDT, LLDT, or a change of the mapping below the tables."""
        for table in range(4):
            at = self.base + table * _ENTRIES
            self.quads[at : at + _ENTRIES] = _EMPTY
        self.loadable[:] = self.same_code[:] = _NONE_LOADABLE
        self.loadable[:4] = _NULL_LOADABLE
        self.shown.clear()
        self.dropped.clear()
        self.pages.clear()

    def verify(self) -> None:
        """Other guest tables are in use: forgets all entries if the descriptors' addresses lead elsewhere now."""
        for page, gfn in self.pages.items():
            try:
                if self.paging.walk(page << 12).gpa >> 12 == gfn:
                    continue
            except GuestPageFault:
                pass
            self.drop_all()
            return

    def drop(self, gfn: int) -> None:
        """A page with descriptors is opened for writing."""
        dropped = self.dropped[gfn] = []
        for index, shown in self.shown.pop(gfn, {}).items():
            self.quads[index] = 0
            at = self._selectors(index)
            dropped.append((index, shown, bytes(self.loadable[at]), bytes(self.same_code[at])))
            self.loadable[at] = self.same_code[at] = _NONE_LOADABLE[: at.stop - at.start]

    def _take_back(self, gfn: int) -> None:
        """A page with descriptors is protected again: those that are as they were may be used as before. Kernels keep them beside other data."""
        for index, shown, loadable, same_code in self.dropped.pop(gfn, ()):
            if self.quads[index] in (0, shown.shadow) and not shown.gpa & 7 and self.memory.read64(shown.gpa) == shown.guest:
                self.quads[index] = shown.shadow
                self.shown[gfn][index] = shown
                at = self._selectors(index)
                self.loadable[at], self.same_code[at] = loadable, same_code

    def _selectors(self, index: int) -> slice:
        """Those of a quads index, in what translated code reads. Users' own tables have none."""
        table, entry = divmod(index - self.base, _ENTRIES)
        selector = entry << 3 | table << 2
        return slice(selector, selector + 4) if table < 2 else slice(0, 0)

    def loaded(self, selector: int) -> None:
        """The guest's kernel has loaded a data segment register with this selector, all checks passed: the CPU may do so from now on."""
        if selector & 0xFFFC:
            self.fill(selector & 0xFFFC, user=False)
        if self.quads[self.base + (_ENTRIES if selector & 4 else 0) + (selector >> 3)]:
            self.loadable[selector] = 1

    def returned(self, selector: int) -> None:
        """The guest's kernel has loaded CS with this selector, all checks passed: until its descriptor is written, doing so again changes nothing."""
        self.fill(selector & 0xFFFC, user=False)
        if self.quads[self.base + (_ENTRIES if selector & 4 else 0) + (selector >> 3)]:
            self.same_code[selector] = 1

    def fill(self, error: int, user: bool) -> bool:
        """A load of a selector faulted with this error code: shows the guest's descriptor to the CPU if a data segment register may have it.

        False: the fault is true, or that of a far transfer to code that cannot be read.
        """
        if error & 3 or not error & ~3:
            return False
        vcpu = self.vcpu
        base, limit = (vcpu.ldt.base, vcpu.ldt.limit) if error & 4 else (vcpu.gdt_base, vcpu.gdt_limit)
        offset = error & 0xFFF8
        if offset + 7 > limit or error & 4 and not vcpu.ldt.selector & ~3:
            return False
        table = (2 if user and self.ring == 3 else 0) + (error >> 2 & 1)
        index = self.base + table * _ENTRIES + (offset >> 3)
        gpa = self.paging.walk(base + offset & 0xFFFFFFFF).gpa
        if gpa & 7 or gpa >> 12 >= self.memory.count:
            low, high = (int.from_bytes(self.memory.read(gpa + n, 4), "little") for n in (0, 4))
        else:
            low, high = self.memory.read32(gpa), self.memory.read32(gpa + 4)
        if not high & SEGMENT or not _loadable(high, 3 if user else 0):
            return False
        shown = deprivileged(high, 0 if user and self.ring == 3 else self.ring)
        if self.mmu.kernel_executes and high & CODE:
            shown = with_dpl(high, dpl(shown)) & ~_SOFTWARE | ACCESSED  # CS is loaded from it, too, where the bits of lost privilege would count
        shadow = low | shown << 32
        if self.quads[index] == shadow:
            return False
        if high & PRESENT and not high & ACCESSED and not gpa & 3:
            self.memory.set_bits(self.paging.walk(base + offset + 4 & 0xFFFFFFFF, write=True).gpa, ACCESSED)
        self.quads[index] = shadow
        self.pages[base + offset >> 12 & 0xFFFFF] = gpa >> 12
        for gfn in {gpa >> 12, gpa + 7 >> 12}:
            if gfn < self.memory.count:
                self.shown.setdefault(gfn, {})[index] = _Shown(gpa, self.memory.read64(gpa), shadow)
                if not self.memory.state[gfn] & DESCRIPTORS:
                    self.memory.state[gfn] |= DESCRIPTORS
                    self.mmu.reverse.protect(gfn)
                    self._take_back(gfn)
        return True


def _loadable(high: int, cpl: int) -> bool:
    """Whether a descriptor passes a load's checks, those of RPL aside: its accessed bit is set for no other (SDM 2B "MOV")."""
    if high & CODE and not high & READABLE:
        return False
    return bool(high & CODE and high & CONFORMING) or dpl(high) >= cpl
