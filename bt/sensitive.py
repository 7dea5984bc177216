"""THE table: every instruction that a translator may not copy, its class, and how the bt back-end treats it.

One row per instruction form. Everything that decides how an instruction is translated is read off this table; the emitter
has one routine per treatment and none per opcode. Source of the list: Robin & Irvine 2000, table of sensitive unprivileged
instructions; SDM 3A 5.9 "Privileged Instructions"; SDM 2 for the encodings.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Class(Enum):
    """Popek and Goldberg's classes, and `FLOW` for what changes EIP and must therefore be relocated."""

    PRIVILEGED = auto()  # traps in user mode: virtualizable by trap and emulate
    SENSITIVE = auto()  # shows or changes privileged state without a trap: what makes x86 hard
    FLOW = auto()
    UNDEFINED = auto()  # not offered by the virtual CPU


class Treatment(Enum):
    """What the translator emits."""

    CALLOUT = auto()  # a trapping stub: the VMM emulates the instruction
    NOTHING = auto()  # no code: the instruction has no effect on this machine
    CLEAR_IF = auto()
    SET_IF = auto()
    PUSH_FLAGS = auto()
    POP_FLAGS = auto()
    RETURN_FROM_INTERRUPT = auto()
    READ_WORD = auto()  # a register or memory operand receives a word that the VMM keeps
    PUSH_WORD = auto()  # that word is pushed
    READ_TABLE = auto()  # sgdt, sidt: limit and base
    JUMP = auto()
    BRANCH = auto()  # conditional, rel8 or rel32
    LOOP = auto()  # loop, loope, loopne, jecxz: rel8 only
    CALL = auto()
    RETURN = auto()
    INDIRECT_JUMP = auto()
    INDIRECT_CALL = auto()


@dataclass(frozen=True, slots=True)
class Row:
    """One instruction form.

    opcode: as the manual writes it: bytes in hexadecimal, `/n` for the reg field, `m` or `r` when only memory or register
    operands are meant. traps: whether it traps at CPL 3 with IOPL 0. word: the VMM's word that a read yields.
    """

    name: str
    opcode: str
    klass: Class
    traps: bool
    treatment: Treatment
    word: str = ""


