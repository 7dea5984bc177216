"""Bytes to instructions: lengths of the plain ones by a table, of the others by Capstone; opcode and operand bytes by a look at them.

Knows the instruction format of 16-bit, 32-bit and, one at a time, 64-bit code (SDM 2 2.1 "Instruction Format"). Knows nothing of what an
instruction does: that is the table's business.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import capstone

OPERAND_SIZE, ADDRESS_SIZE, REPEAT, LOCK = 1, 2, 4, 8  # bits of Instruction.prefixes
_PREFIXES = {0x66: OPERAND_SIZE, 0x67: ADDRESS_SIZE, 0xF2: REPEAT, 0xF3: REPEAT, 0xF0: LOCK, 0x26: 0, 0x2E: 0, 0x36: 0, 0x3E: 0, 0x64: 0, 0x65: 0}
_SEGMENTS = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65))
_CHUNK = 6  # instructions decoded at once by Capstone, behind one that needs it
_REPNE, _REPE = 0xF2, 0xF3
_STRINGS = frozenset((*range(0x6C, 0x70), *range(0xA4, 0xA8), *range(0xAA, 0xB0)))
_LONGEST = 15  # bytes of an instruction
_XBEGIN = 0xC7  # among others

_capstone = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
_capstone_16 = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_16)
_RECORD = ctypes.sizeof(capstone._cs_insn)
_SIZE = capstone._cs_insn.size.offset


@dataclass(slots=True)
class Instruction:
    """One guest instruction: where it stands and how it is encoded.

    address, next: EIP of it and of the one behind it. raw: its bytes. opcode: one byte or 0Fxx. at: index in `raw` of the byte
    behind the opcode (ModRM or immediate); modrm: that byte, 0 when there is none. segment: the override byte, or 0. wide: 32-bit code.
    long: 64-bit code; rex: its REX prefix, or 0.
    """

    address: int
    next: int
    raw: bytes
    opcode: int
    at: int
    modrm: int
    prefixes: int
    segment: int
    wide: bool = True
    long: bool = False
    rex: int = 0

    @property
    def reg(self) -> int:
        """The register that ModRM's reg field names."""
        return self.modrm >> 3 & 7 | (self.rex & 4) << 1

    @property
    def rm(self) -> int:
        """The register that ModRM's r/m field names, where it names one."""
        return self.modrm & 7 | (self.rex & 1) << 3

    @property
    def text(self) -> str:
        """The instruction as a person reads it."""
        relative = self.opcode & 0xFFF0 in (0x70, 0xE0, 0x0F80) or self.opcode == _XBEGIN
        return _text(self.raw, self.address if relative else 0, self.wide, self.long)

    @property
    def operand_size(self) -> int:
        """Bytes of an operand, as prefix and kind of code give them: 2, 4 or 8."""
        if self.rex & 8:
            return 8
        return 2 if bool(self.prefixes & OPERAND_SIZE) == self.wide else 4

    @property
    def address_size(self) -> int:
        """Bytes of an address, likewise."""
        if self.long:
            return 4 if self.prefixes & ADDRESS_SIZE else 8
        return 2 if bool(self.prefixes & ADDRESS_SIZE) == self.wide else 4

    @property
    def is_repeated_string(self) -> bool:
        """Whether it is a string instruction with a REP prefix."""
        return bool(self.prefixes & REPEAT) and self.opcode in _STRINGS

    @property
    def repeats_while_equal(self) -> bool:
        """Which of the two prefixes a repeated CMPS or SCAS has: the last one counts."""
        prefixes = self.raw[: self.at - 1]
        return prefixes.rfind(_REPE) > prefixes.rfind(_REPNE)

    def relative_target(self) -> int:
        """Where a relative jump, branch or call goes (its last 1, 2 or 4 bytes are the displacement)."""
        opcode, width = self.opcode, self.operand_size
        size = 1 if opcode < 0x100 and opcode & 0xF0 in (0x70, 0xE0) and opcode not in (0xE8, 0xE9) else width
        target = self.next + int.from_bytes(self.raw[-size:], "little", signed=True)
        return target & (0xFFFF if width == 2 else 0xFFFFFFFF)


@functools.lru_cache(maxsize=1 << 16)
def _text(raw: bytes, address: int, wide: bool, long: bool) -> str:
    """Most texts come again and again: a dump of Linux has a million, of which one in ten is new."""
    engine = _capstone_64() if long else _capstone if wide else _capstone_16
    for _, _, mnemonic, operands in engine.disasm_lite(raw, address, 1):
        return f"{mnemonic} {operands}" if operands else mnemonic
    return raw.hex()


