"""THE table: every instruction that shows or changes privileged state, or moves EIP; its class, and how each back-end treats it.

One row per instruction form. Everything that decides how an instruction is translated is read off this table; the emitter
has one routine per treatment and none per opcode. Source of the list: Robin & Irvine 2000, table of sensitive unprivileged
instructions; SDM 3A 5.9 "Privileged Instructions"; SDM 2 for the encodings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from bt.decode import OPERAND_SIZE, Instruction


class Class(Enum):
    """Popek and Goldberg's classes, and `FLOW` for what changes EIP and must therefore be relocated."""

    PRIVILEGED = auto()  # traps in user mode: virtualizable by trap and emulate
    SENSITIVE = auto()  # shows or changes privileged state without a trap: what makes x86 hard
    FLOW = auto()
    UNDEFINED = auto()  # not offered by the virtual CPU


class Treatment(Enum):
    """What the translator emits."""

    NATIVE = auto()  # the instruction itself: what it shows is the guest's own, or the engine asks the VMM for it
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
    LOAD_SEGMENT = auto()  # ds, es, fs, gs: by the CPU, if the VMM has found that this selector may be loaded
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

    opcode: as the manual writes it: bytes in hexadecimal (a ModRM byte too where it is part of the opcode), `/n` for the reg
    field, `m` or `r` when only memory or register operands are meant. traps: whether it traps at CPL 3, by an exception or
    through the IDT (IOPL 0, no I/O permission map, CR4.TSD and PCE clear). why: what it shows or changes. forms: the kinds and
    sizes of operand in which it differs, as words like r32 or m; empty: it has one form only. word: the VMM's word that a read
    yields. paravirtual: what a Xen PV kernel does
    instead.
    """

    name: str
    opcode: str
    klass: Class
    traps: bool
    treatment: Treatment
    why: str
    forms: str = ""
    word: str = ""
    paravirtual: str = ""


_SIZES = "32 16"  # operand sizes
_STORED = "r32 r16 m"  # memory receives 16 bits, whatever the operand size
_WORD = "r m"  # 16 bits, whatever the operand size
_ANY_OPERAND = "r32 r16 m32 m16"
_DATA_SEGMENTS = ("es", "ds", "fs", "gs")


def _privileged() -> list[Row]:
    p, t = Class.PRIVILEGED, Treatment
    return [
        Row("cli", "FA", p, True, t.CLEAR_IF, "changes IF", paravirtual="masks events in shared memory"),
        Row("sti", "FB", p, True, t.SET_IF, "changes IF", paravirtual="masks events in shared memory"),
        Row("hlt", "F4", p, True, t.CALLOUT, "stops the processor", paravirtual="hypercall sched_op"),
        Row("mov r,cr0", "0F 20 /0", p, True, t.READ_WORD, "shows CR0", _SIZES, "CR0"),
        Row("mov r,cr2", "0F 20 /2", p, True, t.READ_WORD, "shows CR2", _SIZES, "CR2", "reads shared memory"),
        Row("mov r,cr3", "0F 20 /3", p, True, t.READ_WORD, "shows CR3: where the page tables are", _SIZES, "CR3"),
        Row("mov r,cr4", "0F 20 /4", p, True, t.READ_WORD, "shows CR4", _SIZES, "CR4"),
        Row("mov r,cr", "0F 20", p, True, t.CALLOUT, "names a control register that does not exist", _SIZES),
        Row("mov cr0,r", "0F 22 /0", p, True, t.CALLOUT, "changes CR0", _SIZES),
        Row("mov cr2,r", "0F 22 /2", p, True, t.CALLOUT, "changes CR2", _SIZES),
        Row("mov cr3,r", "0F 22 /3", p, True, t.CALLOUT, "changes CR3: where the page tables are", _SIZES, paravirtual="hypercall mmuext_op"),
        Row("mov cr4,r", "0F 22 /4", p, True, t.CALLOUT, "changes CR4", _SIZES),
        Row("mov cr,r", "0F 22", p, True, t.CALLOUT, "names a control register that does not exist", _SIZES),
        Row("mov r,dr", "0F 21", p, True, t.CALLOUT, "shows a debug register", _SIZES, paravirtual="hypercall get_debugreg"),
        Row("mov dr,r", "0F 23", p, True, t.CALLOUT, "changes a debug register", _SIZES, paravirtual="hypercall set_debugreg"),
        Row("clts", "0F 06", p, True, t.CALLOUT, "changes CR0.TS", paravirtual="hypercall fpu_taskswitch"),
        Row("lmsw", "0F 01 /6", p, True, t.CALLOUT, "changes CR0", _WORD),
        Row("invd", "0F 08", p, True, t.NOTHING, "changes the caches"),
        Row("wbinvd", "0F 09", p, True, t.NOTHING, "changes the caches", paravirtual="hypercall mmuext_op"),
        Row("invlpg", "0F 01 /7 m", p, True, t.CALLOUT, "changes the TLB", paravirtual="hypercall mmuext_op"),
        Row("lgdt", "0F 01 /2 m", p, True, t.CALLOUT, "changes GDTR", _SIZES, paravirtual="hypercall set_gdt"),
        Row("lidt", "0F 01 /3 m", p, True, t.CALLOUT, "changes IDTR", _SIZES, paravirtual="hypercall set_trap_table"),
        Row("lldt", "0F 00 /2", p, True, t.CALLOUT, "changes LDTR", _WORD, paravirtual="hypercall mmuext_op"),
        Row("ltr", "0F 00 /3", p, True, t.CALLOUT, "changes TR", _WORD, paravirtual="hypercall stack_switch"),
        Row("rdmsr", "0F 32", p, True, t.CALLOUT, "shows a model-specific register"),
        Row("wrmsr", "0F 30", p, True, t.CALLOUT, "changes a model-specific register"),
        Row("rdpmc", "0F 33", p, True, t.CALLOUT, "shows a performance counter"),
        Row("sysexit", "0F 35", p, True, t.CALLOUT, "changes the privilege level", paravirtual="hypercall iret"),
        Row("in al,n", "E4", p, True, t.NATIVE, "reaches a device"),
        Row("in eax,n", "E5", p, True, t.NATIVE, "reaches a device", _SIZES),
        Row("in al,dx", "EC", p, True, t.NATIVE, "reaches a device"),
        Row("in eax,dx", "ED", p, True, t.NATIVE, "reaches a device", _SIZES),
        Row("out n,al", "E6", p, True, t.NATIVE, "reaches a device"),
        Row("out n,eax", "E7", p, True, t.NATIVE, "reaches a device", _SIZES),
        Row("out dx,al", "EE", p, True, t.NATIVE, "reaches a device"),
        Row("out dx,eax", "EF", p, True, t.NATIVE, "reaches a device", _SIZES),
        Row("insb", "6C", p, True, t.NATIVE, "reaches a device", "8 rep8"),
        Row("ins", "6D", p, True, t.NATIVE, "reaches a device", "32 16 rep32 rep16"),
        Row("outsb", "6E", p, True, t.NATIVE, "reaches a device", "8 rep8"),
        Row("outs", "6F", p, True, t.NATIVE, "reaches a device", "32 16 rep32 rep16"),
    ]


def _unprivileged() -> list[Row]:
    s, t = Class.SENSITIVE, Treatment
    return [
        Row("sgdt", "0F 01 /0 m", s, False, t.READ_TABLE, "shows GDTR", _SIZES, "GDT_LIMIT"),
        Row("sidt", "0F 01 /1 m", s, False, t.READ_TABLE, "shows IDTR", _SIZES, "IDT_LIMIT"),
        Row("sldt", "0F 00 /0", s, False, t.READ_WORD, "shows LDTR", _STORED, "LDT"),
        Row("str", "0F 00 /1", s, False, t.READ_WORD, "shows TR", _STORED, "TR"),
        Row("smsw", "0F 01 /4", s, False, t.READ_WORD, "shows CR0", _STORED, "CR0"),
        Row("pushf", "9C", s, False, t.PUSH_FLAGS, "shows IF and IOPL", _SIZES, paravirtual="masks events in shared memory"),
        Row("popf", "9D", s, False, t.POP_FLAGS, "changes IF and IOPL, or silently does not", _SIZES, paravirtual="masks events in shared memory"),
        Row("lar", "0F 02", s, False, t.CALLOUT, "shows a descriptor, by the privilege level", _ANY_OPERAND),
        Row("lsl", "0F 03", s, False, t.CALLOUT, "shows a descriptor, by the privilege level", _ANY_OPERAND),
        Row("verr", "0F 00 /4", s, False, t.CALLOUT, "shows a descriptor, by the privilege level", _WORD),
        Row("verw", "0F 00 /5", s, False, t.CALLOUT, "shows a descriptor, by the privilege level", _WORD),
        Row("arpl", "63", s, False, t.CALLOUT, "handles privilege levels of selectors", _WORD),
        Row("cpuid", "0F A2", s, False, t.NATIVE, "shows which processor this is", paravirtual="a prefix that traps"),
        Row("rdtsc", "0F 31", s, False, t.NATIVE, "shows the time; privileged with CR4.TSD"),
        *_segment_registers(),
        Row("call far", "9A", s, False, t.CALLOUT, "loads CS, by the privilege level", _SIZES),
        Row("call far m", "FF /3 m", s, False, t.CALLOUT, "loads CS, by the privilege level", _SIZES),
        Row("jmp far", "EA", s, False, t.CALLOUT, "loads CS, by the privilege level", _SIZES),
        Row("jmp far m", "FF /5 m", s, False, t.CALLOUT, "loads CS, by the privilege level", _SIZES),
        Row("ret far n", "CA", s, False, t.CALLOUT, "loads CS, by the privilege level", _SIZES),
        Row("ret far", "CB", s, False, t.CALLOUT, "loads CS, by the privilege level", _SIZES),
        Row("iret", "CF", s, False, t.RETURN_FROM_INTERRUPT, "loads CS and flags, by the privilege level", _SIZES, paravirtual="hypercall iret"),
        Row("int3", "CC", s, True, t.CALLOUT, "goes through the IDT"),
        Row("int", "CD", s, True, t.CALLOUT, "goes through the IDT"),
        Row("into", "CE", s, True, t.CALLOUT, "goes through the IDT"),
        Row("icebp", "F1", s, True, t.CALLOUT, "goes through the IDT"),
        Row("sysenter", "0F 34", s, True, t.CALLOUT, "changes the privilege level"),
    ]


def _segment_registers() -> list[Row]:
    """Reads and loads of segment registers. CS and SS of a deprivileged kernel have another RPL; the others are the guest's own."""
    s, u, t = Class.SENSITIVE, Class.UNDEFINED, Treatment
    shows, loads = "shows a selector and its privilege level", "loads a segment, by the privilege level"
    pushed = {"es": "06", "cs": "0E", "ss": "16", "ds": "1E", "fs": "0F A0", "gs": "0F A8"}
    popped = {"es": "07", "ds": "1F", "fs": "0F A1", "gs": "0F A9"}
    far = {"es": "C4", "ds": "C5", "fs": "0F B4", "gs": "0F B5"}
    rows = []
    for name, opcode in pushed.items():
        kept = name in ("cs", "ss")
        rows.append(Row(f"push {name}", opcode, s, False, t.PUSH_WORD if kept else t.NATIVE, shows, _SIZES, name.upper() if kept else ""))
    for reg, name in enumerate(pushed):
        kept = name in ("cs", "ss")
        rows.append(Row(f"mov r/m,{name}", f"8C /{reg}", s, False, t.READ_WORD if kept else t.NATIVE, shows, _STORED, name.upper() if kept else ""))
    rows += [Row(f"pop {name}", opcode, s, False, t.LOAD_SEGMENT, loads, _SIZES) for name, opcode in popped.items()]
    rows.append(Row("pop ss", "17", s, False, t.CALLOUT, loads, _SIZES))
    rows += [Row(f"mov {name},r/m", f"8E /{reg}", s, False, t.LOAD_SEGMENT, loads, _WORD) for reg, name in enumerate(pushed) if name in popped]
    rows.append(Row("mov ss,r/m", "8E /2", s, False, t.CALLOUT, loads, _WORD))
    rows.append(Row("mov cs,r/m", "8E /1", u, True, t.CALLOUT, "does not exist", _WORD))
    rows += [Row(f"l{name}", f"{opcode} m", s, False, t.CALLOUT, loads, _SIZES) for name, opcode in far.items()]
    rows.append(Row("lss", "0F B2 m", s, False, t.CALLOUT, loads, _SIZES))
    return rows


