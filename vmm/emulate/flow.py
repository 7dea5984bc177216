"""Near jumps, calls and returns that have no template: 16-bit operand sizes, and any form where control must come back to the VMM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.decode import Instruction
from vmm.emulate.routine import JUMPED, Result
from vmm.faults import GuestFault
from vmm.x86.bits import Flag, Vector

if TYPE_CHECKING:
    from vmm.vm import Vm

_ECX = 1


def near_return(vm: Vm, instruction: Instruction) -> Result:
    size = vm.operands.size(instruction)
    (target,) = vm.operands.peek(1, size)
    _go(vm, target)
    vm.operands.drop(size + (int.from_bytes(instruction.raw[-2:], "little") if instruction.opcode == 0xC2 else 0))
    return JUMPED


def indirect_jump(vm: Vm, instruction: Instruction) -> Result:
    _go(vm, vm.operands.read(instruction, vm.operands.size(instruction)))
    return JUMPED


def near_call(vm: Vm, instruction: Instruction) -> Result:
    """CALL rel and CALL r/m."""
    size = vm.operands.size(instruction)
    target = instruction.relative_target() if instruction.opcode == 0xE8 else vm.operands.read(instruction, size)
    _check(vm, target)
    vm.operands.push(instruction.next, size=size)
    _go(vm, target)
    return JUMPED


def near_jump(vm: Vm, instruction: Instruction) -> Result:
    _go(vm, instruction.relative_target())
    return JUMPED


def conditional_jump(vm: Vm, instruction: Instruction) -> Result:
    if _condition(instruction.opcode & 0xF, vm.vcpu.flags()):
        _go(vm, instruction.relative_target())
        return JUMPED
    return None


def loop(vm: Vm, instruction: Instruction) -> Result:
    """LOOPNE, LOOPE, LOOP and JECXZ: the address size says how much of ECX counts."""
    vcpu, size = vm.vcpu, instruction.address_size
    count = vcpu.register(_ECX) & (1 << 8 * size) - 1
    if instruction.opcode == 0xE3:
        return near_jump(vm, instruction) if not count else None
    taken = count != 1 and (instruction.opcode == 0xE2 or bool(vcpu.flags() & Flag.ZF) == (instruction.opcode == 0xE1))
    if taken:
        _go(vm, instruction.relative_target())
    vm.operands.write_register(_ECX, size, count - 1)
    return JUMPED if taken else None


def _go(vm: Vm, target: int) -> None:
    _check(vm, target)
    vm.vcpu.eip = target


def _check(vm: Vm, target: int) -> None:
    if target > vm.vcpu.cs.limit:
        raise GuestFault(Vector.GP, 0)


def _condition(code: int, flags: int) -> bool:
    """Condition codes of Jcc: SDM 1 appendix B "EFLAGS Condition Codes"."""
    carry, zero, sign, overflow, parity = (bool(flags & bit) for bit in (Flag.CF, Flag.ZF, Flag.SF, Flag.OF, Flag.PF))
    tests = (overflow, carry, zero, carry or zero, sign, parity, sign != overflow, zero or sign != overflow)
    return tests[code >> 1] != bool(code & 1)
