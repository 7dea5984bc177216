"""Segments, modes and privilege levels: the same programs under binary translation and on QEMU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest

from tests.assembly import ENTRY, assemble
from tests.oracle.program import Left, Program, run_here, run_on_qemu
from tests.oracle.segmented import (
    ANY,
    BASE,
    COMMON,
    GDT,
    INNER,
    LOG,
    LOG_EAX,
    NARROW_CODE,
    NARROW_STACK,
    POINTERS,
    SELECTORS,
    STACKS,
    TSS,
    USER,
    enter,
    far,
    finish,
    log,
    narrow_code,
    program,
)
from tests.require import require
from vmm.backends.step import StepOptions

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
        case("flags by iret", f"{_DATA} push 0x3ad7; .byte 0x0e; push {ANY:#x}; {_IRET}", parts={ANY: f"pushfd; pop eax; cld; {log('eax')}; ud2"})
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


_TRAPPING = "push 0x102; popfd; "
_DEBUG = "xor eax,eax; mov eax,dr6; push eax; mov eax,0xffff0ff0; mov dr6,eax; pop eax; " + log("eax") + "; "


def _stepping() -> dict[str, Program]:
    """TF in the kernel and outside of it, and debug registers."""
    bodies = {
        "plain": "nop; inc eax; mov ecx,5; nop",
        "memory": f"mov [{LOG + 0x380:#x}],eax; push eax; pop ecx; xchg eax,ecx",
        "jumps": "jmp @a; nop; @a: call @f; jmp @b; @f: ret; @b: xor ecx,ecx; jecxz @c; nop; @c: jz @d; nop; @d: nop",
        "sensitive": "mov ecx,cr0; smsw ecx; sgdt [esp-16]; pushfd; pop ecx; str ecx; mov ecx,cs; mov edx,ss; cli; cld",
        "mov ss": "mov ecx,ss; mov ss,ecx; nop; nop; .byte 0x16,0x17; inc edx; nop",
        "data segments": "mov ecx,ds; mov ds,ecx; .byte 0x06,0x07; nop",
        "rep movs": f"mov esi,{LOG:#x}; mov edi,{LOG + 0x380:#x}; mov ecx,3; rep movsb; nop",
        "rep stos, none": f"mov edi,{LOG + 0x380:#x}; xor ecx,ecx; rep stosd; nop",
        "repe cmps": f"mov esi,{LOG + 0x380:#x}; mov edi,{LOG + 0x390:#x}; mov ecx,3; repe cmpsb; nop",
        "int": "int 0x40; nop; nop",
        "untaken into": ".byte 0xce; nop; nop",
        "popf off": "push 2; popfd; nop",
        "popf again": "push 0x102; popfd; nop",
        "iret off": f"pushfd; and dword ptr [esp],0xfffffeff; .byte 0x0e; push {ANY:#x}; .byte 0xcf",
        "iret on": f"pushfd; .byte 0x0e; push {ANY:#x}; .byte 0xcf",
        "fault": "ud2",
        "privileged fault": "mov ecx,8; ltr cx",
        "x87": "fninit; fld1; fstp dword ptr [esp-8]; wait; nop",
        "far jump": f"{far('jmp', 8, ANY)}",
    }
    made: dict[str, Program] = {}
    back = {ANY: f"nop; nop; push 2; popfd; {log('esp')}; {finish()}"}
    for name, body in bodies.items():
        body = body.replace("@", "l")
        made[f"TF: {name}"] = program(f"{_TRAPPING} {body}; push 2; popfd; {_DEBUG} {finish()}", inner=f"nop; nop; {_IRET}", parts=back)
        if "privileged" in name or name in ("sensitive", "far jump", "mov ss"):
            continue
        made[f"TF: user: {name}"] = program(
            enter(3, flags=0x202), user=f"{_DATA} mov eax,7; {_TRAPPING} {body}; push 2; popfd; ud2", inner=f"nop; nop; {_IRET}", parts=back
        )
    made["TF: into user by iret"] = program(
        enter(3, flags=0x302), user=f"nop; {_DATA} nop; int 0x40; nop; push 2; popfd; ud2", inner=f"nop; nop; {_IRET}"
    )
    made["TF: level 1"] = program(
        enter(1, flags=0x102), user="nop; mov eax,0x23; mov ds,eax; inc ecx; int 0x40; nop; push 2; popfd; ud2", inner=f"nop; nop; {_IRET}"
    )
    made["TF: 16-bit"] = _narrow(".byte 0x66; push 0x102; .byte 0x66; popf; nop; inc ax; mov cx,2; l: loop l; .byte 0x66; push 2; .byte 0x66; popf")
    made["TF: dr6"] = program(f"{_TRAPPING} nop; push 2; popfd; {_DEBUG} {_DEBUG} {finish()}")
    made["debug registers"] = program(
        "mov eax,0x12345678; mov dr0,eax; mov eax,0xffffffff; mov dr1,eax; mov dr2,eax; mov dr3,eax; mov ebx,dr0; mov ecx,dr6; "
        f"mov edx,dr7; {log('ebx', 'ecx', 'edx')}; {finish()}"
    )
    return made


def _lazy_fpu() -> dict[str, Program]:
    """CR0.TS, EM, MP and NE: #NM and #MF in the kernel and in user code."""
    made: dict[str, Program] = {}
    instructions = {
        "fld1": "fld1",
        "wait": "wait",
        "movaps": ".byte 0x0f,0x28,0xc1",
        "fxsave": "sub esp,0x400; and esp,0xfffffff0; fxsave [esp]",
        "fninit": "fninit",
    }
    for bits, name in ((8, "TS"), (10, "TS MP"), (2, "MP"), (4, "EM"), (12, "EM TS"), (6, "EM MP")):
        control = f"mov eax,cr4; or eax,0x200; mov cr4,eax; mov eax,cr0; or eax,{bits:#x}; mov cr0,eax; mov eax,0"
        for text, code in instructions.items():
            made[f"FPU: {name}: {text}"] = program(f"{control}; {code}; ud2")
            made[f"FPU: {name}: user {text}"] = program(f"{control}; {enter(3)}", user=f"{code}; ud2")
    clear = f"""mov eax,cr0; or eax,8; mov cr0,eax; clts; fld1; fstp dword ptr [{LOG + 0x380:#x}]
        mov ebx,[{LOG + 0x380:#x}]; mov ecx,cr0; {log("ebx", "ecx")}; {finish()}"""
    made["FPU: clts"] = program(clear)
    unmask = "mov eax,cr0; or eax,0x22; mov cr0,eax; fninit; push 0x37b; fldcw [esp]; fld1; fldz; .byte 0xde,0xf9"
    for text, code in {"fld1": "fld1", "wait": "wait", "fnstsw": f"fnstsw ax; and eax,0x80ff; {log('eax')}; {finish()}"}.items():
        made[f"FPU: error: {text}"] = program(f"{unmask}; nop; {code}; ud2")
    made["FPU: error: user"] = program(
        f"mov eax,cr0; or eax,0x22; mov cr0,eax; {enter(3)}", user="fninit; push 0x37b; fldcw [esp]; fld1; fldz; .byte 0xde,0xf9; nop; fld1; ud2"
    )
    return made


