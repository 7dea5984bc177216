"""The fixed part of a generated guest: tables, handlers that log each event and go on with the next step, and the final report.

A program is made of steps: a piece of kernel code, and one of user code where the step goes there. Before each step the address of the
next one is put where the handlers find it, so that whatever a step does wrong, the guest goes on. What happened stands in guest memory
at the end: LOG has a record of each event, in order, with all registers; REPORT the last state. Knows assembly and tables; knows
nothing of how a guest is run.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from tests.assembly import ENTRY, assemble
from tests.machine.flat import (
    FLAT_CODE,
    FLAT_DATA,
    LGDT,
    LIDT,
    USER_CODE,
    USER_DATA,
    code_with_base,
    data_with_base,
    gate,
    pack,
    quads,
    system_segment,
)

MEMORY_MIB: Final = 4
HANDLERS, GDT, IDT, LDT, TSS, WORDS = 0x110000, 0x120000, 0x121000, 0x122000, 0x123000, 0x124000
PROGRAM, DATA, STACK, LOG, REPORT = 0x130000, 0x140000, 0x158000, 0x160000, 0x170000
USER_PAGES, TEST_PAGES, TABLES = 0x180000, 0x1A0000, 0x200000
USER_BYTES, USER_STACK, ABSENT = 0x8000, 0x10000, 0x3F0000  # the first two from the start of the user's pages
RESUME, LOG_AT, EVENTS, TRAPS = WORDS + 0x10, WORDS + 0x14, WORDS + 0x18, WORDS + 0x1C  # words of the handlers
POINTER_TO_GDT, POINTER_TO_IDT = WORDS, WORDS + 8
SPARE: Final = 0xA0  # the first of eight selectors whose descriptors steps may write
CALL_GATE, GATE_TO_LEVEL_1 = 0x7B, 0x83
RETURN_POINT: Final = HANDLERS + 0x3000  # where the call gate leads: back with a far return
SLOT: Final = 0x200  # bytes for a step's code
MOST_STEPS: Final = 24
MOST_EVENTS: Final = 800
SYSTEM_CALL, TRAP_GATE, TIMER = 0x80, 0x81, 0x20
RECORD: Final = struct.Struct("<16I")
RECORD_FIELDS: Final = ("vector error eip cs eflags cr2 ds_es esp_ss edi esi ebp esp ebx edx ecx eax").split()
_WITH_ERROR_CODE: Final = frozenset((8, 10, 11, 12, 13, 14, 17))
_RETURNING: Final = (1, 3, 4, TRAP_GATE, TIMER)  # the handlers of these return to where they came from

DESCRIPTORS: Final = (
    0,
    FLAT_CODE,  # 08h
    FLAT_DATA,
    USER_CODE,  # 18h
    USER_DATA,
    system_segment(TSS, 0x67, 9),  # 28h
    system_segment(LDT, 0x3F, 2),
    code_with_base(0x1000),  # 38h
    data_with_base(0x1000),
    FLAT_DATA & ~(1 << 47),  # 48h: not present
    FLAT_CODE & ~(1 << 47),  # 50h: not present
    FLAT_DATA & ~(2 << 40),  # 58h: read-only
    FLAT_CODE & ~(2 << 40),  # 60h: execute-only
    FLAT_CODE | 4 << 40,  # 68h: conforming
    FLAT_DATA & ~(1 << 40),  # 70h: not accessed yet
    gate(RETURN_POINT, dpl=3) & ~(0xF << 40) | 0xC << 40,  # 78h: a call gate
    gate(RETURN_POINT, dpl=3, selector=0x91) & ~(0xF << 40) | 0xC << 40,  # 80h: a call gate to level 1, whose stack the TSS names
    FLAT_DATA | 4 << 40,  # 88h: expand-down: from 4 GiB on, which is nothing; limits are not checked (docs/QUIRKS.md), so for loads only
    FLAT_CODE | 1 << 45,  # 90h: of level 1
    FLAT_CODE | 3 << 45,  # 98h
    *(0,) * 8,
)
SELECTORS: Final = tuple(8 * n | rpl for n in range(len(DESCRIPTORS)) for rpl in (0, 3)) + (0x0C, 0x14, 0x17, 0x1F, 0x24, 0x1001, 0xFFF8, 0x29, 0x12)
_LDT: Final = (0, FLAT_DATA, USER_DATA, FLAT_CODE, USER_DATA & ~(1 << 47), 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Paging:
    """A paging mode and where things lie under it.

    enter: code that turns it on. width: bytes of an entry. table: where the entries of the test pages stand; directory: the entry that leads
    to that table. user: linear address of the user's pages: code, from 8000h on data, from 10000h down the stack. test: of the test pages.
    """

    enter: str
    width: int
    table: int
    directory: int
    user: int = 0x400000
    test: int = 0x800000


_ON: Final = "mov eax,cr0; or eax,0x80010020; mov cr0,eax"
PAGINGS: Final = {
    "off": Paging("", 4, TABLES + 0x4000, TABLES + 8, USER_PAGES, TEST_PAGES),
    "legacy": Paging(f"mov eax,0x90; mov cr4,eax; mov eax,{TABLES}; mov cr3,eax; {_ON}", 4, TABLES + 0x4000, TABLES + 8),
    "pae": Paging(
        f"mov ecx,0xc0000080; rdmsr; or eax,0x800; wrmsr; mov eax,0xa0; mov cr4,eax; mov eax,{TABLES + 0x10000}; mov cr3,eax; {_ON}",
        8,
        TABLES + 0x16000,
        TABLES + 0x11020,
    ),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One step: kernel code, and the user code that it goes to when there is some."""

    kernel: str = ""
    user: str = ""


