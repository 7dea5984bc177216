"""Instructions to be run under translation and on the bare engine: short bodies between a fixed set-up and a dump of all state.

Knows the program's frame (`program`) and the bodies. `@x` in a body is a label of its own. Each body starts with EBX, ESI and
EDI in its own 64 bytes of memory (EDI 32 bytes in), EBP 16 bytes in, and 8 words of stack that hold their numbers.
"""

import re
from dataclasses import dataclass

from tests.machine.flat import (
    ENTRY,
    FINISH,
    FLAT_CODE,
    FLAT_DATA,
    USER_CODE,
    USER_DATA,
    assemble,
    code_with_base,
    data_with_base,
    pack,
    quads,
    system_segment,
)

SLOTS = 0x200000  # for each case: 8 registers and EFLAGS; then its 64 bytes of memory
SLOT = 128
STACK = 0x260000  # for each case 64 bytes of stack below and 32 above
GDT = 0x27F000
END = 0x280000
_MAIN = ENTRY + 0x1000
_ARITHMETIC = 0x8D5
_LOOKED_AT = (
    # descriptors for LAR, LSL, VERR and VERW alone: gates (call, 16-bit call, task, interrupt), a 16-bit TSS, data not present, read-only data,
    # expand-down data, execute-only code, conforming code not readable, data of DPL 1 with a limit in pages
    *(0x0010_8000_0008_1234 | kind << 40 for kind in (12, 4, 5, 14)),
    system_segment(0x27E200, 0x2B, 1),
    *(0x0040_0000_0000_8765 | access << 40 for access in (0x12, 0x90, 0x96, 0x98, 0x9C)),
    0x00C0_B200_0000_0007,
)
GENERAL = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")


@dataclass(frozen=True)
class Environment:
    """Where the code believes it is: bases of CS and SS. EIP is the linear address less the base."""

    name: str
    cs_base: int
    ss_base: int


FLAT = Environment("flat", 0, 0)
BASED = Environment("based", 0x30000, 0x20000)
STRINGS = Environment("strings through cs", 0x30000, 0x20000)
LOW = Environment("low", _MAIN - 0x1000, 0)  # EIP below 64 KiB, for 16-bit jumps

_ONE_FLAG = tuple(1 << n | 2 for n in (0, 1, 2, 4, 6, 7, 9, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21))  # each but TF
_FLAGS = (*_ONE_FLAG, 0x3002, 0x8D7, 0xCD7, 0x246, 0x247ED7, 0xFFFFFEFF)
_PUSH_LABEL = re.compile(r"push (@[^;]+)")  # which Keystone would give 8 or 16 bits
_BASES = ("eax", "ecx", "edx", "ebx", "ebp", "esi", "edi")


def _flags() -> dict[str, str]:
    bodies = {f"popf {value:x}": f"push {value:#x}; popfd" for value in _FLAGS}
    bodies |= {f"popf {value:x} sti pushf": f"push {value:#x}; popfd; sti; pushfd; pop eax; pushfd; pop edx" for value in (0x2, 0x3002, 0xCD7)}
    bodies |= {f"popf {value:x} cli pushf": f"push {value:#x}; popfd; cli; pushfd; pop eax" for value in (0x202, 0x3202, 0xED7)}
    bodies |= {
        "cli": "cli",
        "sti": "sti",
        "sti sti cli": "sti; sti; cli",
        "pushf": "pushfd",
        "pushf sti pushf": "pushfd; sti; pushfd; cli; pushfd",
        "pushf popf": "pushfd; popfd",
        "pushfw": ".byte 0x66,0x9c",
        "popfw": "push 0x4ed7; .byte 0x66,0x9d",
        "popf leaves registers": "mov ecx,0x87654321; mov edx,0x12345678; push 0x246; popfd",
        "iret": "pushfd; .byte 0x0e; push @x; .byte 0xcf; @x: nop",
        "iret sets IF": "push 0x246; .byte 0x0e; push @x; .byte 0xcf; @x: nop",
        "iret sets IOPL": "push 0x3246; .byte 0x0e; push @x; .byte 0xcf; @x: nop",
        "iret sets DF": "push 0xc57; .byte 0x0e; push @x; .byte 0xcf; @x: nop",
        "iretw": ".byte 0x66,0x9c,0x66,0x0e; push 0; mov word ptr [esp],0x1000; add esp,10",
        "sahf lahf": "mov ah,0xd7; sahf; lahf; sahf",
        "nothing": "invd_; wbinvd".replace("invd_", ".byte 0x0f,0x08"),
    }
    return bodies