def decode(code: bytes, address: int, wide: bool = True) -> Iterator[Instruction]:
    """Decodes `code`, which stands at EIP `address`, until its end or the first bytes that are no instruction.

    wide: 32-bit code; otherwise 16-bit code.
    """
    at, end = 0, len(code)
    while at < end:
        opcode, long = code[at], 0
        form = _FORMS[opcode] if wide else 0
        if form >= _GROUP and at + 1 < end:
            second = code[at + 1]
            if form == _TWO_BYTES:
                opcode, long, form = 0x0F00 | second, 1, _LONG_FORMS[second]
            else:
                form = _GROUPS[opcode][second >> 3 & 7] if second < 0xC0 or opcode != _LEA else 0
        if 0 < form < _GROUP:  # the many plain instructions, by a look at two bytes: Capstone takes 1.3 us for each
            size = form & 7
            behind = at + 1 + long
            if form & _MODRM:
                if behind >= end:
                    return
                modrm = code[behind]
                size += _MODRM_SIZES[modrm]
                if modrm < 0x40 and modrm & 7 == 4 and behind + 1 < end and code[behind + 1] & 7 == 5:
                    size += 4  # no base but a displacement
            if at + size > end:
                return
            raw = code[at : at + size]
            eip = address + at & 0xFFFFFFFF
            at += size
            long += 1
            yield Instruction(eip, eip + size & 0xFFFFFFFF, raw, opcode, long, raw[long] if size > long else 0, 0, 0)
            continue
        sizes = _sizes(_capstone if wide else _capstone_16, code[at : at + _LONGEST * _CHUNK], address + at)
        if not sizes:
            return
        for size in sizes:
            yield _parse(address + at & 0xFFFFFFFF, code[at : at + size], wide)
            at += size


def decode_long(code: bytes, address: int) -> Instruction | None:
    """The instruction that 64-bit `code` at RIP `address` begins with; None: there is none, or it is cut off."""
    for _, size, _, _ in _capstone_64().disasm_lite(code[:_LONGEST], address, 1):
        return _parse_long(address, code[:size])
    return None


@functools.cache
def _capstone_64() -> capstone.Cs:
    return capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)


_MODRM = 8  # in a form: a ModRM byte and what it brings follow the opcode
_GROUP, _TWO_BYTES, _LEA = 16, 17, 0x8D  # the form depends on the ModRM byte's reg field; on the second opcode byte


def _modrm_size(modrm: int) -> int:
    """Bytes of a ModRM byte with its SIB byte and displacement, but for the displacement that the SIB byte may ask for."""
    mod, rm = modrm >> 6, modrm & 7
    if mod == 3:
        return 1
    return 1 + (rm == 4) + (1 if mod == 1 else 4 if mod == 2 or rm == 5 else 0)


def _plain_forms() -> list[int]:
    """By first byte: the size of the opcode and its immediate, and whether a ModRM byte follows; 0: ask Capstone.

    Only forms that are defined for every ModRM byte stand here (SDM 2D appendix A "Opcode Map").
    """
    forms = [0] * 256
    for row in range(0, 0x40, 8):  # add or adc sbb and sub xor cmp
        forms[row : row + 6] = [_MODRM | 1] * 4 + [2, 5]
    forms[0x40:0x60] = [1] * 0x20  # inc dec push pop
    forms[0x68], forms[0x69], forms[0x6A], forms[0x6B] = 5, _MODRM | 5, 2, _MODRM | 2
    forms[0x70:0x80] = [2] * 16  # jcc
    forms[0x80], forms[0x81], forms[0x83] = _MODRM | 2, _MODRM | 5, _MODRM | 2
    forms[0x84:0x8C] = [_MODRM | 1] * 8  # test xchg mov
    forms[0x90:0x9A] = [1] * 10  # nop xchg cwde cdq
    forms[0xA0:0xA4] = [5] * 4  # mov with an offset
    forms[0xA8], forms[0xA9] = 2, 5
    forms[0xB0:0xC0] = [2] * 8 + [5] * 8  # mov with an immediate
    forms[0xC0], forms[0xC1] = _MODRM | 2, _MODRM | 2
    forms[0xC3] = forms[0xC9] = 1
    forms[0xD1] = forms[0xD3] = _MODRM | 1
    forms[0xE8] = forms[0xE9] = 5
    forms[0xEB] = 2
    forms[0xFA] = forms[0xFB] = forms[0xFC] = forms[0xFD] = 1
    forms[0x0F] = _TWO_BYTES
    for opcode in _GROUPS:
        forms[opcode] = _GROUP
    return forms