def to_user(paging: Paging, number: int, flags: int = 2) -> str:
    """Kernel code that goes to the user code of step `number`."""
    return f"push 0x23; push {paging.user + USER_STACK}; push {flags}; push 0x1b; push {paging.user + SLOT * number}; .byte 0xcf"


def parts(steps: Sequence[Step], paging: Paging, *, timer: bool = False, ending: str | None = None) -> dict[int, bytes]:
    """The whole guest: parts of memory by address; ENTRY holds its first instruction. timer: the timer's interrupt line is open."""
    start = f"{_START}; {_pic(timer)}; {paging.enter}; {_FIRST_VALUES}; mov ecx,{PROGRAM}; jmp ecx"
    made = {ENTRY: assemble(start)}
    for number, step in enumerate(steps):
        at, following = PROGRAM + SLOT * number, PROGRAM + SLOT * (number + 1)
        text = f"mov dword ptr ss:[{RESUME}],{following}; {step.kernel}"
        if step.user:
            made[USER_PAGES + SLOT * number] = _fitting(f"{step.user}; int {SYSTEM_CALL}", paging.user + SLOT * number)
        made[at] = _fitting(f"{text}; jmp {following}", at)
    made[PROGRAM + SLOT * len(steps)] = assemble(f"{_FINISH}; {ending or _EXIT}", PROGRAM + SLOT * len(steps))
    return {**_fixed(), **made}


def _fitting(text: str, at: int) -> bytes:
    code = assemble(text, at)
    assert len(code) <= SLOT, text
    return code


def _pic(timer: bool) -> str:
    master, slave = (0x11, TIMER, 4, 1), (0x11, TIMER + 8, 2, 1)
    words = [*zip((0x20, 0x21, 0x21, 0x21), master), *zip((0xA0, 0xA1, 0xA1, 0xA1), slave), (0xA1, 0xFF), (0x21, 0xFE if timer else 0xFF)]
    return "; ".join(f"mov al,{value}; out {port},al" for port, value in words)


_START: Final = f"""
    {LGDT.format(POINTER_TO_GDT)}; {LIDT.format(POINTER_TO_IDT)}
    mov eax,0x10; mov ds,eax; mov es,eax; mov ss,eax; mov fs,eax; mov gs,eax; mov esp,{STACK}
    mov eax,0x28; ltr ax; mov eax,0x30; lldt ax; mov eax,0; mov cr2,eax
"""
_FIRST_VALUES: Final = "; ".join(f"mov {register},{0x01010101 * n}" for n, register in enumerate(("ebp", "eax", "ebx", "edx", "esi", "edi")))
_FINISH: Final = f"""
    pushfd; pushad; mov eax,ds; mov edx,es; mov ecx,0x10; mov ds,ecx; mov es,ecx; mov edi,{REPORT}
    mov [edi+64],eax; mov [edi+68],edx; mov eax,fs; mov [edi+72],eax; mov eax,gs; mov [edi+76],eax; mov eax,ss; mov [edi+80],eax
    sldt ax; mov [edi+84],ax; str ax; mov [edi+88],ax; mov eax,cr0; mov [edi+92],eax; mov eax,cr2; mov [edi+96],eax
    mov eax,cr3; mov [edi+100],eax; mov eax,cr4; mov [edi+104],eax; mov esi,esp; mov ecx,9; cld; .byte 0xf3,0xa5; add esp,36
"""
_EXIT: Final = "mov al,0; out 0xf4,al; done: jmp done"
_COMMON: Final = f"""
    cld; pushad; mov ebp,esp; mov edx,ds; mov ebx,es; mov eax,0x10; mov ds,eax; mov es,eax; mov edi,[{LOG_AT}]
    mov eax,[ebp+32]; stosd; mov eax,[ebp+36]; stosd; mov eax,[ebp+40]; stosd; mov eax,[ebp+44]; stosd; mov eax,[ebp+48]; stosd
    mov eax,cr2; stosd; mov eax,ebx; shl eax,16; mov ax,dx; stosd; mov eax,ss; shl eax,16; test byte ptr [ebp+44],3; jz inner; mov eax,[ebp+52]
    inner: stosd
    mov ecx,0; copy: mov eax,[ebp+4*ecx]; stosd; inc ecx; cmp ecx,8; jb copy
    mov [{LOG_AT}],edi; inc dword ptr [{EVENTS}]; cmp dword ptr [{EVENTS}],{MOST_EVENTS}; jae finish
    mov eax,[ebp+32]; cmp eax,{TIMER}; je timer; cmp eax,1; je debug; cmp eax,3; je back; cmp eax,4; je back; cmp eax,{TRAP_GATE}; je back
    mov eax,0x10; mov ss,eax; mov esp,{STACK}; mov fs,eax; mov gs,eax; push 2; popfd; jmp dword ptr [{RESUME}]
    timer: mov al,0x20; out 0x20,al; jmp back
    debug: inc dword ptr [{TRAPS}]; test byte ptr [{TRAPS}],3; jnz back; and dword ptr [ebp+48],0xfffffeff
    back: mov es,ebx; mov ds,edx; popad; lea esp,[esp+8]; .byte 0xcf
    finish: mov al,1; out 0xf4,al; forever: jmp forever
"""


