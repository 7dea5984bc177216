"""Segments, modes and privilege levels: the same programs under binary translation and on QEMU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest

from tests.oracle.program import Left, Program, run_here, run_on_qemu
from tests.oracle.segmented import ANY, BASE, INNER, LOG, LOG_EAX, NARROW_CODE, SELECTORS, STACKS, USER, enter, far, finish, log, narrow_code, program
from tests.require import require

S = SELECTORS
_TO_NARROW = f"mov eax,{S['narrow_data']}; mov ss,eax; mov esp,0x1000; " + far("jmp", S["narrow_code"], 0x100)
_FROM_NARROW = f".byte 0x66,0xea; .long {ANY:#x}; .short 8"
# Logs nothing by itself: it shows its frame and its segments in registers.
_NARROW_HANDLER = narrow_code("mov bp,sp; mov dx,[bp]; mov si,[bp+2]; mov di,[bp+4]; mov bx,cs; .byte 0x66; pushf; pop ecx; iret", 0x4000)
_FLAT = "mov ecx,0x10; mov ds,ecx; mov es,ecx; mov fs,ecx; mov gs,ecx; "
_LOG_ALL = log("eax", "ebx", "ecx", "edx", "esi", "edi")
_NARROW_END: dict[int, str | bytes] = {
    NARROW_CODE + 0x3000: narrow_code("mov dx,sp; push cs; pop di; retf", 0x3000),
    NARROW_CODE + 0x4000: _NARROW_HANDLER,
    ANY: f"{_FLAT} mov edx,esp; mov ecx,ss; mov ss,[{LOG + 8:#x}]; mov esp,{STACKS[0]:#x}; {_LOG_ALL}; {finish()}",
    LOG + 8: b"\x10\0\0\0",
}
_SHOW_FRAME = "mov edx,[esp]; mov esi,[esp+4]; mov edi,[esp+8]; mov ecx,esp; .byte 0xcf"


def _narrow(code: str, before: str = "", parts: Mapping[int, str | bytes] | None = None) -> Program:
    """16-bit code on a 16-bit stack, between a set-up and a log of the registers."""
    return program(f"{before}; {_TO_NARROW}", narrow=f"{code}; {_FROM_NARROW}", inner=_SHOW_FRAME, parts=_NARROW_END | dict(parts or {}))


def _in_narrow_code() -> dict[str, Program]:
    """16-bit code segments and stacks in the guest's kernel."""
    bodies = {
        "straight": "mov ax,0x1234; mov ebx,0x56789abc; add bx,ax; nop",
        "jumps": "xor bx,bx; jmp a; b: or bx,2; jmp c; a: or bx,1; jmp b; c: or bx,4",
        "jcc": "xor bx,bx; mov ax,5; l: add bx,ax; dec ax; jnz l; cmp bx,15; je e; mov bx,0; e: nop",
        "loop": "mov ecx,0x10003; xor bx,bx; l: inc bx; loop l; .byte 0x67,0xe3,2; or bx,0x80; .byte 0xe3,3; or bh,0x80; nop",
        "loope": "mov cx,5; xor bx,bx; l: inc bx; cmp bx,3; loopne l; m: inc bx; cmp bx,bx; loope m",
        "call": "mov bx,1; call f; or bx,0x100; jmp e; f: or bx,0x10; ret; e: nop",
        "call n": "push 7; call f; jmp e; f: mov bp,sp; mov bx,[bp+2]; .byte 0xc2,2,0; e: nop",
        "call32": ".byte 0x66,0xe8; .long 3; jmp e; nop; mov ebx,[esp]; .byte 0x66,0xc3; e: nop",
        "indirect": "call g; g: pop bx; add bx,11; call bx; jmp e; nop; nop; nop; nop; nop; nop; mov ax,0x77; ret; e: nop",
        "indirect memory": "mov si,0x200; mov word ptr [si],0x300; mov byte ptr ds:[0x30300],0xc3; nop",
        "push pop": "push 0x1234; push ax; pop bx; pop dx; pushad; popad; pusha; popa; .byte 0x66; push 0x12345; pop ebx",
        "enter leave": "mov bp,0x55; enter 8,0; mov bx,sp; leave; mov dx,bp",
        "wrap of sp": "mov sp,2; push 0x1111; push 0x2222; pop bx; pop dx; mov si,sp; call f; f: mov sp,0x1000",
        "wrap of sp by callout": "mov sp,2; .byte 0x66; pushf; pop ebx; mov si,sp; mov sp,1; push 1; .byte 0x66,0x0e; mov di,sp; mov sp,0x1000",
        "pushf popf": (
            "stc; pushf; pop bx; push 0x8d5; popf; pushf; pop dx; cli; .byte 0x66; pushf; pop esi; push 0x3202; popf; pushf; pop di; push 2; popf"
        ),
        "segments read": "mov bx,cs; mov dx,ss; push cs; pop si; push ss; pop di; mov eax,0xffffffff; mov ax,cs",
        "addressing": f"mov ax,{NARROW:#x}; mov ds,ax; mov bx,0x20; mov si,0x30; mov di,0x40; mov bp,0x50; "
        "mov dword ptr [bx+si],0x11; mov dword ptr [bx+di+4],0x22;"
        "mov word ptr [bp+si],0x33; mov word ptr [bp+di+8],0x44; mov ax,[si]; mov [di],bx; mov [bp],sp; mov [bx+0x100],cs; "
        "mov [0x600],ss; smsw [0x602]; sldt [si+2]; str [bp+di];"
        f"mov ebx,[0x600]; mov edx,ds:[0x50+0x30]; mov esi,[bp+di]; mov edi,[bx+0xfef0]",
        "wrap of an address": (
            f"mov ax,{NARROW:#x}; mov ds,ax; mov bx,0xfff0; mov si,0x30; mov word ptr [bx+si],0x55aa; mov word ptr [0x10],cs; "
            "mov ax,[0x20]; mov cx,[0x10]"
        ),
        "through cs": "mov bx,word ptr cs:[0x100]; mov si,0x104; mov dx,word ptr cs:[si]; mov si,0x102; .byte 0x2e,0xad; mov cx,ax",
        "32-bit addressing": f"mov ax,0x10; mov ds,ax; mov ebx,{LOG:#x}; mov eax,[ebx]; mov edx,[ebx+4]; .byte 0x67,0x66,0x8b,0x35; .long {LOG:#x}",
        "strings": (
            f"mov ax,{NARROW:#x}; mov ds,ax; mov es,ax; mov si,0x100; mov di,0x200; mov cx,8; mov ax,0x4142; mov di,si; rep stosw; "
            "mov si,0x100; mov di,0x200; mov cx,16; rep movsb; mov ebx,[0x20c]"
        ),
        "far call": f"push cs; call f; jmp e; f: mov bx,sp; retf; e: nop; .byte 0x9a; .short 0x3000; .short {S['narrow_code']:#x}; mov si,sp",
        "sgdt": f"mov ax,{NARROW:#x}; mov ds,ax; mov di,0x200; sgdt [di]; sidt [di+8]; mov ebx,[di]; mov edx,[di+4]; mov esi,[di+8]; mov ax,[di+12]",
        "int": "mov bx,1; int 0x40; or bx,0x100",
        "int16": "mov bx,1; int 0x43; or bx,0x100",
        "exception": "mov bx,1; mov ax,0; ud2; mov bx,2",
        "divide": "mov bx,1; xor dx,dx; xor cx,cx; div cx; mov bx,2",
        "self-modifying": (
            f"mov ax,{S['over_code']:#x}; mov ds,ax; xor ebx,ebx; mov cx,3; l: inc bx; add byte ptr [l2],1; .byte 0x83,0xc3; "
            "l2: .byte 0x10; loop l; mov dx,bx"
        ),
        "segment loads": (
            f"mov ax,{S['based_data']:#x}; mov ds,ax; mov es,ax; push {S['data0']:#x}; pop fs; mov ebx,[0]; mov dx,fs; mov si,ds; mov di,es"
        ),
        "movzx of a segment": "mov bx,ds; mov dx,es; mov si,fs; mov di,gs",
        "lss": "mov ax,0x10; mov ds,ax; xor ebx,ebx; mov bx,sp; mov [bx],bx; mov [bx+2],ss; lss sp,[bx]; mov dx,sp; mov si,ss",
        "iret": "pushf; push cs; call f; jmp e; f: mov bx,sp; iret; e: mov dx,sp",
        "clts": "mov eax,cr0; or al,8; mov cr0,eax; mov ebx,cr0; clts; mov edx,cr0; smsw si; and eax,0xfffffff7",
    }
    made = {name: _narrow(body) for name, body in bodies.items()}
    return {f"16-bit: {name}": made[name] for name in made}