def _undefined() -> list[Row]:
    """What the virtual CPU does not offer."""
    u, t = Class.UNDEFINED, Treatment
    absent = {
        "syscall": ("0F 05", "changes the privilege level"),
        "sysret": ("0F 07", "changes the privilege level"),
        "rsm": ("0F AA", "leaves system management mode"),
        "xgetbv": ("0F 01 D0", "shows XCR0"),
        "xsetbv": ("0F 01 D1", "changes XCR0"),
        "rdtscp": ("0F 01 F9", "shows the time and the processor's number"),
        "swapgs": ("0F 01 F8", "changes the base of GS; 64-bit code only"),
        "monitor": ("0F 01 C8", "waits for a store"),
        "mwait": ("0F 01 C9", "waits for a store"),
        "clac": ("0F 01 CA", "changes AC"),
        "stac": ("0F 01 CB", "changes AC"),
        "rdpkru": ("0F 01 EE", "shows PKRU"),
        "wrpkru": ("0F 01 EF", "changes PKRU"),
        "vmcall": ("0F 01 C1", "calls a hypervisor"),
        "vmrun": ("0F 01 D8", "enters a guest"),
        "vmmcall": ("0F 01 D9", "calls a hypervisor"),
        "vmload": ("0F 01 DA", "loads a guest's state"),
        "vmsave": ("0F 01 DB", "stores a guest's state"),
        "stgi": ("0F 01 DC", "changes the global interrupt flag"),
        "clgi": ("0F 01 DD", "changes the global interrupt flag"),
        "skinit": ("0F 01 DE", "starts a secure loader"),
        "invlpga": ("0F 01 DF", "changes the TLB"),
        "0f 01 /0 r": ("0F 01 /0 r", "holds the rest of VT-x"),
        "0f 01 /1 r": ("0F 01 /1 r", "holds SGX"),
        "0f 01 /2 r": ("0F 01 /2 r", "holds transactions and vmfunc"),
        "0f 01 /5": ("0F 01 /5", "holds control-flow enforcement"),
        "0f 01 /7 r": ("0F 01 /7 r", "holds monitorx, mwaitx and clzero"),
    }
    return [Row(name, opcode, u, True, t.CALLOUT, why) for name, (opcode, why) in absent.items()]