def _reads() -> dict[str, str]:
    bodies: dict[str, str] = {}
    for n, register in enumerate(GENERAL):
        if register == "esp":
            continue
        for control in (0, 3, 4):
            bodies[f"mov {register},cr{control}"] = f"mov {register},cr{control}"
        bodies[f"mov {register},cs"] = f".byte 0x8c,{0xC8 | n:#x}"
        bodies[f"mov {register} (16),cs"] = f".byte 0x66,0x8c,{0xC8 | n:#x}"
        bodies[f"mov {register},ss"] = f".byte 0x8c,{0xD0 | n:#x}"
        bodies[f"smsw {register}"] = f".byte 0x0f,0x01,{0xE0 | n:#x}; .byte 0x0f,0xb7,{0xC0 | 9 * n:#x}"  # movzx: the upper half is undefined
        bodies[f"smsw {register} (16)"] = f".byte 0x66,0x0f,0x01,{0xE0 | n:#x}"
        bodies[f"str {register}"] = f".byte 0x0f,0x00,{0xC8 | n:#x}"
        bodies[f"sldt {register} (16)"] = f".byte 0x66,0x0f,0x00,{0xC0 | n:#x}"
    for register in _BASES:
        point = f"mov {register},ebx; "
        n = GENERAL.index(register)
        segment = ".byte 0x3e; " if register == "ebp" else ""
        for name, opcode, reg in (("mov [],cs", "0x8c", 1), ("mov [],ss", "0x8c", 2), ("smsw []", "0x0f,0x01", 4)):
            bodies[f"{name} {register}"] = f"{point}{segment}.byte {opcode},{0x40 | n | reg << 3:#x},8"
        for name, reg in (("sldt", 0), ("str", 1)):
            bodies[f"{name} [] {register}"] = f"{point}{segment}.byte 0x0f,0x00,{0x40 | n | reg << 3:#x},8"
        for name, reg in (("sgdt", 0), ("sidt", 1)):
            bodies[f"{name} [] {register}"] = f"{point}{segment}.byte 0x0f,0x01,{0x40 | n | reg << 3:#x},8"
    bodies |= {
        "mov [esp],cs": ".byte 0x8c,0x0c,0x24",
        "mov [esp+8],ss": ".byte 0x8c,0x54,0x24,8",
        "mov [ebp],cs": "lea ebp,[esp+4]; .byte 0x8c,0x4d,0",
        "sgdt [esp]": ".byte 0x0f,0x01,0x04,0x24",
        "sidt [esp+ecx*4]": ".byte 0x0f,0x01,0x0c,0x8c",
        "sgdt [eax+edx]": "mov eax,ebx; mov edx,4; .byte 0x0f,0x01,0x04,0x10",
        "sgdt [ecx+ebx]": "mov ecx,5; .byte 0x0f,0x01,0x04,0x19",
        "sgdt [edx*8+base]": "mov edx,3; .byte 0x0f,0x01,0x84,0xd3; .long 8",
        "mov [ecx+edx*4],cs": "mov ecx,ebx; mov edx,2; .byte 0x8c,0x0c,0x91",
        "mov [disp],cs": f".byte 0x8c,0x0d; .long {SLOTS + 64:#x}",
        "mov [disp],cs (16-bit operand)": ".byte 0x66,0x8c,0x0b",
        "mov [bx],cs (16-bit address)": "xor ebx,ebx; mov bx,0x600; .byte 0x67,0x8c,0x0f",
        "mov es:[],cs": ".byte 0x26,0x8c,0x0b",
        "smsw fs:[]": ".byte 0x64,0x0f,0x01,0x23",
        "mov ss:[ebx],cs": ".byte 0x36,0x8c,0x0b",
        "push cs": ".byte 0x0e",
        "push ss": ".byte 0x16",
        "push cs, pop": ".byte 0x0e; pop eax; .byte 0x16; pop edx",
        "push cs (16)": ".byte 0x66,0x0e; .byte 0x66,0x16",
        "mov cr2": "mov eax,0x12345678; mov cr2,eax; mov edx,cr2",
    }
    return bodies