def _rows() -> list[Row]:
    p, s, f, u = Class.PRIVILEGED, Class.SENSITIVE, Class.FLOW, Class.UNDEFINED
    t = Treatment
    return [
        Row("cli", "FA", p, True, t.CLEAR_IF),
        Row("sti", "FB", p, True, t.SET_IF),
        Row("hlt", "F4", p, True, t.CALLOUT),
        Row("mov r,cr0", "0F 20 /0", p, True, t.READ_WORD, "CR0"),
        Row("mov r,cr2", "0F 20 /2", p, True, t.READ_WORD, "CR2"),
        Row("mov r,cr3", "0F 20 /3", p, True, t.READ_WORD, "CR3"),
        Row("mov r,cr4", "0F 20 /4", p, True, t.READ_WORD, "CR4"),
        Row("mov r,cr", "0F 20", p, True, t.CALLOUT),
        Row("mov r,dr", "0F 21", p, True, t.CALLOUT),
        Row("mov cr,r", "0F 22", p, True, t.CALLOUT),
        Row("mov dr,r", "0F 23", p, True, t.CALLOUT),
        Row("clts", "0F 06", p, True, t.CALLOUT),
        Row("invd", "0F 08", p, True, t.NOTHING),
        Row("wbinvd", "0F 09", p, True, t.NOTHING),
        Row("lldt", "0F 00 /2", p, True, t.CALLOUT),
        Row("ltr", "0F 00 /3", p, True, t.CALLOUT),
        Row("lgdt", "0F 01 /2 m", p, True, t.CALLOUT),
        Row("lidt", "0F 01 /3 m", p, True, t.CALLOUT),
        Row("lmsw", "0F 01 /6", p, True, t.CALLOUT),
        Row("invlpg", "0F 01 /7 m", p, True, t.CALLOUT),
        Row("wrmsr", "0F 30", p, True, t.CALLOUT),
        Row("rdmsr", "0F 32", p, True, t.CALLOUT),
        Row("rdpmc", "0F 33", p, True, t.CALLOUT),
        Row("sgdt", "0F 01 /0 m", s, False, t.READ_TABLE, "GDT_LIMIT"),
        Row("sidt", "0F 01 /1 m", s, False, t.READ_TABLE, "IDT_LIMIT"),
        Row("sldt", "0F 00 /0", s, False, t.READ_WORD, "LDT"),
        Row("str", "0F 00 /1", s, False, t.READ_WORD, "TR"),
        Row("smsw", "0F 01 /4", s, False, t.READ_WORD, "CR0"),
        Row("pushf", "9C", s, False, t.PUSH_FLAGS),
        Row("popf", "9D", s, False, t.POP_FLAGS),
        Row("lar", "0F 02", s, False, t.CALLOUT),
        Row("lsl", "0F 03", s, False, t.CALLOUT),
        Row("verr", "0F 00 /4", s, False, t.CALLOUT),
        Row("verw", "0F 00 /5", s, False, t.CALLOUT),
        Row("arpl", "63", s, False, t.CALLOUT),
        Row("push cs", "0E", s, False, t.PUSH_WORD, "CS"),
        Row("push ss", "16", s, False, t.PUSH_WORD, "SS"),
        Row("pop ss", "17", s, False, t.CALLOUT),
        Row("mov r/m,cs", "8C /1", s, False, t.READ_WORD, "CS"),
        Row("mov r/m,ss", "8C /2", s, False, t.READ_WORD, "SS"),
        Row("mov cs,r/m", "8E /1", u, True, t.CALLOUT),
        Row("mov ss,r/m", "8E /2", s, False, t.CALLOUT),
        Row("lss", "0F B2", s, False, t.CALLOUT),
        Row("call far", "9A", s, False, t.CALLOUT),
        Row("call far m", "FF /3 m", s, False, t.CALLOUT),
        Row("jmp far", "EA", s, False, t.CALLOUT),
        Row("jmp far m", "FF /5 m", s, False, t.CALLOUT),
        Row("ret far n", "CA", s, False, t.CALLOUT),
        Row("ret far", "CB", s, False, t.CALLOUT),
        Row("iret", "CF", s, False, t.RETURN_FROM_INTERRUPT),
        Row("int3", "CC", s, True, t.CALLOUT),
        Row("int", "CD", s, True, t.CALLOUT),
        Row("into", "CE", s, False, t.CALLOUT),
        Row("icebp", "F1", s, True, t.CALLOUT),
        Row("sysenter", "0F 34", u, False, t.CALLOUT),
        Row("sysexit", "0F 35", u, True, t.CALLOUT),
        Row("syscall", "0F 05", u, False, t.CALLOUT),
        Row("sysret", "0F 07", u, True, t.CALLOUT),
        Row("rsm", "0F AA", u, True, t.CALLOUT),
        Row("xgetbv vmx svm", "0F 01 /2 r", u, False, t.CALLOUT),
        Row("svm", "0F 01 /3 r", u, True, t.CALLOUT),
        Row("vmx", "0F 01 /0 r", u, True, t.CALLOUT),
        Row("monitor mwait smap", "0F 01 /1 r", u, True, t.CALLOUT),
        Row("pkru", "0F 01 /5", u, True, t.CALLOUT),
        Row("swapgs rdtscp", "0F 01 /7 r", u, True, t.CALLOUT),
        Row("jmp rel8", "EB", f, False, t.JUMP),
        Row("jmp rel", "E9", f, False, t.JUMP),
        *(Row(f"jcc rel8 {n:X}", f"{0x70 + n:02X}", f, False, t.BRANCH) for n in range(16)),
        *(Row(f"jcc rel {n:X}", f"0F {0x80 + n:02X}", f, False, t.BRANCH) for n in range(16)),
        Row("loopne", "E0", f, False, t.LOOP),
        Row("loope", "E1", f, False, t.LOOP),
        Row("loop", "E2", f, False, t.LOOP),
        Row("jecxz", "E3", f, False, t.LOOP),
        Row("call rel", "E8", f, False, t.CALL),
        Row("ret n", "C2", f, False, t.RETURN),
        Row("ret", "C3", f, False, t.RETURN),
        Row("call r/m", "FF /2", f, False, t.INDIRECT_CALL),
        Row("jmp r/m", "FF /4", f, False, t.INDIRECT_JUMP),
    ]


TABLE: tuple[Row, ...] = tuple(_rows())

_Forms = dict[tuple[int | None, bool | None], Row]  # (reg field, memory operand?) -> row; None: any


def _by_opcode() -> dict[int, _Forms]:
    opcodes: dict[int, _Forms] = {}
    for row in TABLE:
        opcode, reg, memory = 0, None, None
        for part in row.opcode.split():
            if part.startswith("/"):
                reg = int(part[1:])
            elif part in ("m", "r"):
                memory = part == "m"
            else:
                opcode = opcode << 8 | int(part, 16)
        opcodes.setdefault(opcode, {})[reg, memory] = row
    return opcodes


_OPCODES = _by_opcode()
_ANY = (None, None)


def classify(opcode: int, modrm: int) -> Row | None:
    """The row of an instruction by its opcode (one byte, or 0Fxx) and ModRM byte; None: innocuous, copied as it is."""
    forms = _OPCODES.get(opcode)
    if forms is None:
        return None
    if len(forms) == 1:
        row = forms.get(_ANY)
        if row is not None:
            return row
    reg, memory = modrm >> 3 & 7, modrm < 0xC0
    for key in ((reg, memory), (reg, None), (None, memory), _ANY):
        row = forms.get(key)
        if row is not None:
            return row
    return None
