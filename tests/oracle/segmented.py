"""A kernel for programs about segments and privilege levels: descriptors of every kind, stacks for all levels, and a log.

Every exception is logged and ends the program, but #DB, which is logged and returned from. Knows where it puts what; knows no case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.machine.flat import ENTRY, assemble, gate, image, pack, quads, system_segment
from tests.oracle.program import DONE, Program

LOG, LOG_SIZE = 0x200000, 0x400
LOG_EAX, BACK = 0x130000, 0x131000  # logs EAX (near call, flat segments); ends the program from CPL 0
HANDLERS, COMMON = 0x120000, 0x128000
GDT, LDT, IDT, TSS, TSS_16, POINTERS, DIRECTORY = 0x110000, 0x112000, 0x113000, 0x114000, 0x115000, 0x116000, 0x117000
STACKS = (0x150000, 0x152000, 0x154000, 0x156000)  # by level
NARROW_CODE, NARROW_STACK = 0x30000, 0x40000  # bases of the 16-bit segments
BASE = 0x100000  # of the segments that are not flat
INNER, KERNEL, USER, ANY = 0x140000, 0x142000, 0x160000, 0x168000  # where gates and programs have their code
_ERRORS = (8, 10, 11, 12, 13, 14, 17)


def descriptor(base: int, limit: int, access: int, flags: int = 0xC) -> int:
    """A descriptor: access is its sixth byte; flags are G, D, L and AVL."""
    return limit & 0xFFFF | (base & 0xFFFFFF) << 16 | access << 40 | (limit >> 16) << 48 | flags << 52 | (base >> 24) << 56


def call_gate(offset: int, selector: int, *, dpl: int = 3, parameters: int = 0, kind: int = 12) -> int:
    """A call gate (4: 16-bit)."""
    return offset & 0xFFFF | selector << 16 | (parameters | (0x80 | dpl << 5 | kind) << 8) << 32 | (offset >> 16) << 48


_FLAT = (0, 0xFFFFF)
DESCRIPTORS = {
    "code0": descriptor(*_FLAT, 0x9B),
    "data0": descriptor(*_FLAT, 0x93),
    "code3": descriptor(*_FLAT, 0xFB),
    "data3": descriptor(*_FLAT, 0xF3),
    "tss": system_segment(TSS, 0x67, 9),
    "ldt": system_segment(LDT, 0x3F, 2),
    "code1": descriptor(*_FLAT, 0xBB),
    "data1": descriptor(*_FLAT, 0xB3),
    "code2": descriptor(*_FLAT, 0xDB),
    "data2": descriptor(*_FLAT, 0xD3),
    "conforming0": descriptor(*_FLAT, 0x9F),
    "conforming3": descriptor(*_FLAT, 0xFF),
    "narrow_code": descriptor(NARROW_CODE, 0xFFFF, 0x9B, 0),
    "narrow_data": descriptor(NARROW_STACK, 0xFFFF, 0x93, 0),
    "over_code": descriptor(NARROW_CODE, 0xFFFF, 0x93, 0),
    "narrow_code3": descriptor(NARROW_CODE, 0xFFFF, 0xFB, 0),
    "narrow_data3": descriptor(NARROW_STACK, 0xFFFF, 0xF3, 0),
    "based_code": descriptor(BASE, 0xFFFFF, 0x9B),
    "based_data": descriptor(BASE, 0xFFFFF, 0x93),
    "based_code3": descriptor(BASE, 0xFFFFF, 0xFB),
    "based_data3": descriptor(BASE, 0xFFFFF, 0xF3),
    "fresh_data": descriptor(*_FLAT, 0x92),
    "fresh_data3": descriptor(*_FLAT, 0xF2),
    "fresh_code": descriptor(*_FLAT, 0x9A),
    "absent_data": descriptor(*_FLAT, 0x13),
    "absent_code": descriptor(*_FLAT, 0x1B),
    "absent_data3": descriptor(*_FLAT, 0x73),
    "execute_only": descriptor(*_FLAT, 0x99),
    "read_only": descriptor(*_FLAT, 0x91),
    "down": descriptor(0, 0, 0x97),
    "down3": descriptor(0, 0, 0xF7),
    "short_code": descriptor(0, 0xFFFF, 0x9B, 4),
    "high_code": descriptor(0xFFFF0000, 0xFFFFF, 0x9B),
    "negative_narrow": descriptor(0xFFFF8000, 0xFFFFF, 0x9B, 0x8),
    "gate0": call_gate(INNER, 8, parameters=2),
    "gate0_16": call_gate(INNER & 0xFFFF, 0, parameters=3, kind=4),
    "gate_private": call_gate(INNER, 8, dpl=0),
    "gate_absent": call_gate(INNER, 8) & ~(0x80 << 40),
    "gate_null": call_gate(INNER, 0),
    "gate_data": call_gate(INNER, 0x10),
    "gate_conforming": call_gate(INNER, 0x58),
    "gate1": 0,
    "gate1_16": 0,
    "gate_same3": 0,
    "tss_16": system_segment(TSS_16, 0x2B, 1),
}
SELECTORS = {name: 8 * (n + 1) for n, name in enumerate(DESCRIPTORS)}
assert SELECTORS["code0"] == 8 and SELECTORS["data0"] == 0x10 and SELECTORS["conforming0"] == 0x58
DESCRIPTORS["gate1"] = call_gate(INNER, SELECTORS["code1"], parameters=1)
DESCRIPTORS["gate0_16"] = call_gate(0x4000, SELECTORS["narrow_code"], parameters=3, kind=4)
DESCRIPTORS["gate1_16"] = call_gate(0x4000, SELECTORS["code1"], parameters=1, kind=4)
DESCRIPTORS["gate_same3"] = call_gate(INNER, SELECTORS["code3"], parameters=2)
LDT_DESCRIPTORS = {"ldt_data0": descriptor(BASE, 0xFFFFF, 0x93), "ldt_data3": descriptor(BASE, 0xFFFFF, 0xF3), "ldt_code0": descriptor(*_FLAT, 0x9B)}
LDT_DESCRIPTORS |= {"ldt_code3": descriptor(*_FLAT, 0xFB), "ldt_narrow": descriptor(NARROW_CODE, 0xFFFF, 0x9B, 0)}
SELECTORS |= {name: 8 * n | 4 for n, name in enumerate(LDT_DESCRIPTORS)}


def _handler(vector: int) -> str:
    return ("" if vector in _ERRORS else "push 0xe0e0; ") + f"push {vector:#x}; jmp {COMMON if vector != 1 else COMMON + 0x800:#x}"


# Stack: pusha, then vector, error, EIP, CS, EFLAGS (RF is left out: QEMU does not set it, SDM 3B 17.3.1.1), and ESP and SS of an outer level.
_COMMON = f"""
    pushad; mov ebp,esp; .byte 0x1e,0x06,0x0f,0xa0,0x0f,0xa8; mov eax,0x10; mov ds,eax; mov es,eax
    mov eax,0xffffffff; call {LOG_EAX:#x}
    {"; ".join(f"mov eax,[ebp+{4 * n}]; call {LOG_EAX:#x}" for n in range(8, 12))}
    mov eax,[ebp+48]; and eax,0xfffeffff; call {LOG_EAX:#x}
    {"; ".join(f"mov eax,[esp+{4 * n}]; movzx eax,ax; call {LOG_EAX:#x}" for n in range(4))}
    {"; ".join(f"mov eax,[ebp+{4 * n}]; call {LOG_EAX:#x}" for n in (7, 0))}
    mov eax,[ebp+44]; and eax,3; mov ecx,cs; and ecx,3; cmp eax,ecx; je same
    mov eax,[ebp+52]; call {LOG_EAX:#x}; mov eax,[ebp+56]; call {LOG_EAX:#x}
    same:
"""
_START = f"""
    .byte 0x0f,0x01,0x15; .long {POINTERS:#x}
    .byte 0x0f,0x01,0x1d; .long {POINTERS + 8:#x}
    mov eax,0x10; mov ds,eax; mov es,eax; mov fs,eax; mov gs,eax; mov ss,eax; mov esp,{STACKS[0]:#x}
    mov eax,{SELECTORS["ldt"]}; lldt ax; mov eax,{SELECTORS["tss"]}; ltr ax
    mov al,0xff; out 0x21,al; out 0xa1,al
    mov eax,cr4; or eax,0x10; mov cr4,eax; mov eax,{DIRECTORY:#x}; mov cr3,eax; mov eax,cr0; or eax,0x80000000; mov cr0,eax
"""


def program(kernel: str, *, user: str = "", inner: str = "", narrow: str = "", parts: Mapping[int, str | bytes] | None = None) -> Program:
    """`kernel` runs at CPL 0 when all is set up and ends with `finish()`; user at USER, inner where gates lead, narrow (16-bit code) at
    offset 0x100 of the 16-bit code segments; other parts as given."""
    idt = [gate(HANDLERS + 0x20 * vector, dpl=3 if vector in (3, 4) else 0) for vector in range(32)] + [0] * 224
    idt[0x40] = gate(INNER, dpl=3)
    idt[0x41] = gate(INNER, dpl=3, selector=SELECTORS["code1"])
    idt[0x42] = gate(INNER, dpl=3, selector=SELECTORS["code2"])
    idt[0x43] = 0x4000 | SELECTORS["narrow_code"] << 16 | 0xE600 << 32  # a 16-bit interrupt gate
    idt[0x44] = 0x4000 | SELECTORS["narrow_code"] << 16 | 0xE700 << 32  # a 16-bit trap gate
    idt[0x45] = gate(INNER, dpl=3, selector=SELECTORS["conforming0"])
    idt[0x46] = gate(INNER, dpl=0)
    tss = [0, STACKS[0] - 0x800, 0x10, STACKS[1], SELECTORS["data1"] | 1, STACKS[2], SELECTORS["data2"] | 2, *([0] * 18), 0x68 << 16]
    made: dict[int, str | bytes] = {
        ENTRY: f"{_START}; {kernel}",
        BACK: f"mov eax,0x10; mov ds,eax; mov es,eax; mov fs,eax; mov gs,eax; mov ss,eax; mov esp,{STACKS[0]:#x}; mov eax,{DONE:#x}; jmp eax",
        LOG_EAX: f"push ebx; mov ebx,[{LOG:#x}]; mov [ebx],eax; add ebx,4; mov [{LOG:#x}],ebx; pop ebx; ret",
        LOG: pack([LOG + 16]),
        GDT: quads([0, *DESCRIPTORS.values()]),
        LDT: quads(LDT_DESCRIPTORS.values()),
        IDT: quads(idt),
        TSS: pack(tss),
        TSS_16: pack([(STACKS[0] & 0xFFFF) << 16, 0x10, 0]),
        POINTERS: pack([0x7FF | (GDT & 0xFFFF) << 16, GDT >> 16, 0x7FF | (IDT & 0xFFFF) << 16, IDT >> 16]),
        DIRECTORY: pack([0x87]),
        COMMON: f"{_COMMON}; mov esp,{STACKS[0]:#x}; mov eax,{BACK:#x}; jmp eax",
        COMMON + 0x800: f"{_COMMON}; lea esp,[ebp-16]; .byte 0x0f,0xa9,0x0f,0xa1,0x07,0x1f; popad; add esp,8; .byte 0xcf",
        HANDLERS: b"".join(assemble(_handler(vector), HANDLERS + 0x20 * vector).ljust(0x20, b"\x90") for vector in range(32)),
    }
    if user:
        made[USER] = user
    if inner:
        made[INNER] = inner
    if narrow:
        made[NARROW_CODE + 0x100] = narrow_code(narrow, 0x100)
    return Program(image(made | dict(parts or {})), ((LOG, LOG_SIZE),))


_NARROW_FORMS = {"ret": ".byte 0xc3", "retf": ".byte 0xcb", "call": ".byte 0xe8", "jmp": ".byte 0xe9"}
_TO_LABEL = re.compile(r"\b(call|jmp) ([a-z]\d?)\b(?!x)")
_RETURN = re.compile(r"(?<![\w.])(retf?)(?= *(;|$))")


def narrow_code(source: str, at: int) -> bytes:
    """16-bit machine code. Keystone makes 32-bit transfers of `call`, `jmp`, `ret` and `retf`: here they are 16-bit, to labels of a letter."""
    count = iter(range(1000))

    def to_label(found: re.Match[str]) -> str:
        behind = f"behind{next(count)}"
        return f"{_NARROW_FORMS[found[1]]}; .short {found[2]}-{behind}; {behind}:"

    source = _TO_LABEL.sub(to_label, source)
    return assemble(_RETURN.sub(lambda found: _NARROW_FORMS[found[1]], source), at, wide=False)


def finish() -> str:
    """Ends the program, from CPL 0."""
    return f"mov eax,{BACK:#x}; jmp eax"


def log(*values: str) -> str:
    """Logs 32-bit operands, in flat segments."""
    return "; ".join(f"push eax; mov eax,{value}; call {LOG_EAX:#x}; pop eax" for value in values)


def far(kind: str, selector: int, offset: int) -> str:
    """A direct far `jmp` or `call`."""
    opcode = 0xEA if kind == "jmp" else 0x9A
    return f".byte {opcode:#x}; .long {offset:#x}; .short {selector:#x}"


def enter(level: int, at: int = USER, *, flags: int = 2, code: str = "code", data: str = "data", eip: int | None = None) -> str:
    """iret to privilege level `level`."""
    stack = SELECTORS[f"{data}{level}"] | level
    return f"push {stack:#x}; push {STACKS[level]:#x}; push {flags:#x}; push {SELECTORS[f'{code}{level}'] | level:#x}; push {at:#x}; .byte 0xcf"
