"""Control and debug registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.decode import Instruction
from vmm.board import LOCAL_APIC
from vmm.emulate.routine import Result, privileged
from vmm.faults import GuestFault
from vmm.x86.bits import Cr0, Cr4, Dr6, Dr7, Efer, Vector
from vmm.x86.descriptors import LONG_CODE

if TYPE_CHECKING:
    from vmm.vm import Vm

_CR4_OFFERED = Cr4.TSD | Cr4.DE | Cr4.PSE | Cr4.PAE | Cr4.MCE | Cr4.PGE | Cr4.PCE | Cr4.OSFXSR | Cr4.OSXMMEXCPT
_TABLE_CR0 = Cr0.PG | Cr0.WP | Cr0.PE
_TABLE_CR4 = Cr4.PSE | Cr4.PAE
_TASK_PRIORITY = LOCAL_APIC + 0x80  # of which CR8 is the upper half


def write_control(vm: Vm, instruction: Instruction) -> Result:
    """MOV to CR0, CR2, CR3, CR4, and to CR8 in 64-bit code."""
    privileged(vm)
    number, value = instruction.reg, vm.vcpu.register(instruction.rm)
    if number == 0:
        set_cr0(vm, value)
    elif number == 2:
        vm.vcpu.cr2 = value
    elif number == 3:
        vcpu = vm.vcpu
        if not vm.paging.load(vcpu.cr0, value, vcpu.cr4, vcpu.efer, reload_pdptes=True):
            raise GuestFault(Vector.GP, 0)
        vcpu.cr3 = value
        vm.mmu.load(vcpu.cpl == 3)
        vm.backend.tables_changed()
    elif number == 4:
        set_cr4(vm, value)
    elif number == 8:
        if value >> 4:
            raise GuestFault(Vector.GP, 0)
        vm.board.bus.memory(_TASK_PRIORITY, 4, value << 4)
    else:
        raise GuestFault(Vector.UD)
    return None


def read_control(vm: Vm, instruction: Instruction) -> Result:
    """MOV from a control register, where it was not done in the cache."""
    privileged(vm)
    number, vcpu = instruction.reg, vm.vcpu
    if number == 8:
        vcpu.set_register(instruction.rm, vm.board.bus.memory(_TASK_PRIORITY, 4, None) >> 4)
        return None
    if number not in (0, 2, 3, 4):
        raise GuestFault(Vector.UD)
    vcpu.set_register(instruction.rm, {0: vcpu.cr0, 2: vcpu.cr2, 3: vcpu.cr3, 4: vcpu.cr4}[number])
    return None


def set_cr0(vm: Vm, value: int) -> None:
    """SDM 3A 2.5: which combinations are refused, and what a change drops."""
    vcpu = vm.vcpu
    if value >> 32:
        raise GuestFault(Vector.GP, 0)
    value = value & 0xE005003F | Cr0.ET
    if value & Cr0.PG and not value & Cr0.PE or value & Cr0.NW and not value & Cr0.CD:
        raise GuestFault(Vector.GP, 0)
    if vcpu.efer & Efer.LME and (vcpu.cr0 ^ value) & Cr0.PG:
        _switch_long_mode(vm, on=bool(value & Cr0.PG))
    if not vm.paging.load(value, vcpu.cr3, vcpu.cr4, vcpu.efer):
        raise GuestFault(Vector.GP, 0)
    changed, vcpu.cr0 = vcpu.cr0 ^ value, value
    vm.backend.control_changed()
    if changed & _TABLE_CR0:
        tables_dropped(vm)


def _switch_long_mode(vm: Vm, *, on: bool) -> None:
    """What must hold where paging, and long mode with it, is switched (SDM 3A 9.8.5 "Initializing IA-32e Mode")."""
    vcpu = vm.vcpu
    if not vcpu.cr4 & Cr4.PAE or vcpu.cs.attributes & LONG_CODE if on else vcpu.code_64:
        raise GuestFault(Vector.GP, 0)


def set_cr4(vm: Vm, value: int) -> None:
    vcpu = vm.vcpu
    if value & ~_CR4_OFFERED or vcpu.efer & Efer.LMA and not value & Cr4.PAE:
        raise GuestFault(Vector.GP, 0)
    if not vm.paging.load(vcpu.cr0, vcpu.cr3, value, vcpu.efer):
        raise GuestFault(Vector.GP, 0)
    changed, vcpu.cr4 = vcpu.cr4 ^ value, value
    vm.backend.control_changed()
    if changed & _TABLE_CR4:
        tables_dropped(vm)
    elif changed & Cr4.PGE:
        vm.mmu.load(vcpu.cpl == 3)


def tables_dropped(vm: Vm) -> None:
    vm.mmu.drop_roots()
    vm.mmu.load(vm.vcpu.cpl == 3)
    vm.backend.tables_changed()


def clts(vm: Vm, instruction: Instruction) -> Result:
    privileged(vm)
    vm.vcpu.cr0 &= ~Cr0.TS
    vm.backend.control_changed()
    return None


def lmsw(vm: Vm, instruction: Instruction) -> Result:
    """Sets PE, MP, EM and TS; cannot clear PE."""
    privileged(vm)
    value = vm.operands.read(instruction, 2) & 0xF
    set_cr0(vm, vm.vcpu.cr0 & ~0xE | value)
    return None


def smsw(vm: Vm, instruction: Instruction) -> Result:
    size = vm.operands.size(instruction) if instruction.modrm >= 0xC0 else 2
    vm.operands.write(instruction, size, vm.vcpu.cr0)
    return None


def invlpg(vm: Vm, instruction: Instruction) -> Result:
    privileged(vm)
    address = vm.operands.address(instruction)
    vm.mmu.invalidate(address)
    vm.backend.page_invalidated(address)
    return None


def write_back(vm: Vm, instruction: Instruction) -> Result:
    """INVD, WBINVD: there is no cache to be seen."""
    privileged(vm)
    return None


def read_debug(vm: Vm, instruction: Instruction) -> Result:
    """DR4 and DR5 mean DR6 and DR7 unless CR4.DE is set. With DR7.GD every access is a debug exception (SDM 3B 17.2.4)."""
    privileged(vm)
    vm.vcpu.set_register(instruction.rm, vm.vcpu.debug[_debug_number(vm, instruction)])
    return None


def write_debug(vm: Vm, instruction: Instruction) -> Result:
    privileged(vm)
    number, value = _debug_number(vm, instruction), vm.vcpu.register(instruction.rm)
    if number > 3 and value >> 32:
        raise GuestFault(Vector.GP, 0)
    if number == 6:
        value = value & 0xE00F | 0xFFFF0FF0
    elif number == 7:
        value = value & 0xFFFF2BFF | 0x400
    vm.vcpu.debug[number] = value
    return None


def _debug_number(vm: Vm, instruction: Instruction) -> int:
    number = instruction.reg
    if number > 7:
        raise GuestFault(Vector.UD)
    if number in (4, 5):
        if vm.vcpu.cr4 & Cr4.DE:
            raise GuestFault(Vector.UD)
        number += 2
    if vm.vcpu.debug[7] & Dr7.GD:
        vm.vcpu.debug[6] |= Dr6.BD
        raise GuestFault(Vector.DB)
    return number
