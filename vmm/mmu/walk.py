"""The walk of the guest's own page tables: gva to gpa, with the guest's permissions, accessed and dirty bits.

Does what a CPU's page walker does (SDM 3A 4.3 "32-Bit Paging", 4.4 "PAE Paging", 4.6 "Access Rights", 4.8 "Accessed and Dirty
Flags"), for paging off and for the four levels of long mode as well (4.5). Knows no shadow.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmm.faults import GuestFault, GuestPageFault
from vmm.memory import GuestMemory
from vmm.x86.bits import Cr0, Cr4, Efer, Fault, Pte, Vector

PHYSICAL_BITS = 36  # MAXPHYADDR, as CPUID tells the guest
_PAE_RESERVED = (1 << 63) - (1 << PHYSICAL_BITS)  # in every PAE entry; bit 63 is NX or reserved
PDPTE_RESERVED = ((1 << 64) - (1 << PHYSICAL_BITS)) | 0x1E6
_PSE_RESERVED = 1 << 21
_LARGE_PAE_RESERVED = 0x1FE000
_HUGE_RESERVED = 0x3FFFE000
_ADDRESS = 0xF_FFFF_FFFF_F000  # in an entry
_IGNORED = 0x7FF << 52  # in an entry of long mode; reserved under PAE


@dataclass(slots=True)
class Mapping:
    """What a walk found for one page.

    gpa: of the byte asked for. user, writable, executable: the rights over all levels, CR0.WP aside. dirty: the leaf's D
    bit. table: gpa of the lowest table that was used. large: bytes mapped by the leaf if it is a large page, else 0.
    """

    gpa: int
    user: bool
    writable: bool
    executable: bool
    dirty: bool
    table: int
    large: int = 0
    directory: int = 0  # the upper entry's value, for what is cached below it


class _Unmarked(Exception):
    """A look found an accessed bit that is clear."""


class GuestPaging:
    """The paging state of one virtual CPU and the walk under it. `load` must be called when a control register changes.

    mask: the bits of a linear address that count.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.enabled = self.pae = self.pse = self.write_protect = self.no_execute = self.long = False
        self.mask = 0xFFFFFFFF
        self.cr3 = 0
        self.pdptes = [0, 0, 0, 0]
        self.reserved = _PAE_RESERVED | Pte.NX  # bits that must be 0 in a PAE entry
        self._only_looking = False
        self._kept: tuple[dict[int, int], dict[int, int]] = {}, {}  # page -> gpa of it, for the supervisor's reads and writes

    def load(self, cr0: int, cr3: int, cr4: int, efer: int, *, reload_pdptes: bool = False) -> bool:
        """Takes over the control registers; with reload_pdptes latches PAE's four. False, and nothing changed: those have reserved bits set."""
        self.forget()
        enabled, pae = bool(cr0 & Cr0.PG), bool(cr4 & Cr4.PAE)
        long = enabled and bool(efer & Efer.LME)
        if enabled and pae and not long and (reload_pdptes or not (self.enabled and self.pae)):
            entries = [self.memory.read64((cr3 & 0xFFFFFFE0) + 8 * n) for n in range(4)]
            if any(entry & Pte.P and entry & PDPTE_RESERVED for entry in entries):
                return False
            self.pdptes = entries
        self.enabled, self.pae, self.pse, self.long = enabled, pae, bool(cr4 & Cr4.PSE), long
        self.mask = 0xFFFF_FFFF_FFFF_FFFF if long else 0xFFFFFFFF
        self.write_protect, self.no_execute, self.cr3 = bool(cr0 & Cr0.WP), pae and bool(efer & Efer.NXE), cr3
        self.reserved = _PAE_RESERVED if self.no_execute else _PAE_RESERVED | Pte.NX
        return True

    def restore(self, cr0: int, cr3: int, cr4: int, efer: int, pdptes: list[int]) -> None:
        """Takes over control registers with the pointers that PAE had latched, whatever stands in memory."""
        self.enabled = self.pae = True
        self.pdptes = list(pdptes)
        self.load(cr0, cr3, cr4, efer)

    def forget(self) -> None:
        """Forgets the translations that `supervisor` keeps, as INVLPG and a load of CR3 make a TLB do."""
        for pages in self._kept:
            pages.clear()

    def supervisor(self, gva: int, write: bool) -> int:
        """gpa for a read or write with the supervisor's rights, out of what a TLB would hold. Raises GuestPageFault."""
        pages = self._kept[write]
        page = pages.get(gva >> 12)
        if page is None:
            page = pages[gva >> 12] = self.walk(gva, write).gpa & ~0xFFF
        return page | gva & 0xFFF

    def trail(self, gva: int) -> list[int]:
        """gpas of the entries that a walk of `gva`, which is mapped, reads from memory, the uppermost first."""
        if not self.enabled:
            return []
        shift, width = (39 if self.long else 30, 8) if self.pae else (22, 4)
        table, passed = self.cr3 & (_ADDRESS if self.long or not self.pae else ~0x1F), []
        while True:
            at = table + width * (gva >> shift & (511 if width == 8 else 1023))
            passed.append(at)
            entry = self.memory.read64(at) if width == 8 else self.memory.read32(at)
            if shift == 12 or entry & Pte.PS and (shift < 30 or self.long and shift == 30) and (self.pae or self.pse):
                return passed
            table, shift = entry & _ADDRESS, shift - (9 if width == 8 else 10)

    def walk(self, gva: int, write: bool = False, user: bool = False, fetch: bool = False) -> Mapping:
        """Translates `gva` for one access, setting A (and D for a write) in the guest's tables. Raises GuestPageFault.

        In long mode an address that is not canonical is #GP(0).
        """
        if not self.enabled:
            return Mapping(gva, True, True, True, True, 0)
        if self.long:
            return self._walk_long(gva, write, user, fetch)
        return self._walk_pae(gva, write, user, fetch) if self.pae else self._walk_32(gva, write, user, fetch)

    def _walk_32(self, gva: int, write: bool, user: bool, fetch: bool) -> Mapping:
        memory = self.memory
        pde_gpa = (self.cr3 & 0xFFFFF000) + (gva >> 20 & 0xFFC)
        pde = memory.read32(pde_gpa)
        if not pde & Pte.P:
            raise GuestPageFault(gva, self._error(0, write, user, fetch))
        if pde & Pte.PS and self.pse:
            if pde & _PSE_RESERVED:
                raise GuestPageFault(gva, self._error(Fault.P | Fault.RSVD, write, user, fetch))
            rights, entry, entry_gpa = pde, pde, pde_gpa
            gpa = (pde & 0xFFC00000 | (pde & 0x1FE000) << 19) + (gva & 0x3FFFFF)
            table, large = pde_gpa & ~0xFFF, 0x400000
        else:
            entry_gpa = (pde & 0xFFFFF000) + (gva >> 10 & 0xFFC)
            entry = memory.read32(entry_gpa)
            if not entry & Pte.P:
                raise GuestPageFault(gva, self._error(0, write, user, fetch))
            rights = pde & entry
            gpa = entry & 0xFFFFF000 | gva & 0xFFF
            table, large = pde & 0xFFFFF000, 0
        self._check(rights, gva, write, user, fetch)
        dirty = self._mark(pde_gpa, pde, entry_gpa, entry, write)
        return Mapping(gpa, bool(rights & Pte.U), bool(rights & Pte.W), True, dirty, table, large, pde)

    def _walk_pae(self, gva: int, write: bool, user: bool, fetch: bool) -> Mapping:
        memory = self.memory
        pdpte = self.pdptes[gva >> 30]
        if not pdpte & Pte.P:
            raise GuestPageFault(gva, self._error(0, write, user, fetch))
        reserved = self.reserved
        pde_gpa = (pdpte & 0xFFFFFFFFFF000) + (gva >> 18 & 0xFF8)
        pde = memory.read64(pde_gpa)
        if not pde & Pte.P:
            raise GuestPageFault(gva, self._error(0, write, user, fetch))
        large = 0x200000 if pde & Pte.PS else 0
        if pde & (reserved | _LARGE_PAE_RESERVED if large else reserved):
            raise GuestPageFault(gva, self._error(Fault.P | Fault.RSVD, write, user, fetch))
        if large:
            entry, entry_gpa, executable, rights = pde, pde_gpa, not pde & Pte.NX, pde
            gpa, table = (pde & 0xFFFFFFFE00000) + (gva & 0x1FFFFF), pde_gpa & ~0xFFF
        else:
            entry_gpa = (pde & 0xFFFFFFFFFF000) + (gva >> 9 & 0xFF8)
            entry = memory.read64(entry_gpa)
            if not entry & Pte.P:
                raise GuestPageFault(gva, self._error(0, write, user, fetch))
            if entry & reserved:
                raise GuestPageFault(gva, self._error(Fault.P | Fault.RSVD, write, user, fetch))
            executable, rights = not (pde | entry) & Pte.NX, pde & entry
            gpa, table = entry & 0xFFFFFFFFFF000 | gva & 0xFFF, pde & 0xFFFFFFFFFF000
        if fetch and not executable:
            raise GuestPageFault(gva, self._error(Fault.P, write, user, fetch))
        self._check(rights, gva, write, user, fetch)
        dirty = self._mark(pde_gpa, pde, entry_gpa, entry, write)
        return Mapping(gpa, bool(rights & Pte.U), bool(rights & Pte.W), executable, dirty, table, large, pde)

    def _walk_long(self, gva: int, write: bool, user: bool, fetch: bool) -> Mapping:
        if gva + (1 << 47) >> 48 & 0xFFFF:
            raise GuestFault(Vector.GP, 0)
        memory, reserved = self.memory, self.reserved & ~_IGNORED
        table, shift, rights, executable, above = self.cr3 & _ADDRESS, 39, Pte.W | Pte.U, True, 0
        passed: list[tuple[int, int]] = []  # entries above the leaf: where each is, and its value
        while True:
            entry_gpa = table + (gva >> shift - 3 & 0xFF8)
            entry = memory.read64(entry_gpa)
            if not entry & Pte.P:
                raise GuestPageFault(gva, self._error(0, write, user, fetch))
            large = 1 << shift if entry & Pte.PS and shift > 12 else 0
            if large:
                reserved |= {21: _LARGE_PAE_RESERVED, 30: _HUGE_RESERVED}.get(shift, Pte.PS)
            if entry & reserved:
                raise GuestPageFault(gva, self._error(Fault.P | Fault.RSVD, write, user, fetch))
            rights &= entry
            executable = executable and not entry & Pte.NX
            if large or shift == 12:
                break
            passed.append((entry_gpa, entry))
            table, above, shift = entry & _ADDRESS, entry, shift - 9
        if fetch and not executable:
            raise GuestPageFault(gva, self._error(Fault.P, write, user, fetch))
        self._check(rights, gva, write, user, fetch)
        for at, value in passed:
            if not value & Pte.A:
                memory.set_bits(at, Pte.A)
        dirty = self._mark(entry_gpa, entry, entry_gpa, entry, write)
        offset = (1 << shift) - 1
        gpa = entry & _ADDRESS & ~offset | gva & offset
        return Mapping(gpa, bool(rights & Pte.U), bool(rights & Pte.W), executable, dirty, table, large, above)

    def look(self, gva: int, user: bool) -> Mapping | None:
        """The walk of a fetch that sets no bit: None where it would fault, and where it would have to set one."""
        self._only_looking = True
        try:
            return self.walk(gva, False, user, True)
        except (GuestPageFault, _Unmarked):
            return None
        finally:
            self._only_looking = False

    def _mark(self, pde_gpa: int, pde: int, entry_gpa: int, entry: int, write: bool) -> bool:
        """Sets A in both entries (one and the same for a large page), and D in the leaf for a write; returns the leaf's D."""
        if self._only_looking and not pde & entry & Pte.A:
            raise _Unmarked
        if entry_gpa != pde_gpa and not pde & Pte.A:
            self.memory.set_bits(pde_gpa, Pte.A)
        wanted = Pte.A | Pte.D if write else Pte.A
        if entry & wanted != wanted:
            self.memory.set_bits(entry_gpa, wanted)
        return write or bool(entry & Pte.D)

    def _check(self, rights: int, gva: int, write: bool, user: bool, fetch: bool) -> None:
        if user and not rights & Pte.U or write and not rights & Pte.W and (user or self.write_protect):
            raise GuestPageFault(gva, self._error(Fault.P, write, user, fetch))

    def _error(self, cause: int, write: bool, user: bool, fetch: bool) -> int:
        """The error code; its I bit exists only where NX does (SDM 3A 4.7)."""
        return cause | (Fault.W if write else 0) | (Fault.U if user else 0) | (Fault.I if fetch and self.no_execute else 0)