def at_level(level: int, code: str, *, inner: str = "", parts: Mapping[int, str | bytes] | None = None) -> Program:
    """The same code in the kernel or outside of it."""
    if level == 0:
        return program(f"{code}; {finish()}", inner=inner, parts=parts)
    return program(enter(level), user=f"{code}; ud2", inner=inner, parts=parts)


def _segments() -> dict[str, Program]:
    """Hidden parts of segment registers, and segments of other shapes, in the kernel and in user code."""
    at_base = {BASE + LOG - BASE + 0x380: b"\x78\x56\x34\x12", LOG + 0x380 - BASE: b"\x11\x22\x33\x44"}
    word = LOG + 0x380 - BASE  # by a segment with a base of BASE this is LOG + 0x380
    made: dict[str, Program] = {}
    descriptor_at = GDT + (S["based_data3"] & 0xFFF8)
    for level in (0, 1, 2, 3):
        selector = S["based_data3"] | 3
        for name in ("ds", "es", "fs", "gs"):
            code = f"""{_DATA} mov eax,{selector:#x}; mov {name},eax; mov ebx,{name}:[{word:#x}]
                int 0x40; mov ecx,{name}:[{word:#x}]; mov {name}:[{word + 4:#x}],ecx
                int 0x40; mov edx,{name}:[{word + 4:#x}]; {_DATA} {log("ebx", "ecx", "edx")}"""
            # Behind the first INT the descriptor in memory has another base: the register keeps the old one until it is loaded again.
            change = f".byte 0x36; xor byte ptr [{descriptor_at + 4:#x}],1; .byte 0xcf"
            again = f"mov eax,{selector:#x}; mov {name},eax; mov ebx,{name}:[{word:#x}]; {_DATA} {log('ebx')}"
            made[f"segments: level {level}: hidden state of {name}"] = at_level(level, f"{code}; {again}", inner=change, parts=at_base)
        for data in ("fresh_data3", "fresh_data"):
            accessed = f"{_DATA} mov eax,{S[data] | (3 if level else 0):#x}; mov gs,eax; {log(f'dword ptr [{GDT + S[data] + 4:#x}]')}"
            made[f"segments: level {level}: accessed {data}"] = at_level(level, accessed)
        down = f"{_DATA} mov eax,{S['down3'] | 3:#x}; mov fs,eax; mov ebx,fs:[{LOG + 0x380:#x}]; {log('ebx')}"
        made[f"segments: level {level}: expand-down"] = at_level(level, down, parts=at_base)
    based = f"""mov eax,{S["based_data3"] | 3:#x}; mov ds,eax; mov es,eax; mov fs,eax; mov gs,eax
        mov ebx,[{word:#x}]; mov esi,{word:#x}; mov edi,{word + 16:#x}; .byte 0xa5
        mov ecx,dword ptr es:[{word + 16:#x}]; push 0x77; mov edx,dword ptr ss:[esp]; pop eax; mov ebp,esp; mov esi,[ebp-4]
        call @f; jmp @g; @f: mov edi,dword ptr cs:[{word:#x}]; ret; @g: int 0x40
        mov eax,0x23; mov ds,eax; """.replace("@", "l")
    shown = f"push 0x23; .byte 0x1f; {log('ebx', 'ecx', 'edx', 'esi', 'edi', 'ebp')}; ud2"
    made["segments: all six with a base, user"] = program(
        f"push {S['based_data3'] | 3:#x}; push {STACKS[3] - BASE:#x}; push 2; push {S['based_code3'] | 3:#x}; push {ANY - BASE:#x}; {_IRET}",
        inner=_IRET,
        parts=at_base | {ANY: assemble(f"{based} {far('jmp', 0x1B, USER)}", ANY - BASE), USER: f"{shown}"},
    )
    made["segments: all six with a base, kernel"] = program(
        f"mov eax,{S['based_data']:#x}; mov ss,eax; mov esp,{STACKS[0] - 0x100 - BASE:#x}; {far('jmp', S['based_code'], ANY - BASE)}",
        inner=_IRET,
        parts=at_base
        | {ANY: assemble(f"{based} {far('jmp', 8, USER)}", ANY - BASE), USER: f"mov ax,0x10; mov ss,ax; mov esp,{STACKS[0]:#x}; {shown}"},
    )
    narrow_user = f"""mov bx,sp; push 0x1234; pop dx; mov si,cs; int 0x43; mov di,sp
        mov ax,{S["narrow_data3"] | 3:#x}; mov ds,ax; mov cx,[bx-2]; call f; f: pop bp; ud2"""
    made["segments: 16-bit user code"] = program(
        f"push {S['narrow_data3'] | 3:#x}; push 0x1234; push 0x202; push {S['narrow_code3'] | 3:#x}; push 0x500; {_IRET}",
        parts={NARROW_CODE + 0x500: narrow_code(narrow_user, 0x500), NARROW_CODE + 0x4000: narrow_code("push bp; mov bp,sp; pop bp; iret", 0x4000)},
    )
    made["segments: call through a gate from 16-bit user code"] = program(
        f"push {S['narrow_data3'] | 3:#x}; push 0x1234; push 2; push {S['narrow_code3'] | 3:#x}; push 0x500; {_IRET}",
        inner=_shown(6, ".byte 0xca,8,0"),
        parts={
            NARROW_CODE + 0x500: narrow_code(
                f".byte 0x66,0x68,1,0,0,0; .byte 0x66,0x68,2,0,0,0; .byte 0x9a; .short 0,{S['gate0']:#x}; mov bx,sp; ud2", 0x500
            )
        },
    )
    for name, ss1, tr_limit in (
        ("null", 0, 0x67),
        ("of another level", 0x10, 0x67),
        ("absent", S["absent_data"], 0x67),
        ("beyond", 0x7F8 | 1, 0x67),
        ("of a short TSS", 0, 0x12),
    ):
        patch = f"""mov word ptr [{TSS + 16:#x}],{ss1:#x}; mov word ptr [{GDT + S["tss"]:#x}],{tr_limit:#x}
            and byte ptr [{GDT + S["tss"] + 5:#x}],0xfd; mov eax,{S["tss"]:#x}; ltr ax"""
        made[f"segments: inner stack {name}: int"] = program(f"{patch}; {enter(3)}", user="int 0x41")
        made[f"segments: inner stack {name}: call"] = program(f"{patch}; {enter(3)}", user=f"push 1; {far('call', S['gate1'], 0)}")
    made["segments: through three levels"] = program(
        enter(3),
        user=f"int 0x42; {_LOG_SELECTORS} ud2",
        inner=f"""mov eax,cs; and eax,3; jz @z; cmp al,1; je @o; {_LOG_SELECTORS} int 0x41; jmp @e
            @o: {_LOG_SELECTORS} int 0x40; jmp @e; @z: {_frame(5)}; @e: {_IRET}""".replace("@", "l"),
    )
    return made


