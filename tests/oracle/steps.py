"""The kinds of step that a generated program is made of: each a small text, varied by a few numbers.

Every kind takes its numbers one after the other from `Numbers`, so that a program is plain data: names and numbers, which can be
shrunk, saved and run again. Knows what is worth trying on an x86 virtual machine monitor; knows none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from bt.sensitive import TABLE, Class, Row
from tests.oracle.guest import (
    ABSENT,
    CALL_GATE,
    DATA,
    GATE_TO_LEVEL_1,
    GDT,
    IDT,
    POINTER_TO_GDT,
    POINTER_TO_IDT,
    SELECTORS,
    SLOT,
    SPARE,
    SYSTEM_CALL,
    TRAP_GATE,
    TSS,
    USER_BYTES,
    USER_PAGES,
    Paging,
    Step,
    to_user,
)

T = TypeVar("T")
_GENERAL: Final = ("eax", "ecx", "edx", "ebx", "esi", "edi", "ebp")
_VALUES: Final = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x12345678, 0xDEADBEEF)
_NOPS: Final = "; ".join(["nop"] * 12)
_FLAT_USER: Final = "mov ecx,0x23; mov ds,ecx; mov es,ecx; "
_BACK: Final = "mov ecx,ss; mov ds,ecx; mov es,ecx; mov fs,ecx; mov gs,ecx"  # flat segments again


@dataclass(slots=True)
class Numbers:
    """A step's numbers, taken in turn; when they are used up, zeroes."""

    values: Sequence[int]
    at: int = 0

    def below(self, limit: int) -> int:
        """The next number, below `limit`."""
        self.at += 1
        return self.values[self.at - 1] % limit if self.at <= len(self.values) else 0

    def of(self, things: Sequence[T]) -> T:
        """One of some things."""
        return things[self.below(len(things))]

    def value(self) -> int:
        """A 32-bit value, an edge case as often as not."""
        return self.of(_VALUES) if self.below(2) else self.below(1 << 32)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step stands: its number, and the paging that is on."""

    number: int
    paging: Paging

    def either(self, n: Numbers, text: str, flags: int = 2) -> Step:
        """The text in kernel or in user mode."""
        return Step(to_user(self.paging, self.number, flags), text) if n.below(2) else Step(text)

    @property
    def bytes(self) -> int:
        """Linear address of a page of data that users may use too."""
        return self.paging.user + USER_BYTES


Kind = Callable[[Numbers, Place], Step]


# -- code that no translator need touch ------------------------------------------------------------------------------------------------


def arithmetic(n: Numbers, place: Place) -> Step:
    """Registers and flags."""
    return place.either(n, "; ".join(_operation(n, place) for _ in range(2 + n.below(5))))


def _operation(n: Numbers, place: Place) -> str:
    a, b = n.of(_GENERAL), n.of(_GENERAL)
    form = n.below(12)
    if form == 0:
        return f"{n.of(('add', 'sub', 'adc', 'sbb', 'and', 'or', 'xor', 'cmp', 'test', 'mov', 'xchg'))} {a},{b}"
    if form == 1:
        return f"{n.of(('add', 'sub', 'adc', 'sbb', 'and', 'or', 'xor', 'cmp', 'test', 'mov'))} {a},{n.value()}"
    if form == 2:
        return f"{n.of(('inc', 'dec', 'neg', 'not', 'bswap'))} {a}"
    if form == 3:
        return f"{n.of(('shl', 'shr', 'sar', 'rol', 'ror', 'rcl', 'rcr'))} {a},1"
    if form == 4:
        return f"lea {a},[{b}+4*{n.of(('eax', 'ecx', 'ebx'))}+{n.below(1000)}]"
    if form == 5:
        return f"set{n.of(_CONDITIONS)} {n.of(('al', 'cl', 'dh', 'bl'))}; cmov{n.of(_CONDITIONS)} {a},{b}"
    if form == 6:
        return f"{n.of(('movzx', 'movsx'))} {a},{n.of(('al', 'ch', 'bx'))}"
    if form == 7:
        return n.of(("cmc", "stc", "clc", "std", "cld"))
    if form == 8:
        return n.of(("cwde", "cdq", "lahf", "sahf", "nop", "cbw", "cwd"))
    return f"mov {a},{n.value()}"


_CONDITIONS: Final = ("o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g")


def memory(n: Numbers, place: Place) -> Step:
    """Loads and stores: aligned or not, over page borders, into what is absent."""
    user = n.below(2)
    base = place.bytes if user else n.of((DATA, DATA, place.paging.test, ABSENT - 4096))
    at = base + n.of((0, 5, 0x100, 0xFFD, 0xFFF, 0x1001))
    reg = n.of(("eax", "ebx", "edx"))
    text = n.of(
        (
            f"mov {reg},[{at}]",
            f"mov [{at}],{reg}",
            f"add [{at}],{reg}",
            f"xchg [{at}],{reg}",
            f"inc dword ptr [{at}]",
            f"push dword ptr [{at}]; pop dword ptr [{at + 8}]",
            f"mov word ptr [{at}],{n.below(1 << 16)}",
            f"lock xadd [{at}],{reg}",
            f"mov ebx,{at}; lock cmpxchg [ebx],edx",
            f"mov esi,{at}; mov edi,{base + 0x40}; movsb; .byte 0xa5; lodsb; stosb",
            f"mov ebx,{at}; xlatb; mov cl,[ebx]; sub cl,al",
            f"pushad; mov [{at}],esp; popad",
            f"enter 16,0; mov [ebp-4],{reg}; leave",
        )
    )
    return Step(to_user(place.paging, place.number), _FLAT_USER + text) if user else Step(text)


def strings(n: Numbers, place: Place) -> Step:
    """Repeated string instructions, forward and backward, up to a fault in their middle."""
    user = n.below(2)
    base = place.bytes if user else n.of((DATA, DATA, ABSENT - 4096))
    opcode = n.of(("0xa4", "0xa5", "0xaa", "0xab", "0xac", "0xa6", "0xae", "0xaf"))
    text = f"""{n.of(("cld", "std"))}; mov esi,{base + n.of((0, 0x200, 0xFF0))}; mov edi,{base + n.of((0x201, 0x300, 0xFF8))}
        mov ecx,{n.of((0, 1, 2, 7, 40))}; mov eax,{n.value()}; .byte {n.of(("0xf3", "0xf2", "0x66,0xf3"))},{opcode}; cld"""
    return Step(to_user(place.paging, place.number), _FLAT_USER + text) if user else Step(text)


def branches(n: Numbers, place: Place) -> Step:
    """Conditional and indirect flow, calls and returns."""
    count = 1 + n.below(5)
    text = n.of(
        (
            f"mov ecx,{count}; a: add eax,ecx; loop a",
            "mov ecx,9; a: cmp ecx,7; loopne a",  # not ended by ECX: the CPU may then lose ZF, where flags came from another block
            "mov ecx,9; a: cmp ecx,9; loope a",
            f"mov ecx,{n.below(2)}; jecxz a; inc ebx; a: nop",
            f"cmp eax,{n.value()}; j{n.of(_CONDITIONS)} a; inc ebx; a: j{n.of(_CONDITIONS)} b; dec edx; b: nop",
            "call a; jmp b; a: inc eax; ret; b: nop",
            f"push {n.value()}; call a; jmp b; a: inc eax; ret 4; b: nop",
            f"call a; a: pop eax; lea eax,[eax+9]; {n.of(('jmp', 'call'))} eax; nop; {_NOPS}",
            f"mov ecx,{count}; a: call b; dec ecx; jnz a; jmp c; b: call d; ret; d: xor eax,ecx; ret; c: nop",
            f".byte {0x70 + n.below(16):#x},1; nop; .byte 0x0f,{0x80 + n.below(16):#x},1,0,0,0; nop",
            "call a; a: add dword ptr [esp],8; ret; nop; nop; nop; nop; nop; nop; nop; nop",
        )
    )
    return place.either(n, text)


# -- sensitive instructions ------------------------------------------------------------------------------------------------------------

# Rows whose operands or results need care: other kinds have them. (The upper half of SMSW's register is undefined.)
_LEFT_OUT: Final = frozenset(
    "hlt|mov cr0,r|mov cr3,r|mov cr4,r|lgdt|lidt|lmsw|ltr|lldt|wrmsr|iret|jmp far|jmp far m|call far|call far m|ret far|ret far n|popf"
    "|rdtsc|rdtscp|cpuid|smsw".split("|")
)
_STRAIGHT: Final = ("jcc", "jmp rel", "loop", "jecxz", "call rel")  # of those that change EIP: to the next instruction


def _to_be_tried(row: Row) -> bool:
    if row.klass is Class.FLOW:
        return row.name.startswith(_STRAIGHT)
    return row.name not in _LEFT_OUT and not row.name.startswith(("in ", "out ", "ins", "outs"))


_RAW: Final = tuple(row for row in TABLE if _to_be_tried(row))


def table_row(n: Numbers, place: Place) -> Step:
    """An instruction of the table in any of its encodings, with any prefix: often one that is not allowed."""
    values = f"mov eax,{n.of(_ROW_VALUES)}; mov ecx,{n.of(_ROW_VALUES)}; mov edx,0"
    return place.either(n, f"{_FLAT_USER}{values}; {encoding(n, n.of(_RAW), place)}; {_NOPS}")


ROW_NUMBER: Final = 2  # which of a step's numbers says the row
_ROW_VALUES: Final = (0, 0x10, 0x23, 0x1B, 0x08, 0x2B, 0x33, 0xFFFF, 0x12345678)


def encoding(n: Numbers, row: Row, place: Place) -> str:
    """Bytes of a row's instruction: prefixes, opcode, ModRM (a register, or memory at an absolute address) and immediate bytes."""
    opcode, reg, only = [], None, ""
    for part in row.opcode.split():
        if part.startswith("/"):
            reg = int(part[1:])
        elif part in ("m", "r"):
            only = part
        elif len(part) == 2:
            opcode.append(int(part, 16))
    prefix: tuple[int, ...] = n.of(((), (), (), (), (0x66,), (0x67,), (0xF3,), (0x3E,), (0x26,), (0x66, 0x66)))
    # Not LOCK and not CS: this CPU takes the one where hardware raises #UD, and stores through the other.
    if row.klass is Class.FLOW or opcode[0] in (0xCC, 0xCD, 0xCE):  # this CPU does not tell where a prefixed INT began
        prefix = ()
    code = [*prefix, *opcode]
    first = opcode[0] << 8 | opcode[1] if len(opcode) > 1 else opcode[0]
    if _has_modrm(first, reg):
        register = reg if reg is not None else n.of((0, 1, 2, 3, 5, 6, 7))  # not ESP: what follows needs a stack
        if only == "r" or (only != "m" and n.below(2)):
            code.append(0xC0 | register << 3 | n.below(8 if only == "r" else 4))
        elif 0x67 in prefix:
            code += [register << 3 | 6, 0, 0]
        else:
            code += [register << 3 | 5, *(place.bytes + 4 * n.below(64)).to_bytes(4, "little")]
    if first == 0xCD:
        code.append(n.of((3, 4, 13, SYSTEM_CALL, TRAP_GATE, 0x55)))
    if row.klass is Class.FLOW:
        code += bytes(1 if opcode[0] in (0xEB, 0xE0, 0xE1, 0xE2, 0xE3, *range(0x70, 0x80)) else 4)
    return ".byte " + ",".join(f"{byte:#x}" for byte in code)


