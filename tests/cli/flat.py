"""Guests of a few instructions for the command line's tests: flat binaries, assembled where they are needed.

Knows assembly and files. Knows nothing of the project.
"""

from __future__ import annotations

from pathlib import Path

from tests.assembly import ENTRY as ADDRESS
from tests.assembly import assemble

REPORT_5 = "mov al, 5; out 0xf4, al; hang: jmp hang"
STOP_FOR_GOOD = "cli; hlt"
LOOP = "here: jmp here"
RESET = "mov al, 0xfe; out 0x64, al; here: jmp here"
TASK_GATE = "push 0; push 0x20; mov eax, 0x28; ltr ax; hlt"
CALL_NOWHERE = "mov esp, 0x9000; mov ebp, 0; call outer; outer: push ebp; mov ebp, esp; mov eax, 0xf0000000; call eax"
ECHO = """
    mov dx, 0x3f8; mov al, '>'; out dx, al
poll:
    mov dx, 0x3fd; in al, dx; test al, 1; jz poll
    mov dx, 0x3f8; in al, dx; out dx, al
    cmp al, 'q'; jne poll
    mov al, 0; out 0xf4, al
hang: jmp hang
"""
"""Prints ">" and what it reads on the serial line; a q ends it."""
SCREEN_AND_KEYBOARD = """
    mov dword ptr [0xb8000], 0x07690748
    mov dword ptr [0xb80a0], 0x07330732
poll:
    in al, 0x64; test al, 1; jz poll
    in al, 0x60
    cmp al, 0x10; jne poll
    mov al, 0; out 0xf4, al
hang: jmp hang
"""
"""Writes "Hi" and "23" on two lines of the VGA screen; the key Q ends it."""
SCREEN = """
    mov dword ptr [0xb8000], 0x07690748
    mov al, 0; out 0xf4, al
hang: jmp hang
"""


def write(folder: Path, text: str) -> list[str]:
    """The arguments that run `text`: a file in `folder`, and its address."""
    path = folder / "guest.bin"
    path.write_bytes(assemble(text))
    return [str(path), "--address", hex(ADDRESS), "-m", "4"]
