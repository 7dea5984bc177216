"""First-generation memory: no second level of tables; the guest's paging is shadowed, and its control registers are kept from the CPU.

The CPU walks shadow tables in legacy PAE mode whatever mode the guest believes in. Page faults, loads of control registers and INVLPG exit.
Directories that the guest writes go out of sync as a TLB may, until it loads CR3 or says INVLPG. Knows the shadow tables by their contract.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from vmm.backends.hw.vmcs import Field, Primary, Secondary, Vmcs
from vmm.backends.native.vcpu import NativeVcpu
from vmm.cpuid import EFER
from vmm.exits import End, Stop, Stopped
from vmm.machine import FRAME, Machine
from vmm.mmu.shadow import ShadowMmu
from vmm.mmu.tables import DeviceAccess, StepOver
from vmm.x86.bits import Cr0, Cr4, Efer, Fault

if TYPE_CHECKING:
    from vmm.memory import GuestMemory
    from vmm.mmu.walk import GuestPaging

_EXITING = Primary.CR3_LOAD_EXITING | Primary.CR3_STORE_EXITING | Primary.INVLPG_EXITING
_PHYSICAL_CR0 = Cr0.PG | Cr0.WP | Cr0.ET | Cr0.PE
_GUEST_CR0 = Cr0.MP | Cr0.EM | Cr0.TS | Cr0.NE | Cr0.AM
_GUEST_CR4 = Cr4.TSD | Cr4.DE | Cr4.OSFXSR | Cr4.OSXMMEXCPT


class _Host:
    """What shadow tables ask of the VMM's own address space, where the guest's is the whole of the CPU's."""

    top_entry = 0

    def __init__(self, machine: Machine) -> None:
        self.drop_code = machine.drop_frame_code


class ShadowPaging:
    """Shadow paging for one guest in guest mode. empty_root: a page-table pointer that maps nothing (erratum 12)."""

    def __init__(self, machine: Machine, memory: GuestMemory, paging: GuestPaging, vcpu: NativeVcpu) -> None:
        self.machine, self.paging, self.vcpu = machine, paging, vcpu
        self.mmu = ShadowMmu(machine, memory, paging, _Host(machine), deprivileged=False, kernel_executes=True, legacy=True)
        (empty,) = machine.allocate(1)
        machine.clear(empty)
        self.empty_root = empty * FRAME

    def begin(self, vmcs: Vmcs) -> None:
        """Takes the entered guest's control registers from the CPU, which walks shadow tables from now on."""
        machine, vcpu = self.machine, self.vcpu
        vcpu.kept = {"CR0": vcpu.cr0, "CR3": vcpu.cr3, "CR4": vcpu.cr4}
        vmcs[Field.SECONDARY_CONTROLS] &= ~(Secondary.ENABLE_EPT | Secondary.UNRESTRICTED_GUEST)
        vmcs[Field.PRIMARY_CONTROLS] |= _EXITING
        vmcs[Field.EXCEPTION_BITMAP] |= 1 << 14
        vmcs[Field.CR0_MASK] = vmcs[Field.CR4_MASK] = 0xFFFFFFFF
        machine.set_nesting(False)
        machine.write_msr(EFER, Efer.NXE)
        machine.set_cr4(Cr4.PAE)
        machine.set_cr3(self.mmu.current.cr3)
        self.control_changed()

    def end(self, vmcs: Vmcs, wanted: Collection[str]) -> None:
        """Gives them back: the CPU walks the guest's own tables again. wanted: exits that were asked for."""
        machine, vcpu = self.machine, self.vcpu
        cr0, cr3, cr4, vcpu.kept = vcpu.cr0, vcpu.cr3, vcpu.cr4, None
        vmcs[Field.SECONDARY_CONTROLS] |= Secondary.ENABLE_EPT | Secondary.UNRESTRICTED_GUEST
        for name, bits in (("cr3", Primary.CR3_LOAD_EXITING | Primary.CR3_STORE_EXITING), ("invlpg", Primary.INVLPG_EXITING)):
            if name not in wanted:
                vmcs[Field.PRIMARY_CONTROLS] &= ~bits
        vmcs[Field.EXCEPTION_BITMAP] &= ~(1 << 14)
        vmcs[Field.CR0_MASK], vmcs[Field.CR4_MASK] = (0xFFFFFFFF if name in wanted else 0 for name in ("cr0", "cr4"))
        machine.set_nesting(True)
        machine.set_cr0(cr0 & ~Cr0.PG)
        vcpu.efer = vcpu.efer
        machine.set_cr4(cr4)
        machine.set_cr3(cr3)
        machine.set_cr0(cr0)
        self.mmu.drop_roots()

    def control_changed(self) -> None:
        """The guest's CR0 or CR4 changed: the physical ones follow where they matter to the CPU."""
        cr0, cr4 = self.vcpu.cr0, self.vcpu.cr4
        self.machine.set_cr0(_PHYSICAL_CR0 | cr0 & _GUEST_CR0)
        self.machine.set_cr4(Cr4.PAE | cr4 & _GUEST_CR4)

    def fault(self, gva: int, error: int, user: bool) -> None:
        """A page fault of the CPU: hidden, or GuestPageFault is raised for a true one. Raises Stopped when code is fetched from nowhere."""
        write, fetch = bool(error & Fault.W), bool(error & Fault.I)
        if not fetch and self.mmu.refill(gva, write, user):
            return
        match self.mmu.fault(gva, write, user, fetch):
            case DeviceAccess():
                if fetch:
                    raise Stopped(Stop(End.DIED, f"the guest executes at {gva:#x}, where there is no memory"))
                self.mmu.map_device(gva, write, user)
            case StepOver() | None:
                pass  # a directory was opened: `synchronize` looks at what the guest made of it

    def synchronize(self) -> None:
        """What the guest wrote into directories takes effect: it loaded CR3, or said INVLPG."""
        for gfn in list(self.mmu.copies):
            self.mmu.retrace(gfn)
        self.machine.flush_tlb()