_DATA = "mov eax,0x23; mov ds,eax; mov es,eax; "
_SELECTORS = ("cs", "ss", "ds", "es", "fs", "gs")
_LOG_SELECTORS = "; ".join(f"xor eax,eax; mov ax,{name}; push eax" for name in _SELECTORS) + f"; {_DATA} mov ebp,esp; "
_LOG_SELECTORS += log(*(f"dword ptr [ebp+{4 * n:#x}]" for n in reversed(range(6)))) + "; add esp,24; "


def _frame(count: int) -> str:
    """Logs the topmost words of the stack, at any level."""
    return f"mov ebp,esp; {log('ebp', *(f'dword ptr [ebp+{4 * n:#x}]' for n in range(count)))}"


def _shown(count: int, back: str) -> str:
    """Code behind a gate: selectors and frame are logged, then it goes `back`."""
    return f"{_LOG_SELECTORS} {_frame(count)}; {back}"


_IRET, _RETF = ".byte 0xcf", ".byte 0xcb"
_PRIVILEGED = {
    "cli": "cli",
    "sti": "sti",
    "hlt": "hlt",
    "clts": "clts",
    "mov eax,cr0": "mov eax,cr0",
    "mov cr3,eax": "mov cr3,eax",
    "mov dr0,eax": "mov dr0,eax",
    "mov eax,dr7": "mov eax,dr7",
    "wbinvd": "wbinvd",
    "invd": ".byte 0x0f,0x08",
    "invlpg": "invlpg [esp]",
    "lgdt": ".byte 0x0f,0x01,0x14,0x24",
    "ltr": "mov eax,0x28; ltr ax",
    "lldt": "xor eax,eax; lldt ax",
    "lmsw": "lmsw ax",
    "rdmsr": "mov ecx,0x174; rdmsr",
    "in": "in al,0x21",
    "out": "mov dx,0xe8; out dx,eax",
    "ins": "mov edx,0x21; mov edi,esp; insb",
    "rep outs": "mov edx,0x80; mov esi,esp; mov ecx,2; rep outsb",
}