def _flow() -> dict[str, str]:
    bodies = {
        "call ret": "call @f; jmp @x; @f: mov eax,7; ret; @x: nop",
        "call ret n": "push 1; push 2; call @f; jmp @x; @f: mov eax,[esp+4]; ret 8; @x: nop",
        "ret n large": "push @x; ret 0x14; @x: nop",
        "call eax": "push @f; pop eax; call eax; jmp @x; @f: mov edx,7; ret; @x: nop",
        "call ecx": "push @f; pop ecx; call ecx; jmp @x; @f: mov edx,ecx; ret; @x: nop",
        "call esp-relative": "push @f; call dword ptr [esp]; jmp @x; @f: mov edx,[esp+4]; ret; @x: pop eax",
        "call [ebx]": "push @f; pop dword ptr [ebx]; call dword ptr [ebx]; jmp @x; @f: mov edx,7; ret; @x: nop",
        "call [ebx+edx*4+4]": "mov edx,1; push @f; pop dword ptr [ebx+8]; call dword ptr [ebx+edx*4+4]; jmp @x; @f: inc eax; ret; @x: nop",
        "call ss:[ebp]": "lea ebp,[esp+8]; push @f; pop dword ptr [ebp]; call dword ptr [ebp]; jmp @x; @f: mov eax,7; ret; @x: nop",
        "jmp eax": "push @x; pop eax; jmp eax; mov eax,1; @x: nop",
        "jmp ecx": "push @x; pop ecx; jmp ecx; mov eax,1; @x: nop",
        "jmp [ecx]": "mov ecx,ebx; push @x; pop dword ptr [ecx]; jmp dword ptr [ecx]; mov eax,1; @x: nop",
        "jmp [ebx+ecx*4]": "push @x; pop dword ptr [ebx+12]; jmp dword ptr [ebx+ecx*4]; mov eax,1; @x: nop",
        "jmp [esp+4]": "push @x; push 1; jmp dword ptr [esp+4]; mov eax,1; @x: nop",
        "jmp es:[ebx]": "push @x; pop dword ptr [ebx]; .byte 0x26,0xff,0x23; mov eax,1; @x: nop",
        "push ret": "push @x; ret; mov eax,1; @x: nop",
        "ret to a changed address": "call @f; mov eax,1; @f: push @x; pop eax; mov [esp],eax; ret; mov edx,1; @x: nop",
        "twice the same call": "mov esi,2; @l: call @f; dec esi; jnz @l; jmp @x; @f: inc eax; ret; @x: nop",
        "recursion": "mov ecx,20; call @f; jmp @x; @f: add eax,ecx; dec ecx; jz @g; call @f; @g: ret; @x: nop",
        "returns of equal low halves": "mov esi,3; @l: push @x; pop eax; push @y; ret; @y: push @x; dec esi; jnz @l; ret 8; @x: nop",
        "loop": "@l: inc eax; loop @l",
        "loop backwards 1000": "mov ecx,1000; @l: add eax,ecx; loop @l",
        "loope": "@l: inc edx; cmp edx,0x55667789; loope @l",
        "loopne": "mov ecx,9; @l: inc edx; cmp edx,0x5566778b; loopne @l",
        "jecxz taken": "xor ecx,ecx; jecxz @x; mov eax,1; @x: nop",
        "jecxz not taken": "jecxz @x; mov eax,1; @x: nop",
        "jcxz taken": "mov ecx,0x10000; .byte 0x67; jecxz @x; mov eax,1; @x: nop",
        "loop (cx)": "mov ecx,0x10002; @l: inc eax; .byte 0x67,0xe2,0xfc; nop",
        "jmp over": "jmp @x; mov eax,1; @x: nop",
        "jmp back": "jmp @x; @b: mov eax,1; jmp @y; @x: jmp @b; @y: nop",
        "jump into an instruction": "push @x+1; ret; @x: .byte 0xb8,0x40,0x90,0x90,0x90; nop",
        "far call and ret": ".byte 0x0e; call @f; jmp @x; @f: mov eax,7; retf; @x: nop",
        "far ret n": "push 1; .byte 0x0e; call @f; jmp @x; @f: mov eax,7; retf 4; @x: nop",
        "far jmp []": "push @x; pop dword ptr [ebx]; mov word ptr [ebx+4],cs; .byte 0xff,0x2b; mov eax,1; @x: nop",
        "far call []": "push @f; pop dword ptr [ebx]; mov word ptr [ebx+4],cs; .byte 0xff,0x1b; jmp @x; @f: mov eax,7; retf; @x: nop",
    }
    for n in range(16):
        for value in (0x2, 0x3, 0x6, 0x42, 0x82, 0x802, 0x882, 0x8C7):
            bodies[f"jcc {n:x} {value:x}"] = f"push {value:#x}; popfd; .byte {0x70 | n:#x},5; mov eax,1; nop"
        bodies[f"jcc near {n:x}"] = f".byte 0x0f,{0x80 | n:#x}; .long 5; mov eax,1; nop"
    return bodies


