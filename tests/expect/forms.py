"""An example or more of every form of every row of the table of sensitive instructions, as bytes.

Reads a row's opcode as the manual writes it and adds operands. Knows no translation.
"""

from bt.decode import decode
from bt.sensitive import TABLE, Row, Treatment, classify

_WITH_MODRM = {"0F 20": "r", "0F 21": "r", "0F 22": "r", "0F 23": "r", "0F 02": "rm", "0F 03": "rm", "63": "rm", "0F B2": "m"}
_MEMORY = (0x43, 0x08)  # ModRM and displacement of [ebx+8]
_BEHIND = bytes((0x10, 0, 0, 0, 0x20, 0, 0, 0))  # displacements and immediates: the decoder takes what it needs


def forms(row: Row) -> list[bytes]:
    """The row's instruction with register EDX, with memory [ebx+8], and with an operand-size prefix where that is another template."""
    parts = row.opcode.split()
    opcode = bytes(int(part, 16) for part in parts if len(part) == 2 and not part.startswith("/"))
    reg = next((int(part[1:]) for part in parts if part.startswith("/")), None)
    kinds = parts[-1] if parts[-1] in ("m", "r") else "rm" if reg is not None else ""
    if reg is None:
        kinds = _WITH_MODRM.get(row.opcode, "")
    if opcode[:2] == b"\x0f\x20":
        kinds = "r"
    made = [opcode] if not kinds else []
    if reg is None:  # of the rows that share an opcode this one has what is left
        reg = next((n for n in range(8) if classify(int(opcode.hex(), 16), n << 3 | (0xC2 if "r" in kinds else 0x43)) is row), 0)
    field = reg << 3
    if "r" in kinds:
        made.append(opcode + bytes((0xC2 | field,)))
    if "m" in kinds:
        made.append(opcode + bytes((_MEMORY[0] | field, _MEMORY[1])))
    if row.treatment is Treatment.READ_WORD and opcode[:2] != b"\x0f\x20":
        made.append(b"\x66" + made[0])
    if row.treatment is Treatment.READ_WORD and "m" in kinds:
        made.append(opcode + bytes((0x04 | field, 0x88)))  # [eax+ecx*4]: no scratch register to be taken from these
    if row.treatment in (Treatment.INDIRECT_CALL, Treatment.INDIRECT_JUMP):
        made.append(opcode + bytes((0xC1 | field,)))  # ECX itself
        made.append(opcode + bytes((0x44 | field, 0x24, 8)))  # [esp+8]
    return [_one(code) for code in made]


def _one(code: bytes) -> bytes:
    """The first instruction of the bytes and what may follow them; the bytes themselves when they are none."""
    for instruction in decode(code + _BEHIND, 0):
        return instruction.raw
    return code


def rows(treatment: Treatment) -> list[Row]:
    """The table's rows of one treatment."""
    return [row for row in TABLE if row.treatment is treatment]