def _at_levels() -> dict[str, Program]:
    """What each privilege level outside of 0 may do, and how it is entered and left."""
    made: dict[str, Program] = {}
    for level in (1, 2, 3):
        own = S[f"data{level}"] | level
        into = enter(level)

        def case(
            name: str, user: str, *, kernel: str = "", inner: str = "", into: str = into, parts: Mapping[int, str | bytes] | None = None
        ) -> None:
            made[f"level {level}: {name}"] = program(f"{kernel}; {into}", user=f"{user}; ud2", inner=inner, parts=parts)  # noqa: B023

        case("selectors kept and dropped", _LOG_SELECTORS)
        mixed = f"mov eax,{S['data1']}; mov es,eax; mov eax,{S['data2'] | 1}; mov fs,eax; mov eax,{S['conforming0']}; mov gs,eax"
        case("selectors kept by privilege", _LOG_SELECTORS, kernel=mixed)
        case(
            "readable code in data registers",
            _LOG_SELECTORS,
            kernel=f"mov eax,{S['code0']}; mov es,eax; mov eax,{S['code2']}; mov fs,eax; mov eax,{S['code3']}; mov gs,eax",
        )
        for name, code in _PRIVILEGED.items():
            case(f"privileged: {name}", code)
            case(f"IOPL {level}: {name}", f"{_DATA}{code}; pushfd; pop eax; call {LOG_EAX:#x}", into=enter(level, flags=level << 12 | 2))
        case(
            "flags",
            f"{_DATA} pushfd; pop eax; {log('eax')}; push 0x3ed7; popfd; pushfd; pop eax; push 2; popfd; {log('eax')}",
            into=enter(level, flags=0x1202),
        )
        case("flags by iret", f"{_DATA} push 0x3ad7; push cs; push {ANY:#x}; {_IRET}", parts={ANY: f"pushfd; pop eax; cld; {log('eax')}; ud2"})
        for name in (
            "data0",
            "data1",
            "data2",
            "data3",
            "code0",
            "conforming0",
            "fresh_data3",
            "absent_data3",
            "execute_only",
            "tss",
            "ldt_data0",
            "ldt_data3",
            "down3",
        ):
            for rpl in (0, 3):
                case(f"mov fs,{name} rpl {rpl}", f"mov eax,{S[name] | rpl:#x}; mov fs,eax; {_LOG_SELECTORS}")
        for name, register in (
            ("null", 0),
            ("null 3", 3),
            ("own", own),
            ("inner", 0x10),
            ("rpl", own & ~3),
            ("outer", 0x23),
            ("absent", S["absent_data3"] | 3),
            ("read only", S["read_only"]),
        ):
            case(f"mov ss,{name}", f"{_DATA} mov eax,{register:#x}; mov ss,eax; {log('esp')}; {_LOG_SELECTORS}")
        case("null data segments", "xor eax,eax; mov ds,eax; mov eax,3; mov es,eax; mov eax,1; mov fs,eax; mov eax,2; mov gs,eax; " + _LOG_SELECTORS)
        case(
            "pop and far pointers",
            f"{_DATA} push 0x23; pop fs; push 0x23; push 0x1234; .byte 0x0f,0xb5,0x04,0x24; {log('eax')}; pop eax; pop eax; push 0x10; pop es",
        )
        for vector in (0x40, 0x41, 0x42, 0x45):
            case(f"int {vector:x}", f"int {vector:#x}; {_LOG_SELECTORS} {log('esp')}", inner=_shown(6, _IRET))
        case("int 46", "int 0x46")
        case("int 47", "int 0x47")
        case("int3", "int3")
        case("ud2", "ud2")
        frame = narrow_code("mov bp,sp; mov dx,[bp]; mov si,[bp+2]; mov di,[bp+4]; mov ecx,[bp+6]; .byte 0x66; pushf; ud2", 0x4000)
        case("int through a 16-bit gate", "int 0x43", parts={NARROW_CODE + 0x4000: frame}, into=enter(level, flags=0x202))
        case("int through a 16-bit trap gate", "int 0x44", parts={NARROW_CODE + 0x4000: frame}, into=enter(level, flags=0x202))
        for gate_ in ("gate0", "gate1", "gate_private", "gate_absent", "gate_null", "gate_data", "gate_same3", "gate1_16", "ldt", "data3"):
            count = 2 if gate_ in ("gate0", "gate_same3") else 1
            back = f"{_DATA} .byte 0xca,{4 * count},0" if level == 3 or gate_ not in ("gate1", "gate_same3") else f".byte 0xca,{4 * count},0"
            for rpl in (0, level):
                case(
                    f"call {gate_} rpl {rpl}",
                    f"push 0x1111; push 0x2222; {far('call', S[gate_] | rpl, 0x12345)}; {_LOG_SELECTORS} {log('esp')}",
                    inner=_shown(7, back if gate_ != "gate1_16" else "ud2"),
                    parts={0x4000: f"jmp {INNER:#x}"} if gate_ == "gate1_16" else None,
                )
                case(f"jmp {gate_} rpl {rpl}", far("jmp", S[gate_] | rpl, 0x12345), inner=f"{_LOG_SELECTORS} ud2", parts={0x4000: f"jmp {INNER:#x}"})
        case(
            "call through a 16-bit gate with parameters",
            f"push 0x22221111; push 0x44443333; {far('call', S['gate0_16'], 0)}; {_DATA} {log('esp', 'ebx', 'edx', 'esi', 'edi')}; ud2",
            parts={NARROW_CODE + 0x4000: narrow_code("mov bp,sp; mov bx,[bp]; mov dx,[bp+4]; mov si,[bp+8]; mov di,[bp+10]; .byte 0xca,6,0", 0x4000)},
        )
        case(
            "indirect call through a gate",
            f"{_DATA} push 0x1111; push 0x2222; push {S['gate0']:#x}; push 0; .byte 0xff,0x1c,0x24; ud2",
            inner=_shown(7, ".byte 0xca,8,0"),
        )
        for name in (
            "code0",
            "code1",
            "code2",
            "code3",
            "conforming0",
            "conforming3",
            "absent_code",
            "ldt_code3",
            "ldt_code0",
            "based_code3",
            "fresh_code",
        ):
            for rpl in (0, 3):
                at = ANY - BASE if name == "based_code3" else ANY
                case(f"call {name} rpl {rpl}", f"{far('call', S[name] | rpl, at)}; {_LOG_SELECTORS}", parts={ANY: _shown(3, _RETF)})
                case(f"jmp {name} rpl {rpl}", far("jmp", S[name] | rpl, at), parts={ANY: f"{_LOG_SELECTORS} ud2"})
                case(f"retf {name} rpl {rpl}", f"push {S[name] | rpl:#x}; push {at:#x}; {_RETF}", parts={ANY: f"{_LOG_SELECTORS} ud2"})
        case("iret inwards", f"push 0x10; push 0x1000; push 2; push 8; push {ANY:#x}; {_IRET}", parts={ANY: finish()})
        case("hidden state", f"{_LOG_SELECTORS} int 0x40; {_LOG_SELECTORS}", inner=_IRET)
        if level < 3:
            case(
                "retf outwards",
                f"push 0x23; push {STACKS[3]:#x}; push 7; push 0x1b; push {ANY:#x}; .byte 0xca,4,0",
                parts={ANY: f"{_LOG_SELECTORS} {log('esp')}; ud2"},
            )
            case(
                "iret outwards",
                f"push 0x23; push {STACKS[3]:#x}; push 0x202; push 0x1b; push {ANY:#x}; {_IRET}",
                parts={ANY: f"{_LOG_SELECTORS} {log('esp')}; ud2"},
            )
            case(
                "iret outwards to 16-bit",
                f"push {S['narrow_data3'] | 3:#x}; push 0x1234; push 2; push {S['narrow_code3'] | 3:#x}; push 0x500; {_IRET}",
                parts={NARROW_CODE + 0x500: narrow_code("mov bx,sp; push 5; pop dx; mov si,cs; ud2", 0x500)},
            )
    return made