def _callouts() -> dict[str, str]:
    bodies = {}
    looked_at = [0x50 + 8 * n for n in range(len(_LOOKED_AT))]
    for selector in (0, 8, 0x10, 0x13, 0x18, 0x28, 0x30, 0x40, 0x4B, 0x1000, 0x54, *looked_at):
        point = f"mov ecx,{selector:#x}; "
        bodies[f"lar {selector:x}"] = point + ".byte 0x0f,0x02,0xc1"
        bodies[f"lsl {selector:x}"] = point + ".byte 0x0f,0x03,0xc1"
        bodies[f"verr {selector:x}"] = point + ".byte 0x0f,0x00,0xe1"
        bodies[f"verw {selector:x}"] = point + ".byte 0x0f,0x00,0xe9"
        bodies[f"lsl (16) {selector:x}"] = point + ".byte 0x66,0x0f,0x03,0xc1"
    bodies |= {
        "arpl raises": "mov eax,0x100; mov ecx,3; .byte 0x63,0xc8",
        "arpl leaves": "mov eax,0x103; mov ecx,1; .byte 0x63,0xc8",
        "arpl memory": "mov ecx,2; mov dword ptr [ebx],0xffff0010; .byte 0x63,0x0b",
        "clts": "clts; mov eax,cr0",
        "lmsw": "mov eax,9; lmsw ax; mov edx,cr0; clts; mov eax,1; lmsw ax; mov esi,cr0",
        "mov dr": "mov eax,0x1234; mov dr0,eax; mov edx,dr0; xor eax,eax; mov dr0,eax",
        "mov ss": "mov eax,ss; mov ss,eax; pushfd; pop ecx",
        "push ss, pop ss": ".byte 0x16; .byte 0x17; mov eax,ss",
        "lss": "mov [ebx],esp; mov word ptr [ebx+4],ss; .byte 0x0f,0xb2,0x23; push 7",
        "into not taken": "xor eax,eax; .byte 0xce",
        "mov es": "mov eax,0x40; add eax,8; or al,3; mov es,eax; mov ecx,es; mov eax,0x10; mov es,eax",
        "lds": "mov dword ptr [ebx],0x1234; mov word ptr [ebx+4],0x10; .byte 0xc5,0x03; mov ecx,ds",
        "null fs": "xor eax,eax; mov fs,eax; mov ecx,fs; push fs; pop edx",
        "lldt null": "xor eax,eax; lldt ax; sldt ecx; mov eax,0x28; lldt ax; sldt edx",
    }
    return bodies