def _has_modrm(opcode: int, reg: int | None) -> bool:
    return reg is not None or opcode in (0x63, 0x8C, 0x8E, 0xC4, 0xC5, 0x0F02, 0x0F03, 0x0F20, 0x0F21, 0x0F22, 0x0F23, 0x0FB2, 0x0FB4, 0x0FB5)


def flags(n: Numbers, place: Place) -> Step:
    """PUSHF, POPF, CLI, STI and their like, at any IOPL."""
    value = (n.below(1 << 16) & 0x0ED5) | n.of((0, 0, 0x3000, 0x40000, 0x200000))
    one = n.of(
        (
            f"push {value}; popfd; pushfd; pop eax",
            f"pushfd; pop eax; xor eax,{value}; push eax; popfd; pushfd; pop ebx",
            f".byte 0x66,0x68,{value & 0xFF},{value >> 8 & 0xE}; .byte 0x66,0x9d; .byte 0x66,0x9c; .byte 0x66,0x58",
            "cli; pushfd; pop eax",
            "sti; pushfd; pop eax",
            "sti; nop; cli; pushfd; pop eax",
            "std; pushfd; pop eax; cld; pushfd; pop ebx",
        )
    )
    return place.either(n, one, flags=n.of((2, 0x202, 0x3002, 0x3202, 0xCD7)))