NARROW = S["narrow_data"]
PROGRAMS: dict[str, Program] = _in_narrow_code() | _at_levels()

_GENERAL_PROTECTION = (0xFFFFFFFF, 13, 0)
# What QEMU does not check and the manual demands: the vector, error code and EIP that are logged.
BY_THE_MANUAL: dict[str, tuple[Program, tuple[int, ...]]] = {
    "a jump beyond the limit": (_narrow(".byte 0x66,0xe9; .long 0x20000"), (*_GENERAL_PROTECTION, 0x100)),
    "running over the limit": (_narrow(".byte 0xe9,0xfc,0xfe", parts={NARROW_CODE + 0xFFFF: b"\x90"}), (*_GENERAL_PROTECTION, 0x10000)),
    "a conforming segment behind a gate keeps the level": (
        program(enter(3), user=f"push 1; push 2; {far('call', S['gate_conforming'], 0)}", inner=_shown(4, "ud2")),
        (S["conforming0"] | 3, 0x23, 0, 0, 0, 0, STACKS[3] - 0x10, USER + 0xB, 0x1B, 2, 1),
    ),
    "a store through a 16-bit cs": (_narrow("mov word ptr cs:[0x200],1"), (*_GENERAL_PROTECTION, 0x100)),
    "a store through a flat cs": (program(far("jmp", 8, ANY), parts={ANY: "mov dword ptr cs:[0x180000],1"}), (*_GENERAL_PROTECTION, ANY)),
    "a store through a based cs": (
        program(far("jmp", S["based_code"], ANY - BASE), parts={ANY: "add cs:[0x200],eax"}),
        (*_GENERAL_PROTECTION, ANY - BASE),
    ),
    "a selector stored through cs": (program(far("jmp", 8, ANY), parts={ANY: ".byte 0x2e,0x8c,0x0d; .long 0x180000"}), (*_GENERAL_PROTECTION, ANY)),
    "a table stored through cs": (program(far("jmp", 8, ANY), parts={ANY: ".byte 0x2e,0x0f,0x01,0x05; .long 0x180000"}), (*_GENERAL_PROTECTION, ANY)),
    "an x87 store through cs": (program(far("jmp", 8, ANY), parts={ANY: ".byte 0x2e,0xdd,0x1d; .long 0x180000"}), (*_GENERAL_PROTECTION, ANY)),
}

