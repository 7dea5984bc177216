"""Descriptor-table and task registers: LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT, STR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.decode import Instruction
from vmm.emulate.routine import Result, privileged, protected
from vmm.faults import GuestFault
from vmm.x86.bits import Vector
from vmm.x86.descriptors import (
    LDT_TYPE,
    NULL,
    PRESENT,
    SEGMENT,
    TSS_AVAILABLE,
    TSS_AVAILABLE_16,
    Segment,
    segment,
    system_type,
)

if TYPE_CHECKING:
    from vmm.vm import Vm


def _load_table(vm: Vm, instruction: Instruction) -> tuple[int, int]:
    privileged(vm)
    address = vm.operands.address(instruction)
    limit, base = vm.linear.read_int(address, 2), vm.linear.read_int(address + 2, 8 if instruction.long else 4)
    return base & 0xFFFFFF if instruction.operand_size == 2 and not instruction.long else base, limit


def lgdt(vm: Vm, instruction: Instruction) -> Result:
    vm.vcpu.gdt_base, vm.vcpu.gdt_limit = _load_table(vm, instruction)
    vm.descriptors.drop_all()
    return None


def lidt(vm: Vm, instruction: Instruction) -> Result:
    vm.vcpu.idt_base, vm.vcpu.idt_limit = _load_table(vm, instruction)
    return None


def store_table(vm: Vm, instruction: Instruction) -> Result:
    """SGDT, SIDT."""
    vcpu = vm.vcpu
    base, limit = (vcpu.idt_base, vcpu.idt_limit) if instruction.modrm >> 3 & 1 else (vcpu.gdt_base, vcpu.gdt_limit)
    if instruction.operand_size == 2 and not instruction.long:
        base &= 0xFFFFFF
    image = limit.to_bytes(2, "little") + base.to_bytes(8 if instruction.long else 4, "little")
    vm.linear.write(vm.operands.written_address(instruction), image, vcpu.cpl == 3)
    return None


def lldt(vm: Vm, instruction: Instruction) -> Result:
    protected(vm)
    privileged(vm)
    selector = vm.operands.read(instruction, 2)
    if not selector & 0xFFFC:
        vm.vcpu.ldt = NULL
    else:
        descriptor, _ = _system_descriptor(vm, selector, (LDT_TYPE,))
        vm.vcpu.ldt = _system_segment(vm, selector, descriptor)
    vm.descriptors.drop_all()
    return None


def ltr(vm: Vm, instruction: Instruction) -> Result:
    protected(vm)
    privileged(vm)
    selector = vm.operands.read(instruction, 2)
    if not selector & 0xFFFC:
        raise GuestFault(Vector.GP, 0)
    kinds = (TSS_AVAILABLE,) if vm.paging.long else (TSS_AVAILABLE, TSS_AVAILABLE_16)
    descriptor, address = _system_descriptor(vm, selector, kinds)
    busy = descriptor | 2 << 40
    vm.linear.write_int(address + 5, 1, busy >> 40 & 0xFF)
    vm.vcpu.tr = _system_segment(vm, selector, busy)
    return None


def _system_descriptor(vm: Vm, selector: int, types: tuple[int, ...]) -> tuple[int, int]:
    error = selector & 0xFFFC
    if selector & 4:
        raise GuestFault(Vector.GP, error)
    descriptor, address = vm.segments.system_descriptor(selector)
    high = descriptor >> 32 & 0xFFFFFFFF
    if high & SEGMENT or system_type(high) not in types or descriptor >> 104 & 0x1F:
        raise GuestFault(Vector.GP, error)
    if not high & PRESENT:
        raise GuestFault(Vector.NP, error)
    return descriptor, address


def _system_segment(vm: Vm, selector: int, descriptor: int) -> Segment:
    """The hidden part that loading a system descriptor gives: in long mode it has a base of 64 bits."""
    loaded = segment(selector, descriptor & 0xFFFF_FFFF_FFFF_FFFF)
    if not vm.paging.long:
        return loaded
    return Segment(selector, loaded.base | descriptor >> 32 & 0xFFFFFFFF_00000000, loaded.limit, loaded.attributes)


def sldt(vm: Vm, instruction: Instruction) -> Result:
    protected(vm)
    size = vm.operands.size(instruction) if instruction.modrm >= 0xC0 else 2
    vm.operands.write(instruction, size, vm.vcpu.ldt.selector)
    return None


def str_(vm: Vm, instruction: Instruction) -> Result:
    protected(vm)
    size = vm.operands.size(instruction) if instruction.modrm >= 0xC0 else 2
    vm.operands.write(instruction, size, vm.vcpu.tr.selector)
    return None
