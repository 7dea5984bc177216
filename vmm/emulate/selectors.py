"""Segment registers: reads of their selectors, and loads of ES, SS, DS, FS and GS by MOV, POP, LDS to LGS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.decode import Instruction
from vmm.cpu_state import Cpu
from vmm.emulate.routine import Result
from vmm.faults import GuestFault
from vmm.x86.bits import Vector
from vmm.x86.descriptors import deprivileged

if TYPE_CHECKING:
    from vmm.vm import Vm

_CS, _SS = 1, 2  # numbers of segment registers, as in an instruction's reg field
_FAR_POINTERS = {0xC4: 0, 0xC5: 3, 0x0FB2: _SS, 0x0FB4: 4, 0x0FB5: 5}
_WORDS = 6  # of a segment register in the CPU's state


def _selector(vm: Vm, number: int) -> int:
    """The selector in a segment register, by its number."""
    if number in (_CS, _SS):
        return (vm.vcpu.cs if number == _CS else vm.vcpu.ss).selector
    selector: int = vm.vcpu.state[Cpu.ES + _WORDS * number]
    return selector


def _load(vm: Vm, number: int, selector: int) -> None:
    if number == _SS:
        vm.vcpu.ss = vm.segments.stack(selector, vm.vcpu.cpl)
        vm.vcpu.inhibited = True
        return
    machine = vm.machine
    if vm.segments.real:
        state, at = vm.vcpu.state, Cpu.ES + _WORDS * number
        state[at], state[at + Cpu.BASE] = selector, selector << 4
        machine.set_mode(state[Cpu.HFLAGS] & 3)
        return
    held = vm.segments.data(selector)
    attributes = deprivileged(held.attributes, vm.backend.ring) if selector & 0xFFFC else 0
    machine.set_segment(Cpu.ES + _WORDS * number, selector, held.base, held.limit, attributes)
    machine.set_mode(vm.vcpu.state[Cpu.HFLAGS] & 3)
    if not vm.vcpu.cpl:
        vm.descriptors.loaded(selector)


def push_segment(vm: Vm, instruction: Instruction) -> Result:
    vm.operands.push(_selector(vm, instruction.opcode >> 3 & 7), size=vm.operands.size(instruction))
    return None


def read_segment(vm: Vm, instruction: Instruction) -> Result:
    """MOV r/m from a segment register."""
    size = vm.operands.size(instruction) if instruction.modrm >= 0xC0 else 2
    vm.operands.write(instruction, size, _selector(vm, instruction.modrm >> 3 & 7))
    return None


def mov_segment(vm: Vm, instruction: Instruction) -> Result:
    _load(vm, instruction.modrm >> 3 & 7, vm.operands.read(instruction, 2))
    return None


def pop_segment(vm: Vm, instruction: Instruction) -> Result:
    """The stack pointer moves by the width of the stack that the selector was on, also when SS itself is loaded."""
    size = vm.operands.size(instruction)
    (selector,) = vm.operands.peek(1, size)
    stack = vm.vcpu.ss
    _load(vm, instruction.opcode >> 3 & 7, selector & 0xFFFF)
    vm.operands.drop(size, stack)
    return None


def load_far_pointer(vm: Vm, instruction: Instruction) -> Result:
    """LDS, LES, LFS, LGS, LSS."""
    if instruction.modrm >= 0xC0:
        raise GuestFault(Vector.UD)
    size, address, user = vm.operands.size(instruction), vm.operands.address(instruction), vm.vcpu.cpl == 3
    offset, selector = vm.linear.read_int(address, size, user), vm.linear.read_int(address + size, 2, user)
    _load(vm, _FAR_POINTERS[instruction.opcode], selector)
    vm.vcpu.inhibited = False  # behind LSS nothing needs to be held off: it loads both halves of the pointer
    vm.operands.write_register(instruction.modrm >> 3 & 7, size, offset)
    return None