def segment_load(n: Numbers, place: Place) -> Step:
    """Loads of segment registers from any selector, and an access through them."""
    selector, register = n.of(SELECTORS), n.of(("ds", "es", "fs", "gs"))
    at = place.bytes
    load = n.of(
        (
            f"mov eax,{selector}; mov {register},eax",
            f"push {selector}; pop {register}",
            f"mov dword ptr ss:[{at}],{selector}; mov {register},ss:[{at}]",
            f"mov dword ptr ss:[{at}],{n.value()}; mov word ptr ss:[{at + 4}],{selector}; l{register} ebx,ss:[{at}]",
        )
    )
    use = n.of(("", f"mov edx,{register}:[{at}]", f"mov {register}:[{at + 16}],edx", f"push {register}; pop edx"))
    return place.either(n, f"{load}; {use}; mov edx,{register}; {_BACK}")


def descriptor_edit(n: Numbers, place: Place) -> Step:
    """A descriptor written into the table, loaded, changed again behind the load."""
    slot = n.below(8)
    access, selector = n.of(_ACCESS_BYTES), SPARE + 8 * slot | n.of((0, 3))
    low, high = 0xFFFF | n.below(4) << 28, 0xCF0000 | access << 8
    write = f"mov dword ptr [{GDT + SPARE + 8 * slot}],{low}; mov dword ptr [{GDT + SPARE + 8 * slot + 4}],{high}"
    load = f"mov eax,{selector}; mov {n.of(('ds', 'es', 'fs', 'gs'))},eax; mov edx,[{DATA}]"
    after = n.of(("", f"mov dword ptr ss:[{GDT + SPARE + 8 * slot + 4}],0; mov edx,es:[{DATA}]", "lar ebx,eax; lsl ebp,eax; verr ax; verw ax"))
    if n.below(3):
        return Step(f"{write}; {load}; {after}; {_BACK}")
    user = load.replace(str(DATA), str(place.bytes))
    return Step(f"{write}; {to_user(place.paging, place.number)}", f"{user}; {_BACK}")


