"""The virtual-machine control structure: what a VMM asks of the CPU, and what the CPU tells it, in VT-x's words.

Names, encodings, bits and checks are those of the manual: SDM 3C 25 "Virtual-Machine Control Structures", 27 "VM Entries", 28 "VM Exits",
appendix B "Field Encoding in VMCS", appendix C "VMX Basic Exit Reasons". Only fields that this machine honours exist. Knows no silicon.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from vmm.x86.bits import Cr0, Cr4, Efer, Flag


class Field(IntEnum):
    """Encodings of the fields that are honoured."""

    GUEST_ES_SELECTOR, GUEST_CS_SELECTOR, GUEST_SS_SELECTOR, GUEST_DS_SELECTOR = 0x800, 0x802, 0x804, 0x806
    GUEST_FS_SELECTOR, GUEST_GS_SELECTOR, GUEST_LDTR_SELECTOR, GUEST_TR_SELECTOR = 0x808, 0x80A, 0x80C, 0x80E
    IO_BITMAP_A, IO_BITMAP_B, MSR_BITMAP, EPT_POINTER = 0x2000, 0x2002, 0x2004, 0x201A
    GUEST_PHYSICAL_ADDRESS = 0x2400
    VMCS_LINK_POINTER, GUEST_IA32_EFER, HOST_IA32_EFER = 0x2800, 0x2806, 0x2C02
    PIN_BASED_CONTROLS, PRIMARY_CONTROLS, EXCEPTION_BITMAP = 0x4000, 0x4002, 0x4004
    VM_EXIT_CONTROLS, VM_ENTRY_CONTROLS = 0x400C, 0x4012
    ENTRY_INTERRUPTION_INFO, ENTRY_EXCEPTION_ERROR_CODE, ENTRY_INSTRUCTION_LENGTH = 0x4016, 0x4018, 0x401A
    SECONDARY_CONTROLS = 0x401E
    EXIT_REASON, EXIT_INTERRUPTION_INFO, EXIT_INTERRUPTION_ERROR_CODE = 0x4402, 0x4404, 0x4406
    GUEST_ES_LIMIT, GUEST_CS_LIMIT, GUEST_SS_LIMIT, GUEST_DS_LIMIT = 0x4800, 0x4802, 0x4804, 0x4806
    GUEST_FS_LIMIT, GUEST_GS_LIMIT, GUEST_LDTR_LIMIT, GUEST_TR_LIMIT = 0x4808, 0x480A, 0x480C, 0x480E
    GUEST_GDTR_LIMIT, GUEST_IDTR_LIMIT = 0x4810, 0x4812
    GUEST_ES_ACCESS_RIGHTS, GUEST_CS_ACCESS_RIGHTS, GUEST_SS_ACCESS_RIGHTS, GUEST_DS_ACCESS_RIGHTS = 0x4814, 0x4816, 0x4818, 0x481A
    GUEST_FS_ACCESS_RIGHTS, GUEST_GS_ACCESS_RIGHTS, GUEST_LDTR_ACCESS_RIGHTS, GUEST_TR_ACCESS_RIGHTS = 0x481C, 0x481E, 0x4820, 0x4822
    GUEST_INTERRUPTIBILITY_STATE, GUEST_ACTIVITY_STATE = 0x4824, 0x4826
    CR0_MASK, CR4_MASK, CR0_READ_SHADOW, CR4_READ_SHADOW = 0x6000, 0x6002, 0x6004, 0x6006
    EXIT_QUALIFICATION = 0x6400
    GUEST_CR0, GUEST_CR3, GUEST_CR4 = 0x6800, 0x6802, 0x6804
    GUEST_ES_BASE, GUEST_CS_BASE, GUEST_SS_BASE, GUEST_DS_BASE = 0x6806, 0x6808, 0x680A, 0x680C
    GUEST_FS_BASE, GUEST_GS_BASE, GUEST_LDTR_BASE, GUEST_TR_BASE = 0x680E, 0x6810, 0x6812, 0x6814
    GUEST_GDTR_BASE, GUEST_IDTR_BASE = 0x6816, 0x6818
    GUEST_DR7, GUEST_RSP, GUEST_RIP, GUEST_RFLAGS = 0x681A, 0x681C, 0x681E, 0x6820
    HOST_CR0, HOST_CR3, HOST_CR4 = 0x6C00, 0x6C02, 0x6C04


class Pin(IntFlag):
    """Pin-based VM-execution controls (25.6.1)."""

    EXTERNAL_INTERRUPT_EXITING, NMI_EXITING = 1 << 0, 1 << 3


class Primary(IntFlag):
    """Primary processor-based VM-execution controls (25.6.2)."""

    INTERRUPT_WINDOW_EXITING, HLT_EXITING, INVLPG_EXITING, MWAIT_EXITING = 1 << 2, 1 << 7, 1 << 9, 1 << 10
    RDPMC_EXITING, RDTSC_EXITING, CR3_LOAD_EXITING, CR3_STORE_EXITING = 1 << 11, 1 << 12, 1 << 15, 1 << 16
    MOV_DR_EXITING, UNCONDITIONAL_IO_EXITING, USE_IO_BITMAPS = 1 << 23, 1 << 24, 1 << 25
    USE_MSR_BITMAPS, MONITOR_EXITING, PAUSE_EXITING, SECONDARY_CONTROLS = 1 << 28, 1 << 29, 1 << 30, 1 << 31


class Secondary(IntFlag):
    """Secondary processor-based VM-execution controls (25.6.2)."""

    ENABLE_EPT, DESCRIPTOR_TABLE_EXITING, WBINVD_EXITING, UNRESTRICTED_GUEST = 1 << 1, 1 << 2, 1 << 6, 1 << 7


class Entry(IntFlag):
    """VM-entry controls (25.8.1)."""

    IA32E_MODE_GUEST, LOAD_IA32_EFER = 1 << 9, 1 << 15


class Leave(IntFlag):
    """VM-exit controls (25.7.1)."""

    HOST_ADDRESS_SPACE_SIZE, SAVE_IA32_EFER, LOAD_IA32_EFER = 1 << 9, 1 << 20, 1 << 21


class Reason(IntEnum):
    """Basic exit reasons (appendix C)."""

    EXCEPTION, EXTERNAL_INTERRUPT, TRIPLE_FAULT, INTERRUPT_WINDOW = 0, 1, 2, 7
    CPUID, HLT, INVD, INVLPG, RDPMC, RDTSC = 10, 12, 13, 14, 15, 16
    CONTROL_REGISTER, MOV_DR, IO, RDMSR, WRMSR, INVALID_GUEST_STATE = 28, 29, 30, 31, 32, 33
    MWAIT, MONITOR, PAUSE, GDTR_IDTR, LDTR_TR, EPT_VIOLATION, WBINVD = 36, 39, 40, 46, 47, 48, 54


_EXIT_REASON, _EXIT_QUALIFICATION = int(Field.EXIT_REASON), int(Field.EXIT_QUALIFICATION)
SEGMENTS: Final = ("ES", "CS", "SS", "DS", "FS", "GS")
UNUSABLE: Final = 1 << 16  # in access rights
BLOCKING_BY_STI, BLOCKING_BY_MOV_SS = 1, 2
ACTIVE, HALTED = 0, 1
NO_LINK: Final = (1 << 64) - 1
_EPT_FORM: Final = 6 | 3 << 3  # write-back, a walk of four levels
_CR4_OFFERED: Final = (Cr4.PCE << 1) - 1 | Cr4.OSFXSR | Cr4.OSXMMEXCPT
_FLAGS_FIXED: Final = ~0x3F7FD7 & 0xFFFF_FFFF_FFFF_FFFF | 2


@dataclass(frozen=True, slots=True)
class Check:
    """A check of the manual that a VM entry failed. section: where the manual has it; rule: in its words, nearly."""

    section: str
    rule: str
    field: Field
    value: int


class EntryFailed(Exception):
    """A VM entry that the CPU refuses. The message names the check, the field and its value."""

    def __init__(self, check: Check) -> None:
        super().__init__(f"VM entry fails: SDM 3C {check.section}: {check.rule}: {check.field.name} is {check.value:#x}")
        self.check = check


class Vmcs:
    """One control structure. Fields are read and written by their encodings; those never written are 0."""

    def __init__(self) -> None:
        self._fields = {int(Field.VMCS_LINK_POINTER): NO_LINK}  # by plain numbers: hashing a member of an enumeration takes longer than all else

    def __getitem__(self, field: Field) -> int:
        return self._fields.get(int(field), 0)

    def __setitem__(self, field: Field, value: int) -> None:
        self._fields[int(field)] = value

    def exited(self, reason: int, qualification: int) -> None:
        """What an exit leaves: its basic reason and the qualification. Hot: 0.15 us."""
        self._fields[_EXIT_REASON] = reason
        self._fields[_EXIT_QUALIFICATION] = qualification

    def write(self, encoding: int, value: int) -> None:
        """VMWRITE by number. Raises EntryUnsupported for a field that is not honoured here."""
        try:
            self._fields[int(Field(encoding))] = value
        except ValueError:
            raise Unsupported(f"VMCS field {encoding:#06x}: not supported by this CPU") from None

    def segment(self, name: str) -> tuple[int, int, int, int]:
        """(selector, access rights, limit, base) of ES to GS, LDTR or TR."""
        selector, rights, limit, base = (self[Field[f"GUEST_{name}_{part}"]] for part in ("SELECTOR", "ACCESS_RIGHTS", "LIMIT", "BASE"))
        return selector, rights, limit, base

    def set_segment(self, name: str, selector: int, rights: int, limit: int, base: int) -> None:
        """Writes the four fields of a segment register."""
        for part, value in (("SELECTOR", selector), ("ACCESS_RIGHTS", rights), ("LIMIT", limit), ("BASE", base)):
            self[Field[f"GUEST_{name}_{part}"]] = value

    def check(self) -> None:
        """The checks of a VM entry, in the manual's order. Raises EntryFailed at the first that fails."""
        for check in (*self._control_checks(), *self._register_checks(), *self._segment_checks(), *self._state_checks()):
            raise EntryFailed(check)

    def _control_checks(self) -> list[Check]:
        failed: list[Check] = []

        def must(holds: bool, rule: str, field: Field) -> None:
            if not holds:
                failed.append(Check("27.2.1", rule, field, self[field]))

        for field, offered in (
            (Field.PIN_BASED_CONTROLS, Pin), (Field.PRIMARY_CONTROLS, Primary), (Field.SECONDARY_CONTROLS, Secondary),
            (Field.VM_EXIT_CONTROLS, Leave), (Field.VM_ENTRY_CONTROLS, Entry),
        ):  # fmt: skip
            known = 0
            for bit in offered:
                known |= bit
            must(not self[field] & ~known, "reserved bits must be set properly: a control that this CPU does not offer", field)
        if self[Field.SECONDARY_CONTROLS] and not self[Field.PRIMARY_CONTROLS] & Primary.SECONDARY_CONTROLS:
            must(False, "secondary controls need bit 31 of the primary ones", Field.SECONDARY_CONTROLS)
        if self[Field.SECONDARY_CONTROLS] & Secondary.ENABLE_EPT:
            must(self[Field.EPT_POINTER] & 0xFFF == _EPT_FORM, "EPT: write-back, four levels, reserved bits 0", Field.EPT_POINTER)
        elif self[Field.SECONDARY_CONTROLS] & Secondary.UNRESTRICTED_GUEST:
            must(False, "an unrestricted guest needs EPT", Field.SECONDARY_CONTROLS)
        for field in (Field.MSR_BITMAP, Field.IO_BITMAP_A, Field.IO_BITMAP_B):
            must(not self[field] & 0xFFF, "bits 11:0 of the address must be 0", field)
        must(not self[Field.ENTRY_INTERRUPTION_INFO] >> 31, "no event is injected at entry: the VMM delivers them", Field.ENTRY_INTERRUPTION_INFO)
        return failed

    def _register_checks(self) -> list[Check]:
        failed: list[Check] = []
        cr0, cr4, efer = self[Field.GUEST_CR0], self[Field.GUEST_CR4], self[Field.GUEST_IA32_EFER]
        long_mode = bool(self[Field.VM_ENTRY_CONTROLS] & Entry.IA32E_MODE_GUEST)
        unrestricted = bool(self[Field.SECONDARY_CONTROLS] & Secondary.UNRESTRICTED_GUEST)

        def must(holds: bool, rule: str, field: Field) -> None:
            if not holds:
                failed.append(Check("27.3.1.1", rule, field, self[field]))

        must(not cr0 & Cr0.PG or bool(cr0 & Cr0.PE), "if CR0.PG is 1, CR0.PE must be 1", Field.GUEST_CR0)
        must(unrestricted or cr0 & (Cr0.PG | Cr0.PE) == Cr0.PG | Cr0.PE, "CR0.PE and CR0.PG must be 1 without unrestricted guest", Field.GUEST_CR0)
        must(not cr4 & ~_CR4_OFFERED, "CR4 must have no bit that this CPU does not support", Field.GUEST_CR4)
        must(not long_mode or bool(cr0 & Cr0.PG and cr4 & Cr4.PAE), "in IA-32e mode CR0.PG and CR4.PAE must be 1", Field.GUEST_CR4)
        must(not self[Field.GUEST_CR3] >> 36, "CR3 must not be beyond the physical-address width", Field.GUEST_CR3)
        must(not efer & ~(Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE), "bits reserved in IA32_EFER must be 0", Field.GUEST_IA32_EFER)
        must(bool(efer & Efer.LMA) == long_mode, "IA32_EFER.LMA must equal the IA-32e mode guest control", Field.GUEST_IA32_EFER)
        must(not cr0 & Cr0.PG or bool(efer & Efer.LMA) == bool(efer & Efer.LME), "with paging IA32_EFER.LMA must equal LME", Field.GUEST_IA32_EFER)
        return failed

    def _segment_checks(self) -> list[Check]:
        failed: list[Check] = []
        virtual_8086 = bool(self[Field.GUEST_RFLAGS] & Flag.VM)

        def must(holds: bool, rule: str, field: Field) -> None:
            if not holds:
                failed.append(Check("27.3.1.2", rule, field, self[field]))

        tr, ldtr = self.segment("TR"), self.segment("LDTR")
        must(not tr[1] & UNUSABLE and tr[1] & 0x9F in (0x83, 0x8B), "TR must be usable, present and a busy TSS", Field.GUEST_TR_ACCESS_RIGHTS)
        must(not tr[0] & 4, "TR: the TI flag must be 0", Field.GUEST_TR_SELECTOR)
        must(bool(ldtr[1] & UNUSABLE) or ldtr[1] & 0x9F == 0x82, "a usable LDTR must be a present LDT", Field.GUEST_LDTR_ACCESS_RIGHTS)
        for name in SEGMENTS if not virtual_8086 else ():
            _, rights, limit, _ = self.segment(name)
            if rights & UNUSABLE and name != "CS":
                continue
            field = Field[f"GUEST_{name}_ACCESS_RIGHTS"]
            kinds = {"CS": (3, 9, 11, 13, 15), "SS": (3, 7)}.get(name, (1, 3, 5, 7, 11, 15))
            must(rights & 0xF in kinds, f"{name}: the type must be accessed and of this register's kinds", field)
            must(bool(rights & 0x10 and rights & 0x80), f"{name}: S and P must be 1", field)
            must(not rights & 0xFFFE0F00, f"{name}: reserved bits must be 0", field)
            granular = bool(rights & 0x8000)
            must(
                limit & 0xFFF == 0xFFF if granular and limit >> 20 else not granular or limit & 0xFFF == 0xFFF,
                f"{name}: a limit with G must end in FFFh", Field[f"GUEST_{name}_LIMIT"],
            )  # fmt: skip
            must(granular or not limit >> 20, f"{name}: a limit of more than 20 bits needs G", Field[f"GUEST_{name}_LIMIT"])
        return failed

    def _state_checks(self) -> list[Check]:
        failed: list[Check] = []
        rights = self[Field.GUEST_CS_ACCESS_RIGHTS]
        long_code = bool(self[Field.VM_ENTRY_CONTROLS] & Entry.IA32E_MODE_GUEST and rights & 0x2000)
        flags, blocking = self[Field.GUEST_RFLAGS], self[Field.GUEST_INTERRUPTIBILITY_STATE]

        def must(section: str, holds: bool, rule: str, field: Field) -> None:
            if not holds:
                failed.append(Check(section, rule, field, self[field]))

        for field in (Field.GUEST_GDTR_LIMIT, Field.GUEST_IDTR_LIMIT):
            must("27.3.1.3", not self[field] >> 16, "bits 31:16 of the limit must be 0", field)
        must("27.3.1.4", long_code or not self[Field.GUEST_RIP] >> 32, "RIP must be below 4 GiB outside 64-bit mode", Field.GUEST_RIP)
        must("27.3.1.4", flags & _FLAGS_FIXED == 2, "reserved bits of RFLAGS must be 0 and bit 1 must be 1", Field.GUEST_RFLAGS)
        must("27.3.1.5", self[Field.GUEST_ACTIVITY_STATE] in (ACTIVE, HALTED), "the activity state must be supported", Field.GUEST_ACTIVITY_STATE)
        must("27.3.1.5", not blocking & ~3, "reserved bits must be 0", Field.GUEST_INTERRUPTIBILITY_STATE)
        must("27.3.1.5", blocking != 3, "blocking by STI and by MOV SS exclude each other", Field.GUEST_INTERRUPTIBILITY_STATE)
        must("27.3.1.5", not blocking & 1 or bool(flags & Flag.IF), "blocking by STI needs RFLAGS.IF", Field.GUEST_INTERRUPTIBILITY_STATE)
        must("27.3.1.5", self[Field.VMCS_LINK_POINTER] == NO_LINK, "there are no shadow VMCSs here", Field.VMCS_LINK_POINTER)
        return failed


class Unsupported(Exception):
    """A field that exists in the manual and not on this CPU."""
