"""Moves to and from memory that the VMM carries out by itself, where what lies there has made them fault again and again: devices and page tables.

Knows MOV and MOVZX. Everything else that reaches a device is run by the CPU on a scratch frame (vmm/mmio.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.decode import Instruction
from vmm.cpu_state import Cpu
from vmm.emulate.routine import Result
from vmm.mmio import device_access

if TYPE_CHECKING:
    from vmm.vm import Vm

_WORD, _LOADS = 1, (0x8A, 0x8B, 0xA0, 0xA1, 0x0FB6, 0x0FB7)  # the opcode's lowest bit: not a byte
_OFFSETS, _IMMEDIATES, _ZERO_EXTENDED = range(0xA0, 0xA4), (0xC6, 0xC7), (0x0FB6, 0x0FB7)


def move_address(vm: Vm, instruction: Instruction) -> int:
    """Linear address of the operand in memory."""
    if instruction.opcode not in _OFFSETS:
        return vm.operands.address(instruction)
    offset = int.from_bytes(instruction.raw[instruction.at :], "little")
    return vm.operands.overridden(instruction, Cpu.DS) + offset & 0xFFFFFFFF


def move(vm: Vm, instruction: Instruction) -> Result:
    opcode, vcpu, operands = instruction.opcode, vm.vcpu, vm.operands
    whole = operands.size(instruction)
    size = (2 if opcode & _WORD else 1) if opcode in _ZERO_EXTENDED else whole if opcode & _WORD else 1
    gva = move_address(vm, instruction)
    register = 0 if opcode in _OFFSETS else instruction.reg
    if opcode in _LOADS:
        value = _access(vm, gva, size, None)
        if size == 1 and opcode not in _ZERO_EXTENDED:
            shift = register & 4 and 8
            register &= 3
            vcpu.set_register(register, vcpu.register(register) & ~(0xFF << shift) | value << shift)
        else:
            operands.write_register(register, whole, value)
        return None
    operands.check_written_segment(instruction)
    if opcode in _IMMEDIATES:
        value = int.from_bytes(instruction.raw[-size:], "little")
    elif size == 1:
        value = vcpu.register(register & 3) >> (8 if register & 4 else 0) & 0xFF
    else:
        value = vcpu.register(register) & (1 << 8 * size) - 1
    _access(vm, gva, size, value)
    return None


def _access(vm: Vm, gva: int, size: int, value: int | None) -> int:
    """Reads (value None) or writes memory with the supervisor's rights, RAM or a device's. Raises GuestPageFault, with nothing done."""
    room = 0x1000 - (gva & 0xFFF)
    if size > room:
        if value is not None:
            vm.linear.check_writable(gva, size)
        behind = gva + room & 0xFFFFFFFF
        low = _access(vm, gva, room, None if value is None else value & (1 << 8 * room) - 1)
        return low | _access(vm, behind, size - room, None if value is None else value >> 8 * room) << 8 * room
    gpa = vm.paging.supervisor(gva, value is not None)
    if gpa >> 12 >= vm.memory.count:
        return device_access(vm, gpa, size, value)
    if value is None:
        return int.from_bytes(vm.memory.read(gpa, size), "little")
    vm.memory.write(gpa, value.to_bytes(size, "little"))
    return 0