_ACCESS_BYTES: Final = bytes.fromhex("92 93 9A 9B F2 F3 FA FB 90 98 12 1A 96 9E FE B2 D2 B8 82 89 8C 8E 00 F0")


def look_at_descriptor(n: Numbers, place: Place) -> Step:
    """LAR, LSL, VERR, VERW, ARPL and the reads of table registers."""
    selector, at = n.of(SELECTORS), place.bytes + 0x80
    text = n.of(
        (
            "lar ebx,eax",
            "lsl ebx,eax",
            "verr ax",
            "verw ax",
            "mov ebx,3; .byte 0x63,0xc3",
            f"sgdt [{at}]",
            f"sidt [{at}]",
            f"sldt [{at}]",
            "str bx",
            "smsw bx",
            f"smsw [{at}]",
            ".byte 0x66,0x0f,0x02,0xd8",
            ".byte 0x66,0x0f,0x03,0xd8",
            "mov bx,cs; mov dx,ss; push cs; pop esi; push ss; pop edi",
        )
    )
    return place.either(n, f"{_FLAT_USER}mov eax,{selector}; mov ebx,{n.value()}; {text}; pushfd; pop edx")


def far(n: Numbers, place: Place) -> Step:
    """Far jumps, calls, returns and IRET, to selectors that may be jumped to and to others."""
    selector, at = n.of((0x08, 0x08, 0x0B, 0x1B, 0x68, 0x6B, 0x38, 0x50, 0x60, 0x10, 0x48, CALL_GATE, 0, 0x98, 0x9B, 0x30)), place.bytes
    text = n.of(
        (
            f"push {selector}; call a; a: pop eax; lea eax,[eax+9]; push eax; .byte 0xcb; {_NOPS}",
            f"push 5; push {selector}; call a; a: pop eax; lea eax,[eax+11]; push eax; .byte 0xca,4,0; {_NOPS}",
            f"call a; a: pop eax; add eax,15; push 2; push {selector}; push eax; .byte 0xcf; {_NOPS}",
            f"call a; a: pop eax; add eax,25; mov [{at}],eax; mov word ptr [{at + 4}],{selector}; .byte 0xff,0x2d; .long {at}; {_NOPS}",
            f".byte 0x9a; .long 0; .word {CALL_GATE}; nop; mov ebx,cs",
            f".byte 0x9a; .long 0; .word {CALL_GATE & ~3}; nop; mov ebx,cs",
            f"mov dword ptr [{at}],0; mov word ptr [{at + 4}],{CALL_GATE}; .byte 0xff,0x1d; .long {at}",
            f".byte 0xea; .long {n.value()}; .word {selector}" if selector in (0, 0x10, 0x48, 0x50, 0x30) else "nop",
        )
    )
    return place.either(n, _FLAT_USER + text if n.below(2) else text)


