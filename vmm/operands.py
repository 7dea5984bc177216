"""Operands of an instruction that the VMM emulates: effective addresses, and reads and writes of registers and memory.

Knows ModRM, SIB, REX and segment overrides (SDM 2 2.1.5 "Addressing-Mode Encoding of ModR/M and SIB Bytes", 2.2.1 "REX Prefixes"), in 64-bit,
32-bit and 16-bit addressing. Knows no instruction.
"""

from __future__ import annotations

from bt.decode import Instruction
from vmm.cpu_state import Cpu
from vmm.faults import GuestFault
from vmm.mmu.linear import LinearMemory
from vmm.stack import Stack
from vmm.vcpu import Vcpu
from vmm.x86.bits import Cr0, Vector
from vmm.x86.descriptors import Segment

_OVERRIDES = {0x26: Cpu.ES, 0x2E: Cpu.CS, 0x36: Cpu.SS, 0x3E: Cpu.DS, 0x64: Cpu.FS, 0x65: Cpu.GS}
_CS_OVERRIDE = 0x2E
_BASES_16 = ((3, 6), (3, 7), (5, 6), (5, 7), (6,), (7,), (5,), (3,))
_ESP, _EBP = 4, 5


class Operands:
    """Operand access for one virtual CPU."""

    def __init__(self, vcpu: Vcpu, linear: LinearMemory) -> None:
        self.vcpu, self.linear = vcpu, linear

    def size(self, instruction: Instruction) -> int:
        """The operand size that prefixes and code segment give: 2 or 4 bytes."""
        return instruction.operand_size

    def base(self, register: int) -> int:
        """Linear base of a segment register (by its index in the state)."""
        if register == Cpu.CS:
            return self.vcpu.cs.base
        if register == Cpu.SS:
            return self.vcpu.ss.base
        return self.vcpu.state[register + Cpu.BASE]

    def overridden(self, instruction: Instruction, register: int) -> int:
        """Linear base of the segment that an instruction names by its prefix, or else of `register`."""
        return self.base(_OVERRIDES.get(instruction.segment, register))

    def address(self, instruction: Instruction) -> int:
        """Linear address of the memory operand."""
        raw, at = instruction.raw, instruction.at
        if instruction.long:
            return self._address_64(instruction)
        mod, rm = raw[at] >> 6, raw[at] & 7
        offset, segment = self._offset_16(raw, at, mod, rm) if instruction.address_size == 2 else self._offset_32(raw, at, mod, rm)
        return self.overridden(instruction, segment) + offset & 0xFFFFFFFF

    def _address_64(self, instruction: Instruction) -> int:
        """In 64-bit code, where only FS and GS have a base, and a displacement alone is relative to the next instruction."""
        raw, behind, register = instruction.raw, instruction.at + 1, self.vcpu.register
        mod, rm, rex = instruction.modrm >> 6, instruction.modrm & 7, instruction.rex
        offset, relative = 0, mod == 0 and rm == 5
        if rm == 4:
            sib = raw[behind]
            behind += 1
            index, rm = sib >> 3 & 7 | (rex & 2) << 2, sib & 7
            if index != 4:
                offset += register(index) << (sib >> 6)
        if mod == 0 and rm == 5:
            size = 4
            offset += instruction.next if relative else 0
        else:
            offset += register(rm | (rex & 1) << 3)
            size = (0, 1, 4)[mod]
        offset += int.from_bytes(raw[behind : behind + size], "little", signed=True)
        offset &= (1 << 8 * instruction.address_size) - 1
        named = _OVERRIDES.get(instruction.segment)
        base = self.vcpu.state[named + Cpu.BASE] | self.vcpu.state[named + Cpu.BASE + 1] << 32 if named in (Cpu.FS, Cpu.GS) else 0
        return base + offset & 0xFFFF_FFFF_FFFF_FFFF

    def _offset_32(self, raw: bytes, at: int, mod: int, rm: int) -> tuple[int, int]:
        register, segment, behind, offset = self.vcpu.register, Cpu.DS, at + 1, 0
        if rm == 4:
            sib = raw[behind]
            behind += 1
            index, rm = sib >> 3 & 7, sib & 7
            if index != 4:
                offset += register(index) << (sib >> 6)
        if mod == 0 and rm == 5:
            return offset + int.from_bytes(raw[behind : behind + 4], "little") & 0xFFFFFFFF, segment
        if rm in (_ESP, _EBP):
            segment = Cpu.SS
        offset += register(rm)
        size = (0, 1, 4)[mod]
        return offset + int.from_bytes(raw[behind : behind + size], "little", signed=True) & 0xFFFFFFFF, segment

    def _offset_16(self, raw: bytes, at: int, mod: int, rm: int) -> tuple[int, int]:
        if mod == 0 and rm == 6:
            return int.from_bytes(raw[at + 1 : at + 3], "little"), Cpu.DS
        bases = _BASES_16[rm]
        offset = sum(self.vcpu.register(n) for n in bases) + int.from_bytes(raw[at + 1 : at + 1 + mod], "little", signed=True)
        return offset & 0xFFFF, Cpu.SS if 5 in bases else Cpu.DS

    def read(self, instruction: Instruction, size: int) -> int:
        """The r/m operand of `size` bytes."""
        if instruction.modrm >= 0xC0:
            return self.vcpu.register(instruction.rm) & (1 << 8 * size) - 1
        return self.linear.read_int(self.address(instruction), size, self.vcpu.cpl == 3)

    def write(self, instruction: Instruction, size: int, value: int) -> None:
        """Writes the r/m operand; a register keeps its upper part when `size` is 2."""
        if instruction.modrm >= 0xC0:
            self.write_register(instruction.rm, size, value)
        else:
            self.linear.write_int(self.written_address(instruction), size, value, self.vcpu.cpl == 3)

    def written_address(self, instruction: Instruction) -> int:
        """Linear address of a memory operand that is to be written."""
        self.check_written_segment(instruction)
        return self.address(instruction)

    def check_written_segment(self, instruction: Instruction) -> None:
        """#GP when an instruction that writes memory names a code segment, which cannot be written (SDM 3A 3.4.5.1)."""
        if instruction.segment == _CS_OVERRIDE and self.vcpu.cr0 & Cr0.PE:
            raise GuestFault(Vector.GP, 0)

    def write_register(self, number: int, size: int, value: int) -> None:
        """Writes a general register's low `size` bytes."""
        vcpu = self.vcpu
        mask = (1 << 8 * size) - 1
        vcpu.set_register(number, (0 if size == 4 else vcpu.register(number) & ~mask) | value & mask)

    def stack(self) -> Stack:
        """The current stack."""
        vcpu = self.vcpu
        return Stack(self.linear, vcpu.ss, vcpu.esp, vcpu.cpl == 3)

    def push(self, *values: int, size: int = 4) -> None:
        """Pushes values on the current stack, the first one first; nothing changes when any would fault."""
        stack = self.stack()
        stack.push(*values, size=size)
        self.vcpu.esp = stack.esp

    def peek(self, count: int, size: int = 4) -> list[int]:
        """The `count` topmost values of the stack, which stay there."""
        return self.stack().peek(count, size)

    def drop(self, size: int, segment: Segment | None = None) -> None:
        """Moves the stack pointer over `size` bytes of the current stack, or of one in `segment`."""
        stack = self.stack() if segment is None else Stack(self.linear, segment, self.vcpu.esp, False)
        stack.drop(size)
        self.vcpu.esp = stack.esp