def _flow() -> list[Row]:
    f, t, why = Class.FLOW, Treatment, "changes EIP"
    return [
        Row("jmp rel8", "EB", f, False, t.JUMP, why, _SIZES),
        Row("jmp rel", "E9", f, False, t.JUMP, why, _SIZES),
        *(Row(f"jcc rel8 {n:X}", f"{0x70 + n:02X}", f, False, t.BRANCH, why, _SIZES) for n in range(16)),
        *(Row(f"jcc rel {n:X}", f"0F {0x80 + n:02X}", f, False, t.BRANCH, why, _SIZES) for n in range(16)),
        Row("loopne", "E0", f, False, t.LOOP, why, _SIZES),
        Row("loope", "E1", f, False, t.LOOP, why, _SIZES),
        Row("loop", "E2", f, False, t.LOOP, why, _SIZES),
        Row("jecxz", "E3", f, False, t.LOOP, why, _SIZES),
        Row("call rel", "E8", f, False, t.CALL, why, _SIZES),
        Row("ret n", "C2", f, False, t.RETURN, why, _SIZES),
        Row("ret", "C3", f, False, t.RETURN, why, _SIZES),
        Row("call r/m", "FF /2", f, False, t.INDIRECT_CALL, why, _ANY_OPERAND),
        Row("jmp r/m", "FF /4", f, False, t.INDIRECT_JUMP, why, _ANY_OPERAND),
    ]