def stack(n: Numbers, place: Place) -> Step:
    """Loads of SS, and what is pushed behind them."""
    selector = n.of((0x10, 0x10, 0x40, 0x23, 0x20, 0x70, 0x48, 0x58, 0, 0x13, 0x3))
    at = place.bytes + 0x100
    text = n.of(
        (
            f"mov eax,{selector}; mov ss,eax; push 5; pop ebx; mov eax,0x10; mov ss,eax",
            f"push {selector}; pop ss; pushfd; pop ebx; mov eax,0x10; mov ss,eax",
            f"mov edx,esp; mov [{at}],edx; mov dword ptr [{at + 4}],{selector}; lss esp,[{at}]; push eax; pop ecx; mov eax,0x10; mov ss,eax",
            f"mov esp,{n.of((ABSENT + 8, 0, DATA + 0x800, 2))}; push eax; pop ebx",
        )
    )
    return Step(f"{text}; mov esp,0x158000") if n.below(3) else Step(to_user(place.paging, place.number), _FLAT_USER + text)


# -- events ------------------------------------------------------------------------------------------------------------------------------


def faults(n: Numbers, place: Place) -> Step:
    """One exception of each kind."""
    text = n.of(
        (
            "xor edx,edx; xor ecx,ecx; div ecx",
            "mov eax,0x80000000; cdq; mov ecx,-1; idiv ecx",
            "int3",
            "mov eax,0x7fffffff; inc eax; into",
            "xor eax,eax; into",
            f"mov eax,{n.below(64)}; mov dword ptr [{place.bytes}],10; mov dword ptr [{place.bytes + 4}],20; .byte 0x62,0x05; .long {place.bytes}",
            "ud2",
            ".byte 0x0f,0xff,0xc0",
            f"int {TRAP_GATE}",
            f"int {n.of((0, 3, 4, 13, 14, 32, 255))}",
            f"mov eax,[{ABSENT + n.below(0x10000)}]",
            f"mov [{ABSENT + n.below(0x10000)}],eax",
            f"mov eax,{ABSENT}; {'jmp eax' if place.paging.enter else 'nop'}",
            f"mov eax,[{DATA}]; mov [{DATA}],eax",
            "mov eax,0xf00; mov ds,eax",
            ".byte 0xf1",
            "mov eax,0x48; mov ds,eax",
            "mov eax,0x48; mov ss,eax",
            "fninit; push 0x360; fldcw [esp]; fldz; fld1; fdivrp; fwait; nop; fninit; pop eax",
            "push 0x1000; ldmxcsr [esp]; pop eax",
            "mov eax,cr0; or eax,0x20; mov cr0,eax; fninit; push 0x360; fldcw [esp]; fldz; fld1; fdivrp; fwait",
        )
    )
    return place.either(n, _FLAT_USER + text)


def double_fault(n: Numbers, place: Place) -> Step:
    """An exception whose gate is not there: a double fault, or one more exception."""
    vector = n.of((0, 6, 13, 14, 11))
    cause = {0: "xor ecx,ecx; div ecx", 6: "ud2", 13: "mov eax,0xf00; mov ds,eax", 14: f"mov eax,[{ABSENT}]", 11: "mov eax,0x48; mov ds,eax"}[vector]
    off, on = (f"and byte ptr ss:[{IDT + 8 * vector + 5}],0x7f", f"or byte ptr ss:[{IDT + 8 * vector + 5}],0x80")
    if n.below(2):
        return Step(f"{off}; {cause}; {on}")
    return Step(f"{off}; {to_user(place.paging, place.number)}", cause)


def gates_again(n: Numbers, place: Place) -> Step:
    """All gates present again."""
    return Step("; ".join(f"or byte ptr [{IDT + 8 * vector + 5}],0x80" for vector in (0, 6, 11, 13, 14)))


def inner_stack(n: Numbers, place: Place) -> Step:
    """A stack segment in the TSS that cannot be loaded: #TS out of user mode, through a call gate or an interrupt; or none at all."""
    bad = n.of((0x11, 0x49, 0x09, 0x13, 0, 0x1001))
    stack = f"mov dword ptr [{TSS + 12}],{TSS + 0x800}; mov dword ptr [{TSS + 16}],{bad}"
    return Step(f"{stack}; {to_user(place.paging, place.number)}", f".byte 0x9a; .long 0; .word {GATE_TO_LEVEL_1}; nop")