CONFIGURATIONS = [
    {"ring": 1},
    {"ring": 3},
    {"ring": 1, "stubs_in_cache": False},
    {"ring": 1, "translate_user": True},
    {"ring": 3, "translate_user": True},
]
GROUPS = sorted({name.partition(":")[0] for name in PROGRAMS})
configured = pytest.mark.parametrize("options", CONFIGURATIONS, ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()))


@cache
def on_qemu() -> dict[str, Left | None]:
    """What QEMU leaves of each program, all in one boot."""
    return dict(zip(PROGRAMS, run_on_qemu(require("qemu-system-i386"), list(PROGRAMS.values())), strict=True))


def _differs(here: Left, expected: Left | None) -> str:
    if expected is None:
        return "QEMU does not get to the end"
    logs = [[f"{word:x}" for word in left.words()[4 : (left.words()[0] - LOG) // 4]] for left in (here, expected)]
    return "" if here == expected else f"log {logs[0]} instead of {logs[1]}; {here.registers} instead of {expected.registers}"


@configured
@pytest.mark.parametrize("group", GROUPS)
def test_equals_qemu(group: str, options: dict[str, Any]) -> None:
    """Registers, and the log of values and exceptions, are those that QEMU leaves."""
    found = {name: _differs(run_here(case, **options), on_qemu()[name]) for name, case in PROGRAMS.items() if name.startswith(f"{group}:")}
    assert not [f"{name}: {difference}" for name, difference in found.items() if difference]


@configured
@pytest.mark.parametrize("name", BY_THE_MANUAL)
def test_is_as_the_manual_says(name: str, options: dict[str, Any]) -> None:
    """Where QEMU checks less than hardware: the exception, its error code and its EIP, or what is logged first."""
    case, logged = BY_THE_MANUAL[name]
    assert [hex(n) for n in run_here(case, **options).words()[4 : 4 + len(logged)]] == [hex(n) for n in logged]