_LEAVE = f"push eax; mov eax,cr0; or al,1; mov cr0,eax; pop eax; .byte 0x66,0xea; .long {ANY:#x}; .short 8"


def _skip(size: int) -> bytes:
    """A handler that returns behind the faulting instruction."""
    return narrow_code(f"push bp; mov bp,sp; add word ptr [bp+2],{size}; pop bp; mov di,0xe000; iret", 0)


def _real(code: str, *, parts: Mapping[int, str | bytes] | None = None) -> Program:
    """Real-mode code at the base of the 16-bit segments, with a table of vectors of its own; the registers are logged in the end."""
    vectors = b"".join((0x800 + 0x10 * vector | NARROW_CODE >> 4 << 16).to_bytes(4, "little") for vector in range(0x80))
    handlers = b"".join(narrow_code(f"mov di,0x{0xE000 + vector:x}; iret", 0).ljust(0x10, b"\x90") for vector in range(0x80))
    ready = f"mov ax,{NARROW_STACK >> 4:#x}; mov ss,ax; mov esp,0x1000; mov ax,{NARROW_CODE >> 4:#x}; mov ds,ax; xor ax,ax; mov es,ax; lidt [0x480]"
    shown = f"mov ebp,0x10; mov ds,ebp; mov es,ebp; mov fs,ebp; mov gs,ebp; mov ebp,esp; mov ss,[{LOG + 8:#x}]; mov esp,{STACKS[0]:#x}"
    values = log("eax", "ebx", "ecx", "edx", "esi", "edi", "ebp")
    return program(
        f"mov eax,0; lldt ax; {_TO_NARROW}",
        narrow=f"mov eax,cr0; and eax,0x7ffffffe; mov cr0,eax; .byte 0xea; .short 0x500,{NARROW_CODE >> 4:#x}",
        parts={
            NARROW_CODE + 0x480: (0x1FF).to_bytes(2, "little") + (NARROW_CODE + 0x1000).to_bytes(4, "little"),
            NARROW_CODE + 0x500: narrow_code(f"{ready}; xor eax,eax; {code}; {_LEAVE}", 0x500),
            NARROW_CODE + 0x800: handlers,
            NARROW_CODE + 0x1000: vectors,
            LOG + 8: b"\x10\0\0\0",
            ANY: f"{shown}; lidt [{POINTERS + 8:#x}]; {values}; {finish()}",
        }
        | dict(parts or {}),
    )