def single_step(n: Numbers, place: Place) -> Step:
    """TF, in kernel and user mode, over all sorts of instructions."""
    over = n.of(
        (
            "nop; nop; nop; nop; nop",
            "mov ecx,3; a: loop a; nop; nop; nop",
            f"int {TRAP_GATE}; nop; nop; nop; nop",
            "pushfd; pop eax; nop; nop; nop; nop",
            "mov eax,ss; mov ss,eax; nop; nop; nop; nop; nop",
            "call a; nop; jmp b; a: ret; b: nop; nop; nop",
            "cli; sti; nop; nop; nop; nop",
            "mov eax,cr0; nop; nop; nop; nop; nop",
            "xor ecx,ecx; div ecx; nop; nop",
            "push 2; popfd; nop; nop",
            "cpuid; xor eax,eax; xor ebx,ebx; xor ecx,ecx; xor edx,edx; nop; nop",
        )
    )
    return place.either(n, f"pushfd; or dword ptr [esp],0x100; popfd; {over}; push 2; popfd", flags=n.of((2, 0x202)))


def timer(n: Numbers, place: Place) -> Step:
    """A timer interrupt in the middle of something."""
    work = n.of(
        (
            "mov ecx,300; a: dec ecx; jnz a",
            f"mov edi,{DATA}; mov ecx,400; cld; .byte 0xf3,0xaa",
            "cli; mov ecx,100; a: sti; nop; cli; dec ecx; jnz a",
            "mov ecx,100; a: pushfd; popfd; call b; dec ecx; jnz a; jmp c; b: ret; c: nop",
            "mov ecx,60; a: mov eax,cr0; push cs; pop ebx; dec ecx; jnz a",
            "sti; hlt",
            "cli; mov ecx,300; a: dec ecx; jnz a; sti; nop",
        )
    )
    start = f"mov al,0x30; out 0x43,al; mov al,{1 + n.below(4)}; out 0x40,al; mov al,0; out 0x40,al"
    if n.below(3) == 0 and "hlt" not in work and "cli" not in work and "cr0" not in work and str(DATA) not in work:
        return Step(f"{start}; {to_user(place.paging, place.number, 0x202)}", work)
    return Step(f"{start}; sti; {work}; cli")


# -- memory management -------------------------------------------------------------------------------------------------------------------

_ACCESSES: Final = ("mov eax,[{at}]", "mov [{at}],eax", "add dword ptr [{at}],1", "call {at}", "xchg eax,[{at}]")


def page_edit(n: Numbers, place: Place) -> Step:
    """A page-table entry changed, forgotten, and used."""
    page, p = n.below(8), place.paging
    entry, at = p.table + p.width * page, p.test + 0x1000 * page
    frame = 0x1A0000 + 0x1000 * n.below(8)
    low = n.of((frame | 7, frame | 5, frame | 3, frame | 1, frame | 6, frame | 0x107, frame | 0x67, frame | 0x27, frame))
    high = 0 if p.width == 4 else n.of((0, 0, 0x80000000, 0x80000000, 0x100000))
    before = n.of(("", f"mov ebx,[{at}]; "))
    edit = f"{before}mov dword ptr [{entry}],{low}" + (f"; mov dword ptr [{entry + 4}],{high}" if p.width == 8 else "")
    access = _access(n, at + n.of((0, 0, 0x10, 0xFFE)), called=high in (0, 1 << 31))
    forget = n.of((f"invlpg [{at}]", f"invlpg [{at + 0x123}]", "mov eax,cr3; mov cr3,eax")) if not low & 0x100 else f"invlpg [{at}]"
    again = f"; mov ebx,[{entry}]; {_access(n, at, called=False)}"
    if n.below(2):
        return Step(f"{edit}; {forget}; {access}{again}; mov ecx,[{entry}]")
    return Step(f"{edit}; {forget}; {to_user(p, place.number)}", f"{_FLAT_USER}{access}; {_access(n, at, called=False)}")


def _access(n: Numbers, at: int, *, called: bool) -> str:
    """A use of the page at an address; called: it may be executed (where no memory is, the back-ends end the run in ways of their own)."""
    text = n.of(_ACCESSES)
    if text.startswith("call"):
        return f"mov eax,{at & ~0xFFF}; call eax" if called else f"mov eax,[{at}]"
    return text.format(at=at)