def _overrides() -> dict[str, str]:
    """Reads through CS: at the address of a label of their own."""
    data = "jmp @x; @d: .long 0x01020304, 0x05060708, 0x090a0b0c, 0x0d0e0f10, 0x11121314; @x: "
    return {
        "mov eax,cs:[ecx]": data + "push @d; pop ecx; .byte 0x2e,0x8b,0x01",
        "mov eax,cs:[ecx+4]": data + "push @d; pop ecx; .byte 0x2e,0x8b,0x41,4",
        "mov eax,cs:[ecx+disp]": data + "push @d-0x1000; pop ecx; .byte 0x2e,0x8b,0x81; .long 0x1008",
        "mov eax,cs:[ecx+edx*4]": data + "push @d; pop ecx; mov edx,3; .byte 0x2e,0x8b,0x04,0x91",
        "mov eax,cs:[edx*4+disp]": data + "push @d; pop edx; shr edx,2; .byte 0x2e,0x8b,0x04,0x95; .long 4",
        "mov eax,cs:[esp]": data + "mov esi,esp; push @d; pop edx; mov esp,edx; .byte 0x2e,0x8b,0x04,0x24; mov esp,esi",
        "mov eax,cs:[ebp]": data + "push @d; pop ebp; .byte 0x2e,0x8b,0x45,0",
        "add eax,cs:[ecx]": data + "push @d; pop ecx; .byte 0x2e,0x03,0x01",
        "cmp cs:[ecx],imm": data + "push @d; pop ecx; .byte 0x2e,0x80,0x79,1,3",
        "movzx eax,cs:[ecx]": data + "push @d; pop ecx; .byte 0x2e,0x0f,0xb6,0x41,2",
        "mov ax,cs:[ecx]": data + "push @d; pop ecx; .byte 0x66,0x2e,0x8b,0x01",
        "push cs:[ecx]": data + "push @d; pop ecx; .byte 0x2e,0xff,0x31",
        "imul eax,cs:[ecx],imm": data + "push @d; pop ecx; .byte 0x2e,0x69,0x01; .long 0x11",
        "test cs:[ecx],imm": data + "push @d; pop ecx; .byte 0x2e,0xf7,0x01; .long 0x04",
        "fild cs:[ecx]": data + "push @d; pop ecx; .byte 0x2e,0xdb,0x01; fistp dword ptr [ebx]",
        "jmp cs:[ecx]": "push @x; pop dword ptr [ebx]; jmp @y; @t: .long @x; @y: push @t; pop ecx; .byte 0x2e,0xff,0x21; mov eax,1; @x: nop",
        "call cs:[ecx*4]": "jmp @y; @t: .long @f; @f: mov edx,7; ret; @y: push @t; pop ecx; .byte 0x2e,0xff,0x14,0x25; .long @t; nop",
        "branch hint": "stc; .byte 0x2e; jc @x; mov eax,1; @x: nop",
    }


def _strings() -> dict[str, str]:
    """Implied operands through CS, without a displacement that could make up for its base."""
    data = "jmp @x; @d: .long 0x01020304, 0x05060708, 0x090a0b0c, 0x0d0e0f10, 0x11121314; @x: "
    return {
        "lods cs:": data + "push @d; pop esi; cld; .byte 0x2e,0xad",
        "movs cs:": data + "push @d; pop esi; cld; .byte 0x2e,0xa5; .byte 0x2e,0xa4",
        "rep movs cs:": data + "push @d; pop esi; cld; mov ecx,3; .byte 0x2e,0xf3,0xa5",
        "xlat cs:": data + "push @d; pop eax; mov esi,ebx; mov ebx,eax; mov al,2; .byte 0x2e,0xd7",
    }


