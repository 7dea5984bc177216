"""SYSENTER and SYSEXIT: the change of privilege level without a table look-up (SDM 3A 5.8.7 "Performing Fast Calls to System Procedures")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.decode import Instruction
from vmm.cpuid import SYSENTER_CS, SYSENTER_EIP, SYSENTER_ESP
from vmm.emulate.routine import JUMPED, Result, privileged
from vmm.faults import GuestFault
from vmm.x86.bits import Flag, Vector
from vmm.x86.descriptors import FLAT_CODE, FLAT_DATA, Segment, with_dpl

if TYPE_CHECKING:
    from vmm.vm import Vm


def _enter(vm: Vm, cpl: int, selector: int) -> None:
    """Flat CS and, in the next entry, SS: what the descriptor tables say of them is not looked at."""
    vcpu = vm.vcpu
    vcpu.cs = Segment(selector & 0xFFFC | cpl, 0, 0xFFFFFFFF, with_dpl(FLAT_CODE, cpl))
    vcpu.ss = Segment(selector + 8 & 0xFFFC | cpl, 0, 0xFFFFFFFF, with_dpl(FLAT_DATA, cpl))
    vcpu.cpl = cpl


def _base(vm: Vm) -> int:
    selector = vm.vcpu.msrs[SYSENTER_CS] & 0xFFFF
    if not selector & 0xFFFC:
        raise GuestFault(Vector.GP, 0)
    return selector


def sysenter(vm: Vm, instruction: Instruction) -> Result:
    vcpu, selector = vm.vcpu, _base(vm)
    flags = vcpu.flags()
    _enter(vm, 0, selector)
    vcpu.esp, vcpu.eip = vcpu.msrs[SYSENTER_ESP], vcpu.msrs[SYSENTER_EIP] & 0xFFFFFFFF
    vcpu.set_flags(flags & ~(Flag.VM | Flag.IF | Flag.RF))
    return JUMPED


def sysexit(vm: Vm, instruction: Instruction) -> Result:
    privileged(vm)
    vcpu, selector = vm.vcpu, _base(vm)
    flags = vcpu.flags()
    _enter(vm, 3, selector + 16)
    vcpu.esp, vcpu.eip = vcpu.register(1), vcpu.register(2)
    vcpu.set_flags(flags)
    return JUMPED
