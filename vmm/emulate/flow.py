"""Near jumps, calls and returns that have no template: 16-bit operand sizes, and any form where control must come back to the VMM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.decode import Instruction
from vmm.emulate.routine import JUMPED, Result
from vmm.x86.bits import Flag

if TYPE_CHECKING:
    from vmm.vm import Vm


def near_return(vm: Vm, instruction: Instruction) -> Result:
    size = vm.operands.size(instruction)
    (vm.vcpu.eip,) = vm.operands.peek(1, size)
    vm.operands.drop(size + (int.from_bytes(instruction.raw[-2:], "little") if instruction.opcode == 0xC2 else 0))
    return JUMPED


def indirect_jump(vm: Vm, instruction: Instruction) -> Result:
    vm.vcpu.eip = vm.operands.read(instruction, vm.operands.size(instruction))
    return JUMPED


def near_call(vm: Vm, instruction: Instruction) -> Result:
    """CALL rel and CALL r/m."""
    size = vm.operands.size(instruction)
    target = instruction.relative_target() if instruction.opcode == 0xE8 else vm.operands.read(instruction, size)
    vm.operands.push(instruction.next, size=size)
    vm.vcpu.eip = target
    return JUMPED


def near_jump(vm: Vm, instruction: Instruction) -> Result:
    vm.vcpu.eip = instruction.relative_target()
    return JUMPED


def conditional_jump(vm: Vm, instruction: Instruction) -> Result:
    if _condition(instruction.opcode & 0xF, vm.vcpu.flags()):
        vm.vcpu.eip = instruction.relative_target()
        return JUMPED
    return None


def _condition(code: int, flags: int) -> bool:
    """Condition codes of Jcc: SDM 1 appendix B "EFLAGS Condition Codes"."""
    carry, zero, sign, overflow, parity = (bool(flags & bit) for bit in (Flag.CF, Flag.ZF, Flag.SF, Flag.OF, Flag.PF))
    tests = (overflow, carry, zero, carry or zero, sign, parity, sign != overflow, zero or sign != overflow)
    return tests[code >> 1] != bool(code & 1)