def directory_edit(n: Numbers, place: Place) -> Step:
    """A directory entry changed, everything forgotten, and used; then the old one again."""
    p = place.paging
    good = (p.table & ~0xFFF) | 7
    large = 0x200087 if p.width == 8 else 0x87
    low = n.of((good, good & ~2, good & ~4, good & ~1, good & ~6, large & ~0x87 | 0x85, large, large & ~4, good | 0x60))
    high = n.of((0, 0, 0x80000000)) if p.width == 8 else 0
    forget = "mov eax,cr4; xor eax,0x80; mov cr4,eax; xor eax,0x80; mov cr4,eax" if p.enter else "nop"
    at = p.test + 0x1000 * n.below(8) + n.of((0, 0x40, 0xFFE))
    edit = f"mov dword ptr [{p.directory}],{low}" + (f"; mov dword ptr [{p.directory + 4}],{high}" if p.width == 8 else "")
    restore = f"mov dword ptr ss:[{p.directory}],{good}" + (f"; mov dword ptr ss:[{p.directory + 4}],0" if p.width == 8 else "") + f"; {forget}"
    if low & 0x80 and p.width == 4:
        at = p.test + TEST_IN_LARGE
    access = n.of(("mov eax,[{at}]", "mov [{at}],eax", "xchg eax,[{at}]")).format(at=at)
    if n.below(2):
        return Step(f"{edit}; {forget}; {access}; mov ebx,[{p.directory}]; {restore}")
    return Step(f"{edit}; {forget}; {to_user(p, place.number)}", f"{_FLAT_USER}{access}")


TEST_IN_LARGE: Final = 0x1A0040  # from the start of a large page that maps the first 4 MiB


def directory_again(n: Numbers, place: Place) -> Step:
    """The test pages' directory entry as it was at first, and nothing remembered."""
    p = place.paging
    text = f"mov dword ptr [{p.directory}],{(p.table & ~0xFFF) | 7}" + (f"; mov dword ptr [{p.directory + 4}],0" if p.width == 8 else "")
    return Step(f"{text}; mov eax,cr4; xor eax,0x80; mov cr4,eax; xor eax,0x80; mov cr4,eax") if p.enter else Step(text)


def control(n: Numbers, place: Place) -> Step:
    """Control registers: changed, read, and put back."""
    bits = n.of((0x10000, 8, 0x20, 2, 4, 0x40000, 0x20000000, 0x80000020, 0x60000000))
    test = n.of(("fnop", "fwait", "nop", f"mov [{place.paging.test}],eax", "mov eax,0; movd xmm0,eax", "clts", "smsw bx; lmsw bx"))
    text = n.of(
        (
            f"mov eax,cr0; xor eax,{bits & 0x6FFFFFFE}; mov cr0,eax; {test}; mov ebx,cr0",
            f"mov eax,cr4; xor eax,{n.of((4, 8, 0x80, 0x100, 0x200, 0x400, 0x40))}; mov cr4,eax; mov ebx,cr4",
            f"mov edx,{n.value() | 0x800}; mov cr4,edx",
            "mov eax,0x80000000; mov cr0,eax",
            "mov eax,0x20000011; mov cr0,eax",
            f"mov eax,{n.value()}; mov cr2,eax; mov ebx,cr2",
            "mov eax,cr3; mov cr3,eax",
            "clts; smsw ax; or eax,8; lmsw ax; fnop; mov ebx,cr0",
            f".byte 0x0f,0x20,{0xC0 | n.below(8) << 3 | n.of((0, 1, 2, 3, 5, 6, 7)):#x}; mov eax,1",
            f"mov eax,{n.value()}; mov dr{n.of((0, 1, 2, 3))},eax; mov ebx,dr{n.of((0, 1, 2, 3, 6))}",
        )
    )
    return place.either(n, text) if n.below(3) == 0 else Step(text)


def control_again(n: Numbers, place: Place) -> Step:
    """CR0 and CR4 as they were at first."""
    cr0, cr4 = (0x80010031, 0x90 if place.paging.width == 4 else 0xA0) if place.paging.enter else (0x11, 0)
    return Step(f"mov eax,{cr4}; mov cr4,eax; mov eax,{cr0}; mov cr0,eax")


