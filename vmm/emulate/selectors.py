"""CS and SS: reads of both, and loads of SS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.decode import Instruction
from vmm.emulate.routine import Result
from vmm.faults import GuestFault
from vmm.x86.bits import Vector

if TYPE_CHECKING:
    from vmm.vm import Vm


def push_segment(vm: Vm, instruction: Instruction) -> Result:
    """PUSH CS, PUSH SS."""
    vcpu = vm.vcpu
    vm.operands.push((vcpu.cs if instruction.opcode == 0x0E else vcpu.ss).selector, size=vm.operands.size(instruction))
    return None


def read_segment(vm: Vm, instruction: Instruction) -> Result:
    """MOV r/m, CS or SS."""
    vcpu = vm.vcpu
    size = vm.operands.size(instruction) if instruction.modrm >= 0xC0 else 2
    vm.operands.write(instruction, size, (vcpu.cs if instruction.modrm >> 3 & 7 == 1 else vcpu.ss).selector)
    return None


def _load_ss(vm: Vm, selector: int) -> None:
    stack = vm.segments.stack(selector, vm.vcpu.cpl)
    vm.vcpu.ss = stack
    vm.vcpu.inhibited = True


def mov_ss(vm: Vm, instruction: Instruction) -> Result:
    _load_ss(vm, vm.operands.read(instruction, 2))
    return None


def pop_ss(vm: Vm, instruction: Instruction) -> Result:
    size = vm.operands.size(instruction)
    (selector,) = vm.operands.peek(1, size)
    esp = vm.vcpu.esp
    _load_ss(vm, selector & 0xFFFF)
    vm.vcpu.esp = esp
    vm.operands.drop(size)
    return None


def lss(vm: Vm, instruction: Instruction) -> Result:
    if instruction.modrm >= 0xC0:
        raise GuestFault(Vector.UD)
    size, address, user = vm.operands.size(instruction), vm.operands.address(instruction), vm.vcpu.cpl == 3
    offset, selector = vm.linear.read_int(address, size, user), vm.linear.read_int(address + size, 2, user)
    _load_ss(vm, selector)
    vm.operands.write_register(instruction.modrm >> 3 & 7, size, offset)
    return None
