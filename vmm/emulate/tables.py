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
    segment,
    system_type,
)

if TYPE_CHECKING:
    from vmm.vm import Vm


def _load_table(vm: Vm, instruction: Instruction) -> tuple[int, int]:
    privileged(vm)
    address = vm.operands.address(instruction)
    limit, base = vm.linear.read_int(address, 2), vm.linear.read_int(address + 2, 4)
    return base & 0xFFFFFF if instruction.operand_size == 2 else base, limit


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
    if instruction.operand_size == 2:
        base &= 0xFFFFFF
    vm.linear.write(vm.operands.written_address(instruction), limit.to_bytes(2, "little") + base.to_bytes(4, "little"), vcpu.cpl == 3)
    return None


def lldt(vm: Vm, instruction: Instruction) -> Result:
    protected(vm)
    privileged(vm)
    selector = vm.operands.read(instruction, 2)
    if not selector & 0xFFFC:
        vm.vcpu.ldt = NULL
    else:
        descriptor, _ = _system_descriptor(vm, selector, (LDT_TYPE,))
        vm.vcpu.ldt = segment(selector, descriptor)
    vm.descriptors.drop_all()
    return None


def ltr(vm: Vm, instruction: Instruction) -> Result:
    protected(vm)
    privileged(vm)
    selector = vm.operands.read(instruction, 2)
    if not selector & 0xFFFC:
        raise GuestFault(Vector.GP, 0)
    descriptor, address = _system_descriptor(vm, selector, (TSS_AVAILABLE, 1))
    busy = descriptor | 2 << 40
    vm.linear.write_int(address + 5, 1, busy >> 40)
    vm.vcpu.tr = segment(selector, busy)
    return None


def _system_descriptor(vm: Vm, selector: int, types: tuple[int, ...]) -> tuple[int, int]:
    error = selector & 0xFFFC
    if selector & 4:
        raise GuestFault(Vector.GP, error)
    descriptor, address = vm.segments.descriptor(selector)
    high = descriptor >> 32
    if high & SEGMENT or system_type(high) not in types:
        raise GuestFault(Vector.GP, error)
    if not high & PRESENT:
        raise GuestFault(Vector.NP, error)
    return descriptor, address


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