def _narrow() -> dict[str, str]:
    """Jumps with an operand-size prefix: EIP keeps 16 bits."""
    return {
        "jmp rel16": ".byte 0x66,0xe9,5,0; mov eax,1; nop",
        "jmp rel8 (16)": ".byte 0x66,0xeb,5; mov eax,1; nop",
        "jcc rel16": "stc; .byte 0x66,0x0f,0x82,5,0; mov eax,1; nop",
        "jcc rel8 (16)": "stc; .byte 0x66,0x72,5; mov eax,1; nop",
        "call rel16, ret (16)": ".byte 0x66,0xe8,2,0,0xeb,7; mov eax,1; .byte 0x66,0xc3; nop",
        "jecxz (16)": "xor ecx,ecx; .byte 0x66,0xe3,5; mov eax,1; nop",
        "call ax": "call @a; @a: pop eax; add eax,10; .byte 0x66,0xff,0xd0; jmp @x; nop; nop; @x: add esp,2",
        "jmp [ebx] (16)": "call @a; @a: pop eax; add eax,14; mov [ebx],eax; .byte 0x66,0xff,0x23; mov eax,1; nop; nop",
    }


BODIES = {
    FLAT: _flags() | _reads() | _flow() | _callouts() | _overrides() | _strings(),
    BASED: _flags() | _reads() | _flow() | _overrides(),
    STRINGS: _strings(),
    LOW: _narrow(),
}


def program(environment: Environment, bodies: dict[str, str], finish: str = FINISH) -> dict[int, bytes]:
    """One program that runs all bodies, as parts at their addresses. It starts at ENTRY in flat segments and ends by port F4h."""
    gdt = [
        0,
        FLAT_CODE,
        FLAT_DATA,
        code_with_base(environment.cs_base),
        data_with_base(environment.ss_base),
        system_segment(0x27E000, 0x17, 2),
        system_segment(0x27E100, 0x67, 9),
        0,
        USER_CODE,
        USER_DATA,
        *_LOOKED_AT,
    ]
    code, stack = (0x18, 0x20) if environment.cs_base else (8, 0x10)
    main = _MAIN - environment.cs_base
    start = f"""
        .byte 0x0f,0x01,0x15; .long {GDT + 0xF00:#x}
        .byte 0x0f,0x01,0x1d; .long {GDT + 0xF08:#x}
        mov eax,0x28; lldt ax; mov eax,0x30; ltr ax
        mov eax,0x10; mov ds,eax; mov es,eax; mov fs,eax; mov gs,eax
        .byte 0xea; .long {main}; .short {code}
    """
    lines = [f"mov eax,{stack}; mov ss,eax; mov esp,{STACK - environment.ss_base:#x}"]
    for n, body in enumerate(bodies.values()):
        slot = SLOTS + SLOT * n
        top = STACK - environment.ss_base + 96 * (n % 256)
        lines.append(f"""
            mov esp,{top:#x}; mov dword ptr [esp],0; mov dword ptr [esp+4],1; mov dword ptr [esp+8],2; mov dword ptr [esp+12],3
            push {_ARITHMETIC | 2:#x}; popfd
            mov eax,0x11223344; mov ecx,3; mov edx,0x55667788; mov ebx,{slot + 64:#x}; mov ebp,{slot + 80:#x}; mov esi,ebx; mov edi,{slot + 96:#x}
        """)
        lines.append(_PUSH_LABEL.sub(r".byte 0x68; .long \1", body).replace("@", f"L{n}"))
        lines.append("; ".join(f"mov [{slot + 4 * r:#x}],{register}" for r, register in enumerate(GENERAL)))
        lines.append(f"mov esp,{top:#x}; pushfd; pop dword ptr [{slot + 32:#x}]; push 2; popfd; mov eax,0x10; mov ds,eax; mov fs,eax")
    lines.append(finish)
    return {
        ENTRY: assemble(start, ENTRY),
        _MAIN: assemble("\n".join(lines), main),
        GDT: quads(gdt),
        GDT + 0xF00: pack([len(gdt) * 8 - 1 | (GDT & 0xFFFF) << 16, GDT >> 16, 0x7FF | 0x1234 << 16, 0x5678]),
    }