TABLE: tuple[Row, ...] = (*_privileged(), *_unprivileged(), *_undefined(), *_flow())

_ModRms = tuple[Row | None, ...]  # a row by ModRM byte


def _matches(row: Row) -> tuple[int, Sequence[int]]:
    """(opcode, one byte or 0Fxx; the ModRM bytes that make it this row's)."""
    parts = row.opcode.split()
    numbers = [int(part, 16) for part in parts if part not in ("m", "r") and not part.startswith("/")]
    escaped = numbers[0] == 0x0F
    opcode = 0x0F00 | numbers[1] if escaped else numbers[0]
    if len(numbers) > 1 + escaped:
        return opcode, (numbers[-1],)
    regs = [int(part[1:]) for part in parts if part.startswith("/")]
    if not regs and parts[-1] not in ("m", "r"):
        return opcode, range(0x100)
    first = 0xC0 if parts[-1] == "r" else 0
    last = 0xC0 if parts[-1] == "m" else 0x100
    return opcode, tuple(m for top in range(first, last, 0x40) for reg in regs or range(8) for m in range(top | reg << 3, (top | reg << 3) + 8))


_MATCHES = sorted(((*_matches(row), row) for row in TABLE), key=lambda match: -len(match[1]))


def _by_opcode(wanted: Callable[[Row], bool]) -> dict[int, _ModRms]:
    """The rows that are wanted. Of rows that claim the same ModRM byte the one that claims fewest has it."""
    found: dict[int, list[Row | None]] = {}
    for opcode, modrms, row in _MATCHES:
        if not wanted(row):
            continue
        if len(modrms) == 0x100:
            found[opcode] = [row] * 0x100
            continue
        claimed = found.setdefault(opcode, [None] * 0x100)
        for modrm in modrms:
            claimed[modrm] = row
    return {opcode: tuple(claimed) for opcode, claimed in found.items()}


