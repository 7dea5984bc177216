"""An example or more of every form of every row of the table of sensitive instructions, as bytes.

Reads a row's opcode as the manual writes it and its forms as the table names them, and adds operands. Knows no translation.
"""

from bt.decode import decode
from bt.sensitive import TABLE, Row, Treatment, row_of

_BEHIND = bytes((0x10, 0, 0, 0, 0x20, 0, 0, 0))  # displacements and immediates: the decoder takes what it needs
_MEMORY = 0x43, 8  # ModRM and displacement of [ebx+8]
_REGISTERS = (2, 0, 1, 3, 4, 5, 6, 7)  # EDX where the row leaves the choice


def form(row: Row, word: str) -> bytes:
    """The row's instruction with register EDX or memory [ebx+8], in one of the forms that the row names."""
    prefixes = (b"\xf3" if word.startswith("rep") else b"") + (b"\x66" if word.endswith("16") else b"")
    parts = row.opcode.split()
    numbers = [int(part, 16) for part in parts if part not in ("m", "r") and not part.startswith("/")]
    code = bytes(numbers)
    opcode = 0x0F00 | numbers[1] if numbers[0] == 0x0F else numbers[0]
    if len(numbers) > 1 + (numbers[0] == 0x0F) or _takes_no_modrm(row, word):
        return _one(prefixes + code)
    kind = word[:1] if word[:1] in ("r", "m") else parts[-1] if parts[-1] in ("r", "m") else "r"
    modrms = [_MEMORY[0] | reg << 3 for reg in range(8)] if kind == "m" else [0xC0 | reg << 3 | rm for rm in _REGISTERS for reg in range(8)]
    modrm = next(modrm for modrm in modrms if row_of(opcode, modrm) is row)
    return _one(prefixes + code + (bytes((modrm, _MEMORY[1])) if kind == "m" else bytes((modrm,))))


def _takes_no_modrm(row: Row, word: str) -> bool:
    named = any(part in ("m", "r") or part.startswith("/") for part in row.opcode.split())
    return not named and word[:1] not in ("r", "m") and row.name not in ("mov r,cr", "mov cr,r", "mov r,dr", "mov dr,r") or word.startswith("rep")


def forms(row: Row) -> list[bytes]:
    """One instruction for each form of the row, and more of those that have templates which depend on the registers used."""
    made = [form(row, word) for word in row.forms.split() or [""]]
    field = made[-1][-2] & 0x38 if "m" in row.forms else 0
    opcode = bytes(int(part, 16) for part in row.opcode.split() if len(part) == 2 and not part.startswith("/"))
    if row.treatment is Treatment.READ_WORD and "m" in row.forms.split():
        made.append(opcode + bytes((0x04 | field, 0x88)))  # [eax+ecx*4]: no scratch register to be taken from these
    if row.treatment in (Treatment.INDIRECT_CALL, Treatment.INDIRECT_JUMP):
        made.append(opcode + bytes((0xC1 | field,)))  # ECX itself
        made.append(opcode + bytes((0x44 | field, 0x24, 8)))  # [esp+8]
    return made


def _one(code: bytes) -> bytes:
    """The first instruction of the bytes and what may follow them; the bytes themselves when they are none."""
    for instruction in decode(code + _BEHIND, 0):
        return instruction.raw
    return code


def rows(treatment: Treatment) -> list[Row]:
    """The table's rows of one treatment."""
    return [row for row in TABLE if row.treatment is treatment]
