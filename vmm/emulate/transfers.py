"""Far jumps, calls and returns, through call gates too where the privilege level stays (SDM 2 "JMP", "CALL", "RET")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.decode import Instruction
from vmm.emulate.routine import JUMPED, Result
from vmm.exits import End, Stop, Stopped
from vmm.faults import GuestFault
from vmm.x86.bits import Vector
from vmm.x86.descriptors import (
    CALL_GATE,
    PRESENT,
    SEGMENT,
    TASK_GATE,
    TSS_AVAILABLE,
    Segment,
    dpl,
    system_type,
)

if TYPE_CHECKING:
    from vmm.vm import Vm


def _far_pointer(vm: Vm, instruction: Instruction) -> tuple[int, int]:
    """(offset, selector) of a far jump's or call's operand."""
    size = vm.operands.size(instruction)
    if instruction.opcode == 0xFF:
        if instruction.modrm >= 0xC0:
            raise GuestFault(Vector.UD)
        address, user = vm.operands.address(instruction), vm.vcpu.cpl == 3
        return vm.linear.read_int(address, size, user), vm.linear.read_int(address + size, 2, user)
    raw = instruction.raw
    return int.from_bytes(raw[-2 - size : -2], "little"), int.from_bytes(raw[-2:], "little")


def jmp_far(vm: Vm, instruction: Instruction) -> Result:
    offset, selector = _far_pointer(vm, instruction)
    gate = _gate(vm, selector)
    if gate is not None:
        offset, selector = gate
    vcpu = vm.vcpu
    vcpu.cs = vm.segments.code(selector & 0xFFFC if gate else selector)
    vcpu.eip = offset
    return JUMPED


def call_far(vm: Vm, instruction: Instruction) -> Result:
    """To the same level, directly or through a call gate. A call gate to an inner level can only come from user mode."""
    offset, selector = _far_pointer(vm, instruction)
    size, vcpu = vm.operands.size(instruction), vm.vcpu
    gate = _gate(vm, selector)
    if gate is not None:
        offset, selector = gate
        size, selector = 4, selector & 0xFFFC
    code = vm.segments.code(selector)
    vm.operands.push(vcpu.cs.selector, instruction.next, size=size)
    vcpu.cs = code
    vcpu.eip = offset
    return JUMPED


def _gate(vm: Vm, selector: int) -> tuple[int, int] | None:
    """(offset, selector) behind a call gate, or None when the selector names none. Raises for what cannot be jumped to."""
    if not selector & 0xFFFC:
        raise GuestFault(Vector.GP, 0)
    descriptor, _ = vm.segments.descriptor(selector)
    high, error = descriptor >> 32, selector & 0xFFFC
    if high & SEGMENT:
        return None
    kind = system_type(high)
    if kind not in (CALL_GATE, TASK_GATE, TSS_AVAILABLE) or dpl(high) < max(vm.vcpu.cpl, selector & 3):
        raise GuestFault(Vector.GP, error)
    if not high & PRESENT:
        raise GuestFault(Vector.NP, error)
    if kind != CALL_GATE:
        raise Stopped(Stop(End.UNSUPPORTED, "a far transfer to a task: hardware task switches are not supported"))
    return descriptor & 0xFFFF | high & 0xFFFF0000, descriptor >> 16 & 0xFFFF


def ret_far(vm: Vm, instruction: Instruction) -> Result:
    size = vm.operands.size(instruction)
    eip, selector = vm.operands.peek(2, size)
    selector &= 0xFFFF
    extra = int.from_bytes(instruction.raw[-2:], "little") if instruction.opcode == 0xCA else 0
    code = vm.segments.code(selector, returning=True)
    return_to(vm, eip, code, selector & 3, 2 * size, size, extra)
    return JUMPED


def return_to(vm: Vm, eip: int, code: Segment, level: int, used: int, size: int, extra: int) -> None:
    """The common end of IRET and RETF: pops the outer stack when the level changes, and releases `extra` bytes of arguments."""
    vcpu = vm.vcpu
    if level == vcpu.cpl:
        vm.operands.drop(used + extra)
    else:
        words = vm.operands.peek(used // size + extra // size + 2, size)
        esp, selector = words[-2:]
        stack = vm.segments.stack(selector & 0xFFFF, level)
        vcpu.ss = stack
        vcpu.esp = (esp if stack.wide else vcpu.esp & 0xFFFF0000 | esp & 0xFFFF) + extra
        vm.segments.drop_privileged_data(level)
    vcpu.cs = code
    vcpu.cpl = level
    vcpu.eip = eip