def _outside(row: Row) -> bool:
    return row.treatment is not Treatment.NATIVE or row.klass is Class.PRIVILEGED


_ROWS = _by_opcode(lambda row: True)
_TRANSLATED = _by_opcode(lambda row: row.treatment is not Treatment.NATIVE)
_TRANSLATED_OUTSIDE = _by_opcode(_outside)
_TRANSLATED_TIMED = _by_opcode(lambda row: _outside(row) or row.name == "rdtsc")


def translated(unprivileged: bool = False, timed: bool = False) -> Mapping[int, Sequence[Row | None]]:
    """The rows of what the translator may not copy, by opcode (one byte, or 0Fxx) and then by ModRM byte; None: copied as it is.

    unprivileged: it may run outside of privilege level 0, where nothing privileged may be copied. timed: nor what reaches a device or
    shows the time, since instructions are counted.
    """
    return _TRANSLATED_TIMED if timed else _TRANSLATED_OUTSIDE if unprivileged else _TRANSLATED


def classify(opcode: int, modrm: int) -> Row | None:
    """The row of an instruction of privilege level 0 that the translator may not copy."""
    rows = _TRANSLATED.get(opcode)
    return None if rows is None else rows[modrm]


ADAPTED = Row("adapted move", "", Class.SENSITIVE, False, Treatment.CALLOUT, "kept faulting: reaches a device or a page table")
"""The row of a move that was translated again as a callout. No opcode has it."""

_MOVES = frozenset((0x88, 0x89, 0x8A, 0x8B, 0xC6, 0xC7, 0x0FB6, 0x0FB7))
_MOVES_WITH_OFFSET = range(0xA0, 0xA4)


def can_adapt(instruction: Instruction) -> bool:
    """Whether an instruction may get that row: a MOV or MOVZX to or from memory, in 32-bit addressing."""
    if not instruction.wide or instruction.prefixes & ~OPERAND_SIZE:
        return False
    immediate = instruction.opcode in (0xC6, 0xC7)
    moves = instruction.opcode in _MOVES and instruction.modrm < 0xC0 and not (immediate and instruction.modrm & 0x38)
    return moves or instruction.opcode in _MOVES_WITH_OFFSET


def row_of(opcode: int, modrm: int) -> Row | None:
    """The row of any instruction of the table, those that the translator copies included; None: innocuous."""
    rows = _ROWS.get(opcode)
    return None if rows is None else rows[modrm]


_EXITS_OF_HW = ("hlt", "cpuid", "rdmsr", "wrmsr", "rdpmc", "in ", "out ", "ins", "outs")  # the least; more can be asked for


def treatments(row: Row) -> dict[str, str]:
    """What each back-end does about an instruction of the guest's kernel, in a word or two, by the back-end's name.

    trap runs it at CPL 1 or 3 as it stands: what does not trap there slips, and shows or changes the VMM's state.
    """
    here = row.treatment
    slips = row.klass is Class.SENSITIVE and not row.traps
    if row.klass is Class.UNDEFINED:
        trap = step = pv = "undefined"
    else:
        trap = "traps" if row.traps else "slips" if slips else "runs"
        step = "runs" if here is Treatment.NATIVE or row.klass is Class.FLOW else "emulated"
        pv = row.paravirtual or trap
    hw = "exits" if row.name.startswith(_EXITS_OF_HW) else "runs"
    return {"bt": here.name.lower().replace("_", " "), "pv": pv, "hw": hw, "trap": trap, "step": step, "native": "runs"}