def tables(n: Numbers, place: Place) -> Step:
    """Descriptor-table and task registers, loaded and read."""
    at = place.bytes + 0x200
    text = n.of(
        (
            f".byte 0x0f,0x01,0x15; .long {POINTER_TO_GDT}",
            f".byte 0x0f,0x01,0x1d; .long {POINTER_TO_IDT}",
            f"mov eax,{n.of((0x30, 0, 0x10, 0x28, 0x48, 0x1001, 0x33))}; lldt ax; sldt bx; mov ecx,{n.of((0x0C, 0x14, 0x17, 0x24))}; mov fs,ecx",
            f"mov eax,{n.of((0x28, 0, 0x10, 0x30, 0x1001, 0x2B))}; ltr ax",
            f"and byte ptr [{GDT + 0x2D}],0xfd; mov eax,0x28; ltr ax; str bx; mov cl,[{GDT + 0x2D}]",
            f"sgdt [{at}]; sidt [{at + 8}]; mov eax,[{at + 2}]; mov ebx,[{at + 10}]",
            f"mov ecx,{n.of((0xC0000080, 0x277, 0x1B, 0x10000, 0xC0000100))}; rdmsr; mov eax,0; mov edx,0",
            "mov ecx,0xc0000080; rdmsr; wrmsr; mov eax,0; mov edx,0",
            "mov eax,0; cpuid; mov eax,0; mov ebx,0; mov ecx,0; mov edx,0",
            "rdtsc; mov eax,0; mov edx,0",
            "wbinvd; invd",
        )
    )
    return place.either(n, text) if n.below(4) == 0 else Step(text)


def ports(n: Numbers, place: Place) -> Step:
    """IN and OUT, with the TSS's permission map and without."""
    port = n.of((0x80, 0xA8, 0xE4))
    text = n.of(
        (
            f"out {port},al",
            f"in al,{port}; mov al,0",
            f"mov edx,{port}; out dx,al; out dx,eax",
            f"mov edx,{port}; in eax,dx; in al,dx; mov eax,0",
            f"in eax,{port}; out {port},eax; mov eax,0",
            f"mov edx,{port}; mov esi,{place.bytes}; mov edi,{place.bytes + 0x380}; cld; .byte 0x6f,0x6e",
            f"mov edx,{port}; mov esi,{place.bytes}; mov ecx,3; cld; .byte 0xf3,0x6e",
            f"mov edx,0x300; mov edi,{place.bytes + 0x300}; mov ecx,3; cld; .byte 0xf3,0x6c; .byte 0x6d",
        )
    )
    if "0x6c" in text:  # INS without permission stores first, on this CPU: users have it with permission only
        return Step(text) if n.below(2) else Step(to_user(place.paging, place.number, 0x3002), _FLAT_USER + text)
    allow = n.of((0x68 << 16, 0x58 << 16))
    prepare = f"mov dword ptr [{TSS + 0x64}],{allow}"
    if n.below(2):
        return Step(f"{prepare}; {text}")
    return Step(f"{prepare}; {to_user(place.paging, place.number, n.of((2, 0x3002)))}", _FLAT_USER + text)


# -- code that changes itself ----------------------------------------------------------------------------------------------------------------


def self_modification(n: Numbers, place: Place) -> Step:
    """Code that writes the next instruction, an instruction in a loop, or the user's code."""
    value = n.below(128)
    form = n.below(4)
    if form == 0:
        return Step(f"call a; a: pop ebx; mov byte ptr [ebx+{n.of((6, 6, 10))}],{value}; mov al,1; nop; nop; mov cl,2; nop")
    if form == 1:
        return Step("mov ecx,3; call a; a: pop ebx; b: mov al,0x55; add ah,al; inc byte ptr [ebx+1]; dec ecx; jnz b")
    target = USER_PAGES + SLOT * place.number + 1
    if form == 2:
        return Step(f"mov dword ptr [{target}],{value}; {to_user(place.paging, place.number)}", "mov eax,0x11223344; mov ebx,eax")
    loop = "mov ecx,3; call a; a: pop ebx; b: mov al,0x55; add ah,al; inc byte ptr [ebx+1]; dec ecx; jnz b"
    return Step(to_user(place.paging, place.number), _FLAT_USER + loop)


KINDS: Final[dict[str, Kind]] = {
    kind.__name__: kind
    for kind in (
        arithmetic,
        memory,
        strings,
        branches,
        table_row,
        flags,
        segment_load,
        descriptor_edit,
        look_at_descriptor,
        far,
        stack,
        faults,
        double_fault,
        gates_again,
        inner_stack,
        single_step,
        page_edit,
        directory_edit,
        directory_again,
        control,
        control_again,
        tables,
        ports,
        self_modification,
        timer,
    )
}
"""By name. A name, once used in a saved program, stays."""
