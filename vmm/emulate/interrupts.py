"""Flags, interrupts and their return: CLI, STI, PUSHF, POPF, HLT, INT, IRET."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.decode import Instruction
from vmm.emulate.routine import JUMPED, Result, privileged
from vmm.emulate.transfers import return_to
from vmm.exits import WAIT, End, Stop, Stopped
from vmm.faults import GuestFault
from vmm.x86.bits import Flag, Vector

if TYPE_CHECKING:
    from vmm.vm import Vm


def cli(vm: Vm, instruction: Instruction) -> Result:
    if vm.vcpu.cpl > vm.vcpu.iopl:
        raise GuestFault(Vector.GP, 0)
    vm.vcpu.virtual_flags &= ~Flag.IF
    return None


def sti(vm: Vm, instruction: Instruction) -> Result:
    vcpu = vm.vcpu
    if vcpu.cpl > vcpu.iopl:
        raise GuestFault(Vector.GP, 0)
    if not vcpu.interrupts_on:
        vcpu.inhibited = True
    vcpu.virtual_flags |= Flag.IF
    return None


def pushf(vm: Vm, instruction: Instruction) -> Result:
    vm.operands.push(vm.vcpu.flags() & ~(Flag.RF | Flag.VM), size=vm.operands.size(instruction))
    return None


def popf(vm: Vm, instruction: Instruction) -> Result:
    """IOPL changes only at CPL 0, IF only when CPL <= IOPL (SDM 2B "POPF")."""
    vcpu, size = vm.vcpu, vm.operands.size(instruction)
    (value,) = vm.operands.peek(1, size)
    vm.operands.drop(size)
    before = vcpu.flags()
    kept = Flag.VM | Flag.VIF | Flag.VIP | (0xFFFF0000 if size == 2 else 0)
    if vcpu.cpl:
        kept |= Flag.IOPL
        if vcpu.cpl > vcpu.iopl:
            kept |= Flag.IF
    vcpu.set_flags((value & ~kept | before & kept) & ~Flag.RF)
    return None


def hlt(vm: Vm, instruction: Instruction) -> Result:
    privileged(vm)
    vm.vcpu.halted = True
    return WAIT


def software_interrupt(vm: Vm, instruction: Instruction) -> Result:
    """INT n, INT3, INTO, ICEBP in virtual kernel mode."""
    vcpu = vm.vcpu
    if instruction.opcode == 0xCE and not vcpu.flags() & Flag.OF:
        return None
    if instruction.opcode == 0xF1:
        vm.events.interrupt(Vector.DB, instruction.next, software=False)
        return JUMPED
    vector = {0xCC: Vector.BP, 0xCE: Vector.OF}.get(instruction.opcode, instruction.raw[-1])
    vm.events.interrupt(vector, instruction.next, software=True)
    return JUMPED


def iret(vm: Vm, instruction: Instruction) -> Result:
    """SDM 2A "IRET": to the same or an outer level. Not to virtual-8086 mode, and not out of a nested task."""
    vcpu, size = vm.vcpu, vm.operands.size(instruction)
    real = vm.segments.real
    if vcpu.flags() & Flag.NT and not real:
        raise Stopped(Stop(End.UNSUPPORTED, "iret out of a nested task: hardware task switches are not supported"))
    eip, selector, flags = vm.operands.peek(3, size)
    if size == 4 and flags & Flag.VM and vcpu.cpl == 0 and not real:
        raise Stopped(Stop(End.UNSUPPORTED, "iret to virtual-8086 mode is not supported"))
    selector &= 0xFFFF
    code = vm.segments.code(selector, returning=True)
    level = 0 if real else selector & 3
    before, kept = vcpu.flags(), Flag.VM | Flag.VIF | Flag.VIP
    if size == 2:
        kept |= 0xFFFF0000
    if vcpu.cpl:
        kept |= Flag.IOPL
        if vcpu.cpl > vcpu.iopl:
            kept |= Flag.IF
    inward = not vcpu.cpl and not level and not real
    return_to(vm, eip, code, level, 3 * size, size, 0)
    vcpu.set_flags(flags & ~kept | before & kept)
    if inward:
        vm.descriptors.returned(selector)
    return JUMPED