def _long_forms() -> list[int]:
    """The same by the byte behind 0Fh."""
    forms = [0] * 256
    forms[0x40:0x50] = [_MODRM | 2] * 16  # cmovcc
    forms[0x80:0x90] = [6] * 16  # jcc
    forms[0x90:0xA0] = [_MODRM | 2] * 16  # setcc
    forms[0xA2] = forms[0x31] = 2  # cpuid rdtsc
    for opcode in (0xA3, 0xAB, 0xAF, 0xB3, 0xB6, 0xB7, 0xBB, 0xBE, 0xBF):  # bt bts imul btr movzx btc movsx
        forms[opcode] = _MODRM | 2
    forms[0xA4] = forms[0xAC] = _MODRM | 3  # shld shrd
    return forms


_GROUPS = {  # by opcode and reg field
    _LEA: [_MODRM | 1] * 8,  # of memory only
    0xC6: [_MODRM | 2] + [0] * 7,
    0xC7: [_MODRM | 5] + [0] * 7,
    0xF6: [_MODRM | 2, 0] + [_MODRM | 1] * 6,
    0xF7: [_MODRM | 5, 0] + [_MODRM | 1] * 6,
    0xFE: [_MODRM | 1] * 2 + [0] * 6,
    0xFF: [_MODRM | 1] * 3 + [0, _MODRM | 1, 0, _MODRM | 1, 0],
}


_FORMS = _plain_forms()
_LONG_FORMS = _long_forms()
_MODRM_SIZES = [_modrm_size(modrm) for modrm in range(256)]


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


def _parse(address: int, raw: bytes, wide: bool) -> Instruction:
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
    return Instruction(address, address + len(raw) & 0xFFFFFFFF, raw, opcode, at, raw[at] if at < len(raw) else 0, prefixes, segment, wide)


def _parse_long(address: int, raw: bytes) -> Instruction:
    """As `_parse`: a REX prefix counts where it stands last of all prefixes (SDM 2 2.2.1 "REX Prefixes")."""
    at = 0
    while at < len(raw) - 1 and (raw[at] in _PREFIXES or raw[at] & 0xF0 == 0x40):
        at += 1
    rex = raw[at - 1] if at and raw[at - 1] & 0xF0 == 0x40 else 0
    legacy = bytes(byte for byte in raw[:at] if byte & 0xF0 != 0x40)
    found = _parse(address, legacy + raw[at:], True)
    behind = len(raw) - len(found.raw) + found.at
    next_ = address + len(raw) & 0xFFFF_FFFF_FFFF_FFFF
    return Instruction(address, next_, raw, found.opcode, behind, found.modrm, found.prefixes, found.segment, True, True, rex)


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


_MASKED_MOVE = 0x0FF7  # maskmovq and maskmovdqu store at DS:EDI
_NOT_OVERRIDDEN = (_LEA, 0x6C, 0x6D, 0xAA, 0xAB, 0xAE, 0xAF)  # lea accesses no memory; ins stos scas theirs through ES, always


def has_memory_operand(instruction: Instruction) -> bool:
    """Whether an instruction accesses memory by an operand, explicit or implied, that a segment override concerns."""
    if instruction.opcode in _NOT_OVERRIDDEN:
        return False
    if instruction.opcode == _MASKED_MOVE:  # of which Capstone names the registers only
        return True
    detailed = _detailed(instruction.wide).disasm(instruction.raw, 0, 1)
    return any(operand.type == capstone.x86.X86_OP_MEM for found in detailed for operand in found.operands)


_X87_STORES = {0xD9: (2, 3, 6, 7), 0xDB: (1, 2, 3, 7), 0xDD: (1, 2, 3, 6, 7), 0xDF: (1, 2, 3, 6, 7)}  # reg fields, by opcode
_STRINGS = frozenset((*range(0x6C, 0x70), *range(0xA4, 0xA8), *range(0xAA, 0xB0)))
_COMPARE_AND_EXCHANGE = 0x0FC7


def stores_by_override(instruction: Instruction) -> bool:
    """Whether an instruction writes the memory operand that a segment override concerns. (String instructions store through ES, always.)"""
    opcode, reg = instruction.opcode, instruction.modrm >> 3 & 7
    if opcode in _STRINGS or not has_memory_operand(instruction):
        return False
    if 0xD8 <= opcode <= 0xDF:  # Capstone says of some that they read
        return reg in _X87_STORES.get(opcode, ())
    return opcode in (_COMPARE_AND_EXCHANGE, _MASKED_MOVE) or memory_access(instruction.raw, instruction.wide)[2]


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
