"""The VMCS of a guest: which exits there are, and the state at its first instruction.

Knows the manual's fields, and what a loader leaves behind. Knows no silicon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.backends.hw.options import HwOptions
from vmm.backends.hw.vmcs import SEGMENTS, UNUSABLE, Entry, Field, Leave, Pin, Primary, Secondary, Vmcs
from vmm.memory import GuestMemory
from vmm.x86.bits import Cr0, Cr4, Efer, Flag
from vmm.x86.descriptors import segment

if TYPE_CHECKING:
    from vmm.start import Start

_EPT_FORM = 6 | 3 << 3  # write-back, a walk of four levels
_BUSY_TSS = 0x8B
_RESET_BASE = 0xFFFF0000
_PRIMARY = {
    "invlpg": Primary.INVLPG_EXITING,
    "rdtsc": Primary.RDTSC_EXITING,
    "rdpmc": Primary.RDPMC_EXITING,
    "dr": Primary.MOV_DR_EXITING,
    "cr3": Primary.CR3_LOAD_EXITING | Primary.CR3_STORE_EXITING,
}
_SECONDARY = {"wbinvd": Secondary.WBINVD_EXITING, "descriptor": Secondary.DESCRIPTOR_TABLE_EXITING}
_MASKS = {"cr0": Field.CR0_MASK, "cr4": Field.CR4_MASK}


def new_vmcs(options: HwOptions, nested_root: int) -> Vmcs:
    """A VMCS with the controls that `options` ask for: the least, and what `exit_on` adds."""
    vmcs = Vmcs()
    primary = Primary.HLT_EXITING | Primary.UNCONDITIONAL_IO_EXITING | Primary.MWAIT_EXITING | Primary.MONITOR_EXITING
    primary |= Primary.RDPMC_EXITING | Primary.SECONDARY_CONTROLS
    secondary = Secondary.ENABLE_EPT | Secondary.UNRESTRICTED_GUEST
    for name, number in options.exit_on:
        primary |= _PRIMARY.get(name, Primary(0))
        secondary |= _SECONDARY.get(name, Secondary(0))
        if name in _MASKS:
            vmcs[_MASKS[name]] = 0xFFFFFFFF
        elif name == "exception":
            vmcs[Field.EXCEPTION_BITMAP] |= 1 << number
    vmcs[Field.PIN_BASED_CONTROLS] = Pin.EXTERNAL_INTERRUPT_EXITING | Pin.NMI_EXITING
    vmcs[Field.PRIMARY_CONTROLS], vmcs[Field.SECONDARY_CONTROLS] = primary, secondary
    vmcs[Field.VM_EXIT_CONTROLS] = Leave.HOST_ADDRESS_SPACE_SIZE | Leave.LOAD_IA32_EFER
    vmcs[Field.EPT_POINTER] = nested_root | _EPT_FORM
    return vmcs


def set_start(vmcs: Vmcs, start: Start, memory: GuestMemory) -> None:
    """Guest state: protected mode, paging off, or long mode; with the segments out of the loader's table. A BIOS starts in real mode."""
    for name in SEGMENTS if start.kind != "bios" else ():
        selector = start.cs if name == "CS" else start.ds
        loaded = segment(selector, int.from_bytes(memory.read(start.gdt_base + (selector & 0xFFF8), 8), "little"))
        vmcs.set_segment(name, selector, loaded.attributes >> 8 & 0xF0FF, loaded.limit, loaded.base)
    vmcs.set_segment("LDTR", 0, UNUSABLE, 0, 0)
    vmcs.set_segment("TR", 0, _BUSY_TSS, 0xFFFF, 0)
    vmcs[Field.GUEST_GDTR_BASE], vmcs[Field.GUEST_GDTR_LIMIT] = start.gdt_base, start.gdt_limit
    vmcs[Field.GUEST_IDTR_LIMIT] = 0x3FF
    vmcs[Field.GUEST_CR0] = Cr0.PE | Cr0.ET
    if start.kind == "bios":
        _set_reset_state(vmcs, start)
    if start.long_tables:
        vmcs[Field.VM_ENTRY_CONTROLS] = Entry.IA32E_MODE_GUEST | Entry.LOAD_IA32_EFER
        vmcs[Field.GUEST_CR0], vmcs[Field.GUEST_CR4], vmcs[Field.GUEST_CR3] = Cr0.PG | Cr0.PE | Cr0.ET, Cr4.PAE, start.long_tables
        vmcs[Field.GUEST_IA32_EFER] = Efer.LME | Efer.LMA
    vmcs[Field.GUEST_DR7] = 0x400
    vmcs[Field.GUEST_RFLAGS] = start.eflags & ~Flag.IF | 2
    vmcs[Field.GUEST_RIP], vmcs[Field.GUEST_RSP] = start.entry, start.esp


def _set_reset_state(vmcs: Vmcs, start: Start) -> None:
    """SDM 3A table 10-1: CS has a base that its selector has not."""
    for name in SEGMENTS:
        vmcs.set_segment(name, 0, 0x93, 0xFFFF, 0)
    vmcs.set_segment("CS", start.cs, 0x9B, 0xFFFF, _RESET_BASE)
    vmcs[Field.GUEST_IDTR_LIMIT] = 0xFFFF
    vmcs[Field.GUEST_CR0] = Cr0.CD | Cr0.NW | Cr0.ET
