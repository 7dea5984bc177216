"""Programs in 16-bit segments and in real mode."""

from __future__ import annotations

from collections.abc import Mapping

from tests.oracle.program import Program
from tests.oracle.segmented import ANY, LOG, NARROW_CODE, NARROW_STACK, POINTERS, STACKS, finish, log, narrow_code, program
from tests.oracle.snippets import NARROW, TO_NARROW, S, narrowed


def in_narrow_code() -> dict[str, Program]:
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
    made = {name: narrowed(body) for name, body in bodies.items()}
    return {f"16-bit: {name}": made[name] for name in made}


_LEAVE = f"push eax; mov eax,cr0; or al,1; mov cr0,eax; pop eax; .byte 0x66,0xea; .long {ANY:#x}; .short 8"


def _skip(size: int) -> bytes:
    """A handler that returns behind the faulting instruction."""
    return narrow_code(f"push bp; mov bp,sp; add word ptr [bp+2],{size}; pop bp; mov di,0xe000; iret", 0)


def _real(code: str, *, parts: Mapping[int, str | bytes] | None = None) -> Program:
    """Real-mode code at the base of the 16-bit segments, with a table of vectors of its own; the registers are logged in the end."""
    vectors = b"".join((0x800 + 0x10 * vector | NARROW_CODE >> 4 << 16).to_bytes(4, "little") for vector in range(0x80))
    handlers = b"".join(narrow_code(f"mov di,0x{0xE000 + vector:x}; iret", 0).ljust(0x10, b"\x90") for vector in range(0x80))
    ready = f"mov ax,{NARROW_STACK >> 4:#x}; mov ss,ax; mov esp,0x1000; mov ax,{NARROW_CODE >> 4:#x}; mov ds,ax; xor ax,ax; mov es,ax; lidt [0x480]"
    seen = f"mov ebp,0x10; mov ds,ebp; mov es,ebp; mov fs,ebp; mov gs,ebp; mov ebp,esp; mov ss,[{LOG + 8:#x}]; mov esp,{STACKS[0]:#x}"
    values = log("eax", "ebx", "ecx", "edx", "esi", "edi", "ebp")
    return program(
        f"mov eax,0; lldt ax; {TO_NARROW}",
        narrow=f"mov eax,cr0; and eax,0x7ffffffe; mov cr0,eax; .byte 0xea; .short 0x500,{NARROW_CODE >> 4:#x}",
        parts={
            NARROW_CODE + 0x480: (0x1FF).to_bytes(2, "little") + (NARROW_CODE + 0x1000).to_bytes(4, "little"),
            NARROW_CODE + 0x500: narrow_code(f"{ready}; xor eax,eax; {code}; {_LEAVE}", 0x500),
            NARROW_CODE + 0x800: handlers,
            NARROW_CODE + 0x1000: vectors,
            LOG + 8: b"\x10\0\0\0",
            ANY: f"{seen}; lidt [{POINTERS + 8:#x}]; {values}; {finish()}",
        }
        | dict(parts or {}),
    )


def in_real_mode() -> dict[str, Program]:
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
