"""Model-specific registers and performance counters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.decode import Instruction
from vmm.cpuid import ADDRESSES, EFER, TIME_STAMP
from vmm.emulate.control import tables_dropped
from vmm.emulate.routine import Result, privileged
from vmm.faults import GuestFault
from vmm.x86.bits import Cr0, Cr4, Efer, Vector

if TYPE_CHECKING:
    from vmm.vm import Vm


def rdmsr(vm: Vm, instruction: Instruction) -> Result:
    privileged(vm)
    vcpu, number = vm.vcpu, vm.vcpu.register(1) & 0xFFFFFFFF
    value = vcpu.efer if number == EFER else vm.clock.now() if number == TIME_STAMP else vcpu.msrs.get(number)
    if value is None:
        raise GuestFault(Vector.GP, 0)
    vcpu.set_register(0, value & 0xFFFFFFFF)
    vcpu.set_register(2, value >> 32)
    return None


def rdtsc(vm: Vm, instruction: Instruction) -> Result:
    """Where virtual time is counted the time stamp is that time in nanoseconds; elsewhere the CPU does it by itself."""
    vcpu = vm.vcpu
    if vcpu.cr4 & Cr4.TSD and vcpu.cpl:
        raise GuestFault(Vector.GP, 0)
    now = vm.clock.now()
    vcpu.set_register(0, now & 0xFFFFFFFF)
    vcpu.set_register(2, now >> 32 & 0xFFFFFFFF)
    return None


def wrmsr(vm: Vm, instruction: Instruction) -> Result:
    privileged(vm)
    vcpu, number = vm.vcpu, vm.vcpu.register(1) & 0xFFFFFFFF
    value = (vcpu.register(2) & 0xFFFFFFFF) << 32 | vcpu.register(0) & 0xFFFFFFFF
    if number == EFER:
        lme = (vcpu.efer ^ value) & Efer.LME
        if value & ~(vm.cpu_model.efer | Efer.LMA) or lme and vcpu.cr0 & Cr0.PG:
            raise GuestFault(Vector.GP, 0)
        vcpu.efer = value & ~Efer.LMA  # which is the CPU's to write
        vm.paging.load(vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer)
        tables_dropped(vm)
    elif number in vcpu.msrs:
        if vm.cpu_model.long_mode and number in ADDRESSES and value + (1 << 47) >> 48 & 0xFFFF:
            raise GuestFault(Vector.GP, 0)
        vcpu.msrs[number] = value
    else:
        raise GuestFault(Vector.GP, 0)
    return None


def rdpmc(vm: Vm, instruction: Instruction) -> Result:
    """There are no performance counters."""
    raise GuestFault(Vector.GP, 0)
