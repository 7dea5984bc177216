"""What looks at descriptors without loading them: LAR, LSL, VERR, VERW, ARPL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.decode import Instruction
from vmm.emulate.routine import Result, protected
from vmm.faults import GuestFault
from vmm.x86.bits import Flag, Vector
from vmm.x86.descriptors import (
    CALL_GATE,
    CODE,
    CONFORMING,
    LDT_TYPE,
    SEGMENT,
    TASK_GATE,
    TSS_AVAILABLE,
    TSS_BUSY,
    WRITABLE,
    dpl,
    segment,
    system_type,
)

if TYPE_CHECKING:
    from vmm.vm import Vm


def _visible(vm: Vm, selector: int, types: tuple[int, ...]) -> int | None:
    """The second word of the descriptor that LAR, LSL, VERR and VERW may see, else None."""
    if not selector & 0xFFFC:
        return None
    try:
        descriptor, _ = vm.segments.descriptor(selector)
    except GuestFault as fault:
        if fault.vector == Vector.PF:
            raise
        return None
    high = descriptor >> 32
    if not high & SEGMENT:
        if system_type(high) not in types:
            return None
    elif high & CODE and high & CONFORMING:
        return high
    return high if dpl(high) >= max(vm.vcpu.cpl, selector & 3) else None


def _set_zf(vm: Vm, on: bool) -> None:
    vm.vcpu.set_flags(vm.vcpu.flags() & ~Flag.ZF | (Flag.ZF if on else 0))


def lar(vm: Vm, instruction: Instruction) -> Result:
    protected(vm)
    high = _visible(vm, vm.operands.read(instruction, 2), (1, LDT_TYPE, 3, 4, TASK_GATE, TSS_AVAILABLE, TSS_BUSY, CALL_GATE))
    _set_zf(vm, high is not None)
    if high is not None:
        vm.operands.write_register(instruction.modrm >> 3 & 7, vm.operands.size(instruction), high & 0xF0FF00)
    return None


def lsl(vm: Vm, instruction: Instruction) -> Result:
    protected(vm)
    selector = vm.operands.read(instruction, 2)
    high = _visible(vm, selector, (1, LDT_TYPE, 3, TSS_AVAILABLE, TSS_BUSY))
    _set_zf(vm, high is not None)
    if high is not None:
        limit = segment(selector, vm.segments.descriptor(selector)[0]).limit
        vm.operands.write_register(instruction.modrm >> 3 & 7, vm.operands.size(instruction), limit)
    return None


def verr(vm: Vm, instruction: Instruction) -> Result:
    protected(vm)
    high = _visible(vm, vm.operands.read(instruction, 2), ())
    _set_zf(vm, high is not None and (not high & CODE or bool(high & WRITABLE)))
    return None


def verw(vm: Vm, instruction: Instruction) -> Result:
    protected(vm)
    high = _visible(vm, vm.operands.read(instruction, 2), ())
    _set_zf(vm, high is not None and not high & CODE and bool(high & WRITABLE))
    return None


def arpl(vm: Vm, instruction: Instruction) -> Result:
    protected(vm)
    destination = vm.operands.read(instruction, 2)
    source = vm.vcpu.register(instruction.modrm >> 3 & 7)
    lower = destination & 3 < source & 3
    vm.operands.write(instruction, 2, destination & ~3 | max(destination & 3, source & 3))  # written in any case, as this CPU does
    _set_zf(vm, lower)
    return None
