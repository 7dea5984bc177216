"""Xen guests that run wild: random code, spiced with what is special, in a kernel that steps over whatever it raises. A run ends by the guest's
doing or by time, never by a fault of ours."""

from __future__ import annotations

import random

import pytest

from tests.machine.pv import CODE, DATA, FINISH, HANDLERS, IRET, LOG, STACK, TABLE, USER, assemble, pv_vm, traps
from tools.report import death_report
from vmm.exits import End

_VECTORS = (*range(32), *range(0x30, 0x38))
_WITH_ERROR = (8, 10, 11, 12, 13, 14, 17)
_SPECIAL = [bytes.fromhex(text) for text in (
    "cd82", "0f22d8", "0f20c0", "cf", "f4", "fa", "fb", "9d", "9c", "0f0110", "0f00d8", "0f00d0", "8ed8", "8ed0", "8ee0", "e460", "ec", "6c",
    "6e", "f36c", "0f31", "0f32", "0f30", "0fa2", "0f0b78656e0fa2", "0f05", "0f34", "0f01d8", "0f01d9", "cb", "ca0400", "cc", "ce", "f1",
    "9b", "dbe3", "ff1d", "9a", "ea", "0f09", "0f06", "17", "1f", "0fb220", "c500", "ff28", "0f23f8", "0fc708", "f00fb103",
)]  # fmt: skip


def _handler(vector: int) -> str:
    """Steps over one byte, 300 times in all."""
    drop = "add esp,4; " if vector in _WITH_ERROR else ""
    return f"{drop}inc dword ptr [{LOG}]; cmp dword ptr [{LOG}],300; jb go; {FINISH}; go: inc dword ptr [esp]; {IRET}"


def _code(chance: random.Random) -> bytes:
    parts = []
    for _ in range(60):
        if chance.random() < 0.6:
            parts.append(chance.choice(_SPECIAL) + bytes(chance.choice((0, 1, 4, 0x19, 0xC0, 0xE0, 0xFF)) for _ in range(chance.randrange(5))))
        else:
            parts.append(chance.randbytes(chance.randrange(1, 6)))
    return b"".join(parts)[:700]


@pytest.mark.parametrize("seed", range(24))
def test_random_code(seed: int) -> None:
    """Whatever it is, it ends, and there is something to say about its end."""
    chance = random.Random(seed)
    values = {name: chance.choice((LOG, DATA, USER, 0x7FF0, 1, 0, chance.getrandbits(32))) for name in ("eax", "ebx", "ecx", "edx", "esi", "edi")}
    registers = "; ".join(f"mov {name},{value}" for name, value in values.items())
    start = assemble(f"mov esp,{STACK}; mov ebx,{TABLE}; xor eax,eax; int 0x82; mov ebx,0xe021; mov ecx,{STACK - 0x400}; mov eax,3; int 0x82", CODE)
    parts = {HANDLERS + 0x100 * vector: _handler(vector) for vector in _VECTORS}
    vm = pv_vm(parts | {CODE: start + assemble(registers, CODE) + _code(chance), TABLE: traps(*_VECTORS)})
    stop = vm.run(0.3)
    assert stop.why in (End.SHUTDOWN, End.RESET, End.DIED, End.UNSUPPORTED, End.TIMEOUT, End.REPORTED)
    assert stop.reason in death_report(vm, stop)
