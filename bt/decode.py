"""Bytes to instructions: lengths and texts by Capstone, opcode and operand bytes by a look at the bytes themselves.

Knows the 32-bit instruction format (SDM 2 2.1 "Instruction Format"). Knows nothing of what an instruction does: that is
the table's business.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import capstone

OPERAND_SIZE, ADDRESS_SIZE, REPEAT, LOCK = 1, 2, 4, 8  # bits of Instruction.prefixes
_PREFIXES = {0x66: OPERAND_SIZE, 0x67: ADDRESS_SIZE, 0xF2: REPEAT, 0xF3: REPEAT, 0xF0: LOCK, 0x26: 0, 0x2E: 0, 0x36: 0, 0x3E: 0, 0x64: 0, 0x65: 0}
_LONG = frozenset((*_PREFIXES, 0x0F))
_SEGMENTS = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65))
_CHUNK = 8  # instructions decoded at once: Capstone decodes them all before it gives the first
_LONGEST = 15  # bytes of an instruction

_capstone = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
_capstone_16 = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_16)
_RECORD = ctypes.sizeof(capstone._cs_insn)
_SIZE = capstone._cs_insn.size.offset


@dataclass(slots=True)
class Instruction:
    """One guest instruction: where it stands and how it is encoded.

    address, next: EIP of it and of the one behind it. raw: its bytes. opcode: one byte or 0Fxx. at: index in `raw` of the byte
    behind the opcode (ModRM or immediate); modrm: that byte, 0 when there is none. segment: the override byte, or 0.
    """

    address: int
    next: int
    raw: bytes
    opcode: int
    at: int
    modrm: int
    prefixes: int
    segment: int

    @property
    def text(self) -> str:
        """The instruction as a person reads it."""
        for _, _, mnemonic, operands in _capstone.disasm_lite(self.raw, self.address, 1):
            return f"{mnemonic} {operands}" if operands else mnemonic
        return self.raw.hex()

    def relative_target(self) -> int:
        """Where a relative jump, branch or call goes (its last 1, 2 or 4 bytes are the displacement)."""
        opcode = self.opcode
        size = 1 if opcode < 0x100 and opcode & 0xF0 in (0x70, 0xE0) and opcode not in (0xE8, 0xE9) else 4
        if size == 4 and self.prefixes & OPERAND_SIZE:
            size = 2
        target = self.next + int.from_bytes(self.raw[-size:], "little", signed=True)
        return target & (0xFFFF if self.prefixes & OPERAND_SIZE else 0xFFFFFFFF)


def decode(code: bytes, address: int, wide: bool = True) -> Iterator[Instruction]:
    """Decodes `code`, which stands at EIP `address`, until its end or the first bytes that are no instruction.

    wide: 32-bit code; otherwise 16-bit code.
    """
    engine = _capstone if wide else _capstone_16
    at = 0
    while sizes := _sizes(engine, code[at : at + _LONGEST * _CHUNK], address + at):
        for size in sizes:
            raw = code[at : at + size]
            eip = address + at & 0xFFFFFFFF
            at += size
            opcode = raw[0]
            if opcode in _LONG:
                yield _parse(eip, raw)
            else:
                yield Instruction(eip, eip + size & 0xFFFFFFFF, raw, opcode, 1, raw[1] if size > 1 else 0, 0, 0)


def _sizes(engine: capstone.Cs, code: bytes, address: int) -> list[int]:
    """Sizes of the next instructions. By Capstone's C interface: of its records only the sizes are wanted here, and making
    Python strings of the rest would cost more than all else in decoding (0.3 us an instruction instead of 1)."""
    records = ctypes.POINTER(capstone._cs_insn)()
    count = capstone._cs.cs_disasm(engine.csh, code, len(code), address, _CHUNK, ctypes.byref(records))
    if not count:
        return []
    image = memoryview(ctypes.string_at(records, count * _RECORD)).cast("H")
    sizes = image[_SIZE // 2 :: _RECORD // 2].tolist()
    capstone._cs.cs_free(records, count)
    return sizes


def _parse(address: int, raw: bytes) -> Instruction:
    opcode, at = raw[0], 1
    prefixes = segment = 0
    while opcode in _PREFIXES and at < len(raw):
        prefixes |= _PREFIXES[opcode]
        if opcode in _SEGMENTS:
            segment = opcode
        opcode = raw[at]
        at += 1
    if opcode == 0x0F and at < len(raw):
        opcode = 0x0F00 | raw[at]
        at += 1
    return Instruction(address, address + len(raw) & 0xFFFFFFFF, raw, opcode, at, raw[at] if at < len(raw) else 0, prefixes, segment)


def memory_operand(instruction: Instruction, extra: int = 0, reg: int | None = None, at: int | None = None) -> bytes:
    """ModRM, SIB and displacement of a 32-bit addressed memory operand, `extra` bytes further on, with another reg field.

    at: where the ModRM byte stands, when not behind the opcode as parsed.
    The displacement is always given in 32 bits when `extra` is not zero (SDM 2 2.1.5 "Addressing-Mode Encoding").
    """
    raw = instruction.raw
    at = instruction.at if at is None else at
    modrm = raw[at]
    field = modrm & 0x38 if reg is None else reg << 3
    mod, rm = modrm >> 6, modrm & 7
    sib = raw[at + 1 : at + 2] if rm == 4 else b""
    behind = at + 1 + len(sib)
    absolute = mod == 0 and (rm == 5 or (rm == 4 and sib[0] & 7 == 5))
    size = 4 if mod == 2 or absolute else mod  # bytes of displacement: mod 0, 1, 2 mean 0, 1, 4
    displacement = int.from_bytes(raw[behind : behind + size], "little", signed=True)
    if extra == 0:
        return bytes((modrm & 0xC7 | field,)) + sib + raw[behind : behind + size]
    new_mod = 0 if absolute else 2
    return bytes((new_mod << 6 | field | rm,)) + sib + (displacement + extra & 0xFFFFFFFF).to_bytes(4, "little")


def operand_registers(instruction: Instruction) -> set[int]:
    """Numbers of the general registers that address the memory operand (32-bit addressing)."""
    raw, at = instruction.raw, instruction.at
    mod, rm = raw[at] >> 6, raw[at] & 7
    if rm != 4:
        return set() if mod == 0 and rm == 5 else {rm}
    sib = raw[at + 1]
    used = set() if mod == 0 and sib & 7 == 5 else {sib & 7}
    return used if sib >> 3 & 7 == 4 else used | {sib >> 3 & 7}


@functools.cache
def _detailed(wide: bool) -> capstone.Cs:
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32 if wide else capstone.CS_MODE_16)
    engine.detail = True
    return engine


def memory_access(raw: bytes, wide: bool = True) -> tuple[int, bool, bool]:
    """(bytes, reads, writes) of the explicit or implied memory operand of one instruction; (4, True, True) when there is none to be seen."""
    for instruction in _detailed(wide).disasm(raw, 0, 1):
        operands = [operand for operand in instruction.operands if operand.type == capstone.x86.X86_OP_MEM]
        if operands:
            access = 0
            for operand in operands:
                access |= operand.access
            return max(operand.size for operand in operands), bool(access & capstone.CS_AC_READ), bool(access & capstone.CS_AC_WRITE)
    return 4, True, True
