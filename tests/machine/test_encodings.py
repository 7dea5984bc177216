"""Encodings that no assembler makes: what the decoder, the table and the templates make of them, in the kernel and in translated user code.

What they must do is the manual's (SDM 2 "LOCK", "MOV-Move to/from Control Registers", appendix A "Opcode Map"). QEMU and this CPU
accept LOCK in front of anything.
"""

import pytest

from tests.machine.flat import FINISH, finish, flat_vm, words
from tests.machine.small_kernel import LOG, TO_USER, small_kernel

CONFIGURATIONS = pytest.mark.parametrize(("ring", "cached"), ((1, True), (3, True), (1, False), (3, False)))
_GP, _UD = 13, 6
_LOG_ERROR = f"mov [{LOG}],ebx; mov eax,[esp]; mov [{LOG + 4}],eax; mov dword ptr [{LOG + 8}],{{}}; {FINISH}"
HANDLERS = {_UD: _LOG_ERROR.format(_UD), _GP: f"add esp,4; {_LOG_ERROR.format(_GP)}", 0x80: _LOG_ERROR.format(0x80)}

UNDEFINED = {
    "lock cli": "f0 fa",
    "lock hlt": "f0 f4",
    "lock mov r,cr0": "f0 0f 20 c0",
    "lock sgdt": "f0 0f 01 05 00 00 20 00",
    "lock pushf": "f0 9c",
    "lock iret": "f0 cf",
    "lock mov": "f0 89 c3",
    "lock add to a register": "f0 01 c3",
    "mov r/m, segment 6": "8c f0",
    "mov r/m, segment 7": "8c f8",
    "mov cs": "8e c8",
    "mov segment 6": "8e f0",
    "mov segment 7": "8e f8",
    "call far, register": "ff d8",
    "jmp far, register": "ff e8",
    "ff /7": "ff f8",
    "lss, register": "0f b2 c0",
    "lfs, register": "0f b4 c0",
    "lgs, register": "0f b5 c0",
    "0f 00 /6": "0f 00 f0",
    "0f 00 /7": "0f 00 38",
    "0f 01 /5": "0f 01 28",
    "mov r,tr": "0f 24 c0",
    "ud2": "0f 0b",
    "syscall behind prefixes": "66 2e 0f 05",
}
KERNEL_ONLY = {  # bytes, and what EBX is then: in user mode they are a #GP(0)
    "mov ebx,cr0 with a memory's mod": ("0f 20 03", 0x80000011),
    "mov ebx,cr0 with a displacement's mod": ("0f 20 43", 0x80000011),
    "mov ebx,cr0 behind an operand-size prefix": ("66 0f 20 c3", 0x80000011),
    "mov ebx,cr0 behind a repeat prefix": ("f3 0f 20 c3", 0x80000011),
    "mov ebx,cr0 behind an address-size prefix": ("67 0f 20 c3", 0x80000011),
    "mov dr6,ebx with a memory's mod": ("0f 23 33", 0xB0B0B0B0),
    "wbinvd behind a repeat prefix": ("f3 0f 09", 0xB0B0B0B0),
    "clts behind an operand-size prefix": ("66 0f 06", 0xB0B0B0B0),
    "cli, sti behind prefixes": ("f3 fa 66 fa 67 fa", 0xB0B0B0B0),
}
ALIKE = {  # bytes, and what EBX is then, in the kernel and in user mode
    "str ebx": ("0f 00 cb", 0x28, 0x28),
    "str bx": ("66 0f 00 cb", 0xB0B00028, 0xB0B00028),
    "smsw bx": ("66 0f 01 e3", 0xB0B00011, 0xB0B00011),
    "mov ebx,cs": ("8c cb", 8, 0x1B),
    "mov bx,cs behind two prefixes": ("66 66 8c cb", 0xB0B00008, 0xB0B0001B),
    "mov bx,ds behind a segment's": ("66 64 8c db", 0xB0B00010, 0xB0B00023),
    "push ds, pop bx": ("66 1e 66 5b", 0xB0B00010, 0xB0B00023),
    "push fs, pop ebx behind an address-size prefix": ("67 0f a0 5b", 0x10, 0),  # the way out of the kernel made it null
    "pause": ("f3 90", 0xB0B0B0B0, 0xB0B0B0B0),
}


def _run(code: str, *, user: bool, ring: int, cached: bool) -> list[int]:
    """EBX, EIP behind or at the code less its start, and the vector that came of it: 80h at its end."""
    raw = ",".join(f"0x{byte}" for byte in code.split())
    body = f"mov ebx,0xb0b0b0b0; .byte {raw}; int 0x80"
    kernel = f"mov eax,0x10; mov fs,eax; {TO_USER}" if user else f"mov eax,0x10; mov fs,eax; mov edx,cr0; {body}"
    vm = flat_vm(small_kernel(kernel, user=body, handlers=HANDLERS), ring=ring, stubs_in_cache=cached, translate_user=True)
    assert finish(vm) == 0
    return words(vm, LOG, 3)


def _start(*, user: bool, ring: int, cached: bool) -> int:
    """EIP of the code: that of an instruction that is a #UD for everybody."""
    return _run("0f 0b", user=user, ring=ring, cached=cached)[1]


@CONFIGURATIONS
@pytest.mark.parametrize("user", (False, True), ids=("kernel", "user"))
def test_undefined(user: bool, ring: int, cached: bool) -> None:
    """#UD at the instruction, nothing changed."""
    start = _start(user=user, ring=ring, cached=cached)
    seen = {name: _run(code, user=user, ring=ring, cached=cached) for name, code in UNDEFINED.items()}
    assert {name: result for name, result in seen.items() if result != [0xB0B0B0B0, start, _UD]} == {}


@CONFIGURATIONS
def test_privileged(ring: int, cached: bool) -> None:
    """Mod bits of a control or debug register's move mean nothing, nor do prefixes; in user mode it is a #GP."""
    for user in (False, True):
        start = _start(user=user, ring=ring, cached=cached)
        seen = {name: _run(code, user=user, ring=ring, cached=cached) for name, (code, _) in KERNEL_ONLY.items()}
        wanted = {
            name: [0xB0B0B0B0, start, _GP] if user else [ebx, start + len(code.split()) + 2, 0x80] for name, (code, ebx) in KERNEL_ONLY.items()
        }
        assert seen == wanted


@CONFIGURATIONS
@pytest.mark.parametrize("user", (False, True), ids=("kernel", "user"))
def test_sizes_and_superfluous_prefixes(user: bool, ring: int, cached: bool) -> None:
    """An operand-size prefix keeps the upper half of a register; other prefixes mean nothing."""
    start = _start(user=user, ring=ring, cached=cached)
    seen = {name: _run(code, user=user, ring=ring, cached=cached) for name, (code, *_) in ALIKE.items()}
    assert seen == {name: [results[user], start + len(code.split()) + 2, 0x80] for name, (code, *results) in ALIKE.items()}
