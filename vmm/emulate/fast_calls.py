"""SYSENTER, SYSEXIT and SYSCALL: the change of privilege level without a table look-up.

Source: SDM 3A 5.8.7 "Performing Fast Calls to System Procedures", 5.8.8 "Fast System Calls in 64-Bit Mode".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.decode import Instruction
from vmm.cpuid import LSTAR, SFMASK, STAR, SYSENTER_CS, SYSENTER_EIP, SYSENTER_ESP
from vmm.emulate.routine import JUMPED, Result, privileged
from vmm.faults import GuestFault
from vmm.x86.bits import Efer, Flag, Vector
from vmm.x86.descriptors import FLAT_CODE, FLAT_CODE_64, FLAT_DATA, Segment, with_dpl

if TYPE_CHECKING:
    from vmm.vm import Vm


def _enter(vm: Vm, cpl: int, selector: int, *, long: bool = False) -> None:
    """Flat CS and, in the next entry, SS: what the descriptor tables say of them is not looked at. long: 64-bit code."""
    vcpu = vm.vcpu
    vcpu.cs = Segment(selector & 0xFFFC | cpl, 0, 0xFFFFFFFF, with_dpl(FLAT_CODE_64 if long else FLAT_CODE, cpl))
    vcpu.ss = Segment(selector + 8 & 0xFFFC | cpl, 0, 0xFFFFFFFF, with_dpl(FLAT_DATA, cpl))
    vcpu.cpl = cpl


def _base(vm: Vm) -> int:
    selector = vm.vcpu.msrs[SYSENTER_CS] & 0xFFFF
    if not selector & 0xFFFC:
        raise GuestFault(Vector.GP, 0)
    return selector


def sysenter(vm: Vm, instruction: Instruction) -> Result:
    vcpu, selector = vm.vcpu, _base(vm)
    flags, long = vcpu.flags(), bool(vcpu.efer & Efer.LMA)
    _enter(vm, 0, selector, long=long)
    eip = vcpu.msrs[SYSENTER_EIP]
    vcpu.esp, vcpu.eip = vcpu.msrs[SYSENTER_ESP], eip if long else eip & 0xFFFFFFFF
    vcpu.set_flags(flags & ~(Flag.VM | Flag.IF | Flag.RF))
    return JUMPED


def sysexit(vm: Vm, instruction: Instruction) -> Result:
    privileged(vm)
    vcpu, selector = vm.vcpu, _base(vm)
    flags, long = vcpu.flags(), instruction.operand_size == 8
    esp, eip = vcpu.register(1), vcpu.register(2)
    if long and any(address + (1 << 47) >> 48 & 0xFFFF for address in (esp, eip)):
        raise GuestFault(Vector.GP, 0)
    _enter(vm, 3, selector + (32 if long else 16), long=long)
    vcpu.esp, vcpu.eip = esp, eip if long else eip & 0xFFFFFFFF
    vcpu.set_flags(flags)
    return JUMPED


def syscall(vm: Vm, instruction: Instruction) -> Result:
    """SDM 2B "SYSCALL": out of 64-bit code only, and into such."""
    vcpu = vm.vcpu
    if not vcpu.code_64 or not vcpu.efer & Efer.SCE:
        raise GuestFault(Vector.UD)
    flags = vcpu.flags()
    vcpu.set_register(1, instruction.next)
    vcpu.set_register(11, flags & ~Flag.RF)
    _enter(vm, 0, vcpu.msrs[STAR] >> 32 & 0xFFFC, long=True)
    vcpu.eip = vcpu.msrs[LSTAR]
    vcpu.set_flags(flags & ~(vcpu.msrs[SFMASK] | Flag.RF))
    return JUMPED
