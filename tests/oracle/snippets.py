"""Pieces of programs about segments: what is logged, and the ways into code of other kinds and levels. Knows no case."""

from __future__ import annotations

from collections.abc import Mapping

from tests.oracle.program import Program
from tests.oracle.segmented import ANY, LOG, NARROW_CODE, SELECTORS, STACKS, enter, far, finish, log, narrow_code, program

S = SELECTORS
NARROW = S["narrow_data"]
TO_NARROW = f"mov eax,{S['narrow_data']}; mov ss,eax; mov esp,0x1000; " + far("jmp", S["narrow_code"], 0x100)
FROM_NARROW = f".byte 0x66,0xea; .long {ANY:#x}; .short 8"
# Logs nothing by itself: it shows its frame and its segments in registers.
_NARROW_HANDLER = narrow_code("mov bp,sp; mov dx,[bp]; mov si,[bp+2]; mov di,[bp+4]; mov bx,cs; .byte 0x66; pushf; pop ecx; iret", 0x4000)
_FLAT = "mov ecx,0x10; mov ds,ecx; mov es,ecx; mov fs,ecx; mov gs,ecx; "
_LOG_ALL = log("eax", "ebx", "ecx", "edx", "esi", "edi")
NARROW_END: dict[int, str | bytes] = {
    NARROW_CODE + 0x3000: narrow_code("mov dx,sp; push cs; pop di; retf", 0x3000),
    NARROW_CODE + 0x4000: _NARROW_HANDLER,
    ANY: f"{_FLAT} mov edx,esp; mov ecx,ss; mov ss,[{LOG + 8:#x}]; mov esp,{STACKS[0]:#x}; {_LOG_ALL}; {finish()}",
    LOG + 8: b"\x10\0\0\0",
}
_SHOW_FRAME = "mov edx,[esp]; mov esi,[esp+4]; mov edi,[esp+8]; mov ecx,esp; .byte 0xcf"


def narrowed(code: str, before: str = "", parts: Mapping[int, str | bytes] | None = None) -> Program:
    """16-bit code on a 16-bit stack, between a set-up and a log of the registers."""
    return program(f"{before}; {TO_NARROW}", narrow=f"{code}; {FROM_NARROW}", inner=_SHOW_FRAME, parts=NARROW_END | dict(parts or {}))


DATA = "mov eax,0x23; mov ds,eax; mov es,eax; "
_SELECTORS = ("cs", "ss", "ds", "es", "fs", "gs")
LOG_SELECTORS = "; ".join(f"xor eax,eax; mov ax,{name}; push eax" for name in _SELECTORS) + f"; {DATA} mov ebp,esp; "
LOG_SELECTORS += log(*(f"dword ptr [ebp+{4 * n:#x}]" for n in reversed(range(6)))) + "; add esp,24; "


def frame_logged(count: int) -> str:
    """Logs the topmost words of the stack, at any level."""
    return f"mov ebp,esp; {log('ebp', *(f'dword ptr [ebp+{4 * n:#x}]' for n in range(count)))}"


def shown(count: int, back: str) -> str:
    """Code behind a gate: selectors and frame are logged, then it goes `back`."""
    return f"{LOG_SELECTORS} {frame_logged(count)}; {back}"


IRET, RETF = ".byte 0xcf", ".byte 0xcb"


TRAPPING = "push 0x102; popfd; "
DEBUG = "xor eax,eax; mov eax,dr6; push eax; mov eax,0xffff0ff0; mov dr6,eax; pop eax; " + log("eax") + "; "


def at_level(level: int, code: str, *, inner: str = "", parts: Mapping[int, str | bytes] | None = None) -> Program:
    """The same code in the kernel or outside of it."""
    if level == 0:
        return program(f"{code}; {finish()}", inner=inner, parts=parts)
    return program(enter(level), user=f"{code}; ud2", inner=inner, parts=parts)