@cache
def _fixed() -> dict[int, bytes]:
    common = HANDLERS + 0x2000
    stubs = bytearray()
    for vector in range(256):
        stub = (b"" if vector in _WITH_ERROR_CODE else b"\x6a\0") + b"\x68" + vector.to_bytes(4, "little")
        stub += b"\xe9" + (common - (HANDLERS + 16 * vector + len(stub) + 5) & 0xFFFFFFFF).to_bytes(4, "little")
        stubs += stub.ljust(16, b"\xcc")
    idt = [gate(HANDLERS + 16 * vector, dpl=3 if vector in (3, 4, SYSTEM_CALL, TRAP_GATE) else 0) for vector in range(256)]
    idt[TRAP_GATE] |= 1 << 40
    tss = pack([0, STACK, 0x10, *([0] * 22), 0x68 << 16])
    pointers = struct.pack("<HIxxHI", 8 * len(DESCRIPTORS) - 1, GDT, 0x7FF, IDT)
    words = pointers.ljust(0x10, b"\0") + pack([0, LOG, 0, 0])
    return {
        HANDLERS: bytes(stubs),
        common: assemble(_COMMON, common),
        RETURN_POINT: assemble("mov eax,0x12345678; retf", RETURN_POINT),
        GDT: quads(DESCRIPTORS),
        IDT: quads(idt),
        LDT: quads(_LDT),
        TSS: tss,
        WORDS: words,
        DATA: bytes((37 * n ^ n >> 3) & 0xFF for n in range(0x2000)),
        TEST_PAGES: b"\xb8\x78\x56\x34\x12\xc3".ljust(4096, b"\xc3") * 8,
        **_legacy_tables(),
        **_pae_tables(),
    }


def _leaves() -> tuple[list[int], list[int], list[int]]:
    """Entries of the first 4 MiB, of the user's pages, and of the test pages, without width."""
    identity = [page << 12 | (2 if ABSENT <= page << 12 < ABSENT + 0x10000 else 3) for page in range(1024)]
    return identity, [USER_PAGES + 0x1000 * n | 7 for n in range(17)], [TEST_PAGES + 0x1000 * n | 7 for n in range(8)]


def _legacy_tables() -> dict[int, bytes]:
    identity, user, test = _leaves()
    directory = [TABLES + 0x1000 | 3, TABLES + 0x3000 | 7, TABLES + 0x4000 | 7]
    return {TABLES: pack(directory), TABLES + 0x1000: pack(identity), TABLES + 0x3000: pack(user), TABLES + 0x4000: pack(test)}


def _pae_tables() -> dict[int, bytes]:
    identity, user, test = _leaves()
    base = TABLES + 0x10000
    directory = [base + 0x2000 | 3, base + 0x3000 | 3, base + 0x4000 | 7, 0, base + 0x6000 | 7]
    return {
        base: quads([base + 0x1000 | 1, 0, 0, 0]),
        base + 0x1000: quads(directory),
        base + 0x2000: quads(identity[:512]),
        base + 0x3000: quads(identity[512:]),
        base + 0x4000: quads(user),
        base + 0x6000: quads(test),
    }
