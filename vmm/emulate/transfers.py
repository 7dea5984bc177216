"""Far jumps, calls and returns, through call gates too, to inner and outer privilege levels (SDM 2 "JMP", "CALL", "RET")."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bt.decode import Instruction
from vmm.emulate.routine import JUMPED, Result
from vmm.exits import End, Stop, Stopped
from vmm.faults import GuestFault
from vmm.stack import Stack
from vmm.x86.bits import Vector
from vmm.x86.descriptors import CALL_GATE, CALL_GATE_16, PRESENT, SEGMENT, TASK_GATE, TSS_AVAILABLE, TSS_AVAILABLE_16, Segment, dpl, system_type

if TYPE_CHECKING:
    from vmm.vm import Vm

_PARAMETERS = 0x1F  # in a gate's second word: how many are copied to an inner stack


class _Gate(NamedTuple):
    """A call gate: where it leads, the width of what is pushed, and how many parameters are copied."""

    offset: int
    selector: int
    size: int
    parameters: int


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
    gate, vcpu = _gate(vm, selector), vm.vcpu
    if gate is not None:
        offset, code = gate.offset, vm.segments.behind_gate(gate.selector, jump=True)
    else:
        code = vm.segments.code(selector)
    within(code, offset)
    vcpu.cs = code
    vcpu.eip = offset
    return JUMPED


def call_far(vm: Vm, instruction: Instruction) -> Result:
    """Directly or through a call gate to the same level; through a gate to an inner one, whose stack the TSS names."""
    offset, selector = _far_pointer(vm, instruction)
    size, vcpu = vm.operands.size(instruction), vm.vcpu
    gate = _gate(vm, selector)
    if gate is not None:
        offset, size, code = gate.offset, gate.size, vm.segments.behind_gate(gate.selector)
    else:
        code = vm.segments.code(selector)
    level, stack = vcpu.cpl if vm.segments.real else code.selector & 3, vm.operands.stack()
    frame = [vcpu.cs.selector, instruction.next]
    if gate is not None and level < vcpu.cpl:
        parameters = stack.peek(gate.parameters, size)
        stack = vm.segments.inner_stack(level)
        frame = [vcpu.ss.selector, vcpu.esp, *reversed(parameters), *frame]
    within(code, offset)
    stack.push(*frame, size=size)
    if stack.segment is not vcpu.ss:
        vcpu.ss = stack.segment
    vcpu.esp = stack.esp
    vcpu.cs = code
    vcpu.cpl = level
    vcpu.eip = offset
    return JUMPED


def _gate(vm: Vm, selector: int) -> _Gate | None:
    """What a call gate says, or None when the selector names none. Raises for what cannot be jumped to."""
    if vm.segments.real:
        return None
    if not selector & 0xFFFC:
        raise GuestFault(Vector.GP, 0)
    descriptor, _ = vm.segments.descriptor(selector)
    high, error = descriptor >> 32, selector & 0xFFFC
    if high & SEGMENT:
        return None
    kind = system_type(high)
    wide = kind == CALL_GATE
    if kind not in (CALL_GATE, CALL_GATE_16, TASK_GATE, TSS_AVAILABLE, TSS_AVAILABLE_16) or dpl(high) < max(vm.vcpu.cpl, selector & 3):
        raise GuestFault(Vector.GP, error)
    if not high & PRESENT:
        raise GuestFault(Vector.NP, error)
    if not wide and kind != CALL_GATE_16:
        raise Stopped(Stop(End.UNSUPPORTED, "a far transfer to a task: hardware task switches are not supported"))
    offset = descriptor & 0xFFFF | (high & 0xFFFF0000 if wide else 0)
    return _Gate(offset, descriptor >> 16 & 0xFFFF, 4 if wide else 2, high & _PARAMETERS)


def within(code: Segment, eip: int) -> None:
    """#GP(0) when a far transfer leads beyond its code segment."""
    if eip > code.limit:
        raise GuestFault(Vector.GP, 0)


def ret_far(vm: Vm, instruction: Instruction) -> Result:
    size = vm.operands.size(instruction)
    eip, selector = vm.operands.peek(2, size)
    selector &= 0xFFFF
    extra = int.from_bytes(instruction.raw[-2:], "little") if instruction.opcode == 0xCA else 0
    code = vm.segments.code(selector, returning=True)
    return_to(vm, eip, code, vm.vcpu.cpl if vm.segments.real else selector & 3, 2 * size, size, extra)
    return JUMPED


def return_to(vm: Vm, eip: int, code: Segment, level: int, used: int, size: int, extra: int) -> None:
    """The common end of IRET and RETF: pops the outer stack when the level changes, and releases `extra` bytes of arguments."""
    vcpu = vm.vcpu
    stack = vm.operands.stack()
    if level != vcpu.cpl:
        esp, selector = stack.peek(2, size, skip=used + extra)
        outer = vm.segments.stack(selector & 0xFFFF, level)
        stack = Stack(vm.linear, outer, esp if outer.wide else vcpu.esp & 0xFFFF0000 | esp & 0xFFFF, level == 3)
        used = 0
    within(code, eip)
    stack.drop(used + extra)
    if level != vcpu.cpl:
        vcpu.ss = stack.segment
        vm.segments.drop_privileged_data(level)
    vcpu.esp = stack.esp
    vcpu.cs = code
    vcpu.cpl = level
    vcpu.eip = eip