def _in_real_mode() -> dict[str, Program]:
    """CR0.PE clear: selectors are shifted, vectors are far pointers, nothing is checked."""
    far_code = NARROW_CODE + 0x2000
    bodies = {
        "segments": "mov bx,cs; mov cx,ss; mov dx,ds; mov ax,0x1234; mov fs,ax; mov si,fs; mov di,es",
        "memory": "mov word ptr [0x600],0x1234; mov bx,[0x600]; mov ax,0x3060; mov es,ax; "
        "mov dx,word ptr es:[0]; mov word ptr cs:[0x602],7; mov cx,[0x602]",
        "int": "mov bx,1; int 0x21; or bx,2",
        "int frame": "std; stc; int 0x22; cld; mov bx,[0x610]",
        "into": "mov al,0x7f; add al,1; .byte 0xce; mov bx,1",
        "divide error": "xor cx,cx; mov ax,1; div cl; mov bx,3",
        "far call": f".byte 0x9a; .short 0,{far_code >> 4:#x}; mov dx,sp",
        "far jump": f".byte 0xea; .short 8,{far_code >> 4:#x}; w: nop",
        "far jump through memory": f"mov word ptr [0x620],0; mov word ptr [0x622],{far_code >> 4:#x}; .byte 0xff,0x1e; .short 0x620; mov dx,sp",
        "push and pop": "push cs; pop es; push ss; pop di; mov bx,es; push 0x1111; pop fs; mov si,fs; les dx,[0x480]; mov cx,es",
        "pushf popf": "push 0x3cd7; popf; pushf; pop bx; push 2; popf; cli; pushf; pop cx; sti; pushf; pop dx; cli",
        **{
            f"undefined {n}": f"mov bx,1; .byte {code}; mov cx,2"
            for n, code in enumerate(("0x0f,0x00,0xc0", "0x0f,0x00,0xd8", "0x0f,0x02,0xc1", "0x0f,0x00,0xe0"))
        },
        "control": "mov ebx,cr0; smsw cx; mov edx,cr4; clts; sgdt [0x630]; mov esi,[0x630]",
        "32-bit": "mov ebx,0x12345678; push ebx; pop ecx; .byte 0x66; pushf; pop edx; mov esi,0x600; mov dword ptr [esi],0x99; mov edi,[esi]",
        "loop": "mov cx,4; l: add bx,cx; loop l; mov dx,7; jmp e; mov dx,1; e: nop",
        "strings": "cld; mov ax,0x3000; mov es,ax; mov si,0x480; mov di,0x640; mov cx,6; rep movsb; mov bx,[0x640]; mov dx,[0x642]",
    }
    parts = {
        NARROW_CODE + 0x800: _skip(2),
        NARROW_CODE + 0x860: _skip(3),
        NARROW_CODE + 0x800 + 0x220: narrow_code("mov bp,sp; mov di,[bp+4]; mov [0x610],di; iret", 0),
    }
    parts[far_code] = narrow_code("mov bx,cs; mov si,7; retf", 0).ljust(8, b"\x90") + narrow_code(
        f"mov bx,cs; mov si,9; .byte 0xea; .short 0x680,{NARROW_CODE >> 4:#x}", 8
    )
    parts[NARROW_CODE + 0x680] = narrow_code(_LEAVE, 0x680)
    return {f"real: {name}": _real(body, parts=parts) for name, body in bodies.items()}


NARROW = S["narrow_data"]
PROGRAMS: dict[str, Program] = _in_narrow_code() | _at_levels() | _stepping() | _lazy_fpu() | _segments() | _in_real_mode()

_GENERAL_PROTECTION = (0xFFFFFFFF, 13, 0)
# What QEMU does not check and the manual demands: the vector, error code and EIP that are logged.
BY_THE_MANUAL: dict[str, tuple[Program, tuple[int, ...]]] = {
    "a jump beyond the limit": (_narrow(".byte 0x66,0xe9; .long 0x20000"), (*_GENERAL_PROTECTION, 0x100)),
    "running over the limit": (_narrow(".byte 0xe9,0xfc,0xfe", parts={NARROW_CODE + 0xFFFF: b"\x90"}), (*_GENERAL_PROTECTION, 0x10000)),
    "a conforming segment behind a gate keeps the level": (
        program(enter(3), user=f"push 1; push 2; {far('call', S['gate_conforming'], 0)}", inner=_shown(4, "ud2")),
        (S["conforming0"] | 3, 0x23, 0, 0, 0, 0, STACKS[3] - 0x10, USER + 0xB, 0x1B, 2, 1),
    ),
    "a trap behind lss": (
        program(f"push 0x10; push esp; {_TRAPPING} .byte 0x0f,0xb2,0x24,0x24; ud2"),
        (0xFFFFFFFF, 1, 0xE0E0, ENTRY + 0x61, 8, 0x102, 0x10, 0x10, 0x10, 0x10, 0x80000011, 0, 0xFFFFFFFF, 6, 0xE0E0, ENTRY + 0x61),
    ),
    "no access to debug registers with DR7.GD": (
        program(f"mov eax,0x2400; mov dr7,eax; nop; mov ecx,dr6; nop; mov edx,dr7; {_DEBUG} {log('edx')}; {finish()}"),
        (0xFFFFFFFF, 1, 0xE0E0, ENTRY + 0x5D, 8, 0x86, 0x10, 0x10, 0x10, 0x10, 0x2400, 0, 0xFFFF2FF0, 0x400),
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

_TICKS = LOG + 0x300
_TIMER = "mov al,0x11; out 0x20,al; mov al,0x40; out 0x21,al; mov al,4; out 0x21,al; mov al,1; out 0x21,al; mov al,0xfe; out 0x21,al; "
_TIMER += "mov al,0x34; out 0x43,al; mov al,0; out 0x40,al; mov al,8; out 0x40,al"
_TICK = f"push eax; .byte 0x1e; mov eax,0x10; mov ds,eax; inc dword ptr [{_TICKS:#x}]; mov al,0x20; out 0x20,al; .byte 0x1f; pop eax; .byte 0xcf"
_UNTIL = f"mov edi,{_TICKS:#x}; xor ecx,ecx; l: inc ecx; mov eax,[edi]; cmp eax,5; jb l"
INTERRUPTED = {
    "16-bit code": program(f"{_TIMER}; {_TO_NARROW}", narrow=f"sti; {_UNTIL}; cli; {_FROM_NARROW}", inner=_TICK, parts=_NARROW_END),
    "16-bit code that halts": program(
        f"{_TIMER}; {_TO_NARROW}",
        narrow=f"mov edi,{_TICKS:#x}; l: sti; hlt; mov eax,[edi]; cmp eax,5; jb l; cli; {_FROM_NARROW}",
        inner=_TICK,
        parts=_NARROW_END,
    ),
    "a string instruction in 16-bit code": program(
        f"{_TIMER}; {_TO_NARROW}",
        narrow=f"sti; mov edi,{_TICKS:#x}; l: xor si,si; mov cx,0xfff0; rep lodsb; mov eax,[edi]; cmp eax,5; jb l; cli; {_FROM_NARROW}",
        inner=_TICK,
        parts=_NARROW_END,
    ),
    **{f"level {level}": program(f"{_TIMER}; {enter(level, flags=0x202)}", user=f"{_DATA} {_UNTIL}; ud2", inner=_TICK) for level in (1, 2, 3)},
    "single-stepped code": program(
        f"{_TIMER}; push 0x302; popfd; {_UNTIL.replace('5', '1')}; push 2; popfd; {finish()}",
        inner=_TICK,
        parts={COMMON + 0x800: "add esp,8; .byte 0xcf"},
    ),
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


@pytest.mark.parametrize("group", ("16-bit", "TF", "real"))
def test_stepping_equals_translation(group: str) -> None:
    """The step back-end, whose emulator is the same but which runs the rest in place, leaves the same memory."""
    for name, case in PROGRAMS.items():
        if name.startswith(f"{group}:"):
            assert run_here(case, options=StepOptions()) == run_here(case), name


@configured
@pytest.mark.parametrize("name", INTERRUPTED)
def test_is_interrupted(name: str, options: dict[str, Any]) -> None:
    """Timer interrupts arrive in code that is translated with care, at instruction boundaries: it goes on as if there had been none."""
    left = run_here(INTERRUPTED[name], timeless=False, **options)
    assert left.words()[(_TICKS - LOG) // 4] >= 5 or name.startswith("single")
