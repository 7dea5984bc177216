"""Adaptive translation: what keeps faulting becomes a callout, does the same, and is taken back where it is not needed any more."""

from __future__ import annotations

import pytest

from tests.machine.flat import FINISH, finish, flat_vm, words
from tests.machine.small_kernel import ABSENT, DIRECTORY, IDENTITY, LOG, USER_TABLE, small_kernel
from vmm.backends.bt import BtOptions
from vmm.vm import Vm

WAYS = pytest.mark.parametrize("ring", (1, 3))
ROUNDS = 300
VERSION, TASK_PRIORITY = 0x4FF030, 0x4FF080  # of the local APIC, where the tests map it
APIC = f"mov dword ptr [{USER_TABLE + 4 * 0xFF}],0xfee0001f"
_UNUSED = DIRECTORY + 4 * 5  # of the directory that is in use: nothing uses what it leads to

# Each leaves something in EBX and EBP; EDI counts down.
MOVES = {
    "store": (f"mov ecx,edi; and ecx,0xf0; mov [{TASK_PRIORITY}],ecx; add ebx,ecx", APIC),
    "immediate": (f"mov dword ptr [{TASK_PRIORITY}],0x30; inc ebx", APIC),
    "load": (
        f"mov ecx,[{VERSION}]; add ebx,ecx",
        f"{APIC}; mov dword ptr [0x4ff3e0],0; mov dword ptr [0x4ff320],0x10020; mov dword ptr [0x4ff380],-1",
    ),
    "directory": (f"mov [{_UNUSED}],edi; add ebx,[{_UNUSED}]", ""),
    "byte": (
        f"mov ecx,edi; mov byte ptr [{_UNUSED + 1}],ch; mov [{_UNUSED + 2}],cl; movzx eax,word ptr [{_UNUSED + 1}]; add ebx,eax",
        "",
    ),
    "offset": (f"mov eax,edi; .byte 0xa3; .long {_UNUSED}; .byte 0x66,0xa1; .long {_UNUSED}; add ebx,eax", ""),
    "crossing": (f"mov [{DIRECTORY + 0xFFE}],edi; add ebx,[{DIRECTORY + 0xFFE}]", ""),
    "no memory": ("mov [0x4fe004],edi; mov ecx,[0x4fe004]; add ebx,ecx", f"mov dword ptr [{USER_TABLE + 4 * 0xFE}],0xf000001f"),
    "no move": (f"xchg [{_UNUSED}],edx; lea edx,[edx+2]; add ebx,edx", "mov edx,2"),
}


def _run(name: str, ring: int, *, adapt: bool, icount: bool = False) -> Vm:
    body, before = MOVES[name]
    guest = small_kernel(f"{before}; xor ebx,ebx; mov edi,{ROUNDS}; l: {body}; dec edi; jnz l; mov [{LOG}],ebx; mov [{LOG + 4}],eax; {FINISH}")
    vm = flat_vm(guest, options=BtOptions(ring=ring, adapt=adapt), icount=icount, timeless=not icount)
    finish(vm)
    return vm


@WAYS
@pytest.mark.parametrize("name", MOVES)
def test_the_same_is_done(name: str, ring: int) -> None:
    """Registers, memory and the count of instructions are those of the same guest without adaptation; the faults are few."""
    for icount in (False, True):
        adapted, plain = (_run(name, ring, adapt=adapt, icount=icount) for adapt in (True, False))
        assert words(adapted, LOG, 2) == words(plain, LOG, 2)
        assert adapted.backend.retired() == plain.backend.retired()
        faults = [sum(vm.stats.architectural[why] for why in ("device memory", "directory write")) for vm in (adapted, plain)]
        if name == "no move":
            assert faults[0] == faults[1] >= ROUNDS
        else:
            assert faults[1] >= ROUNDS > 4 * faults[0]
        assert bool(adapted.stats.callouts["adapted move"]) == (name != "no move")
        assert not plain.stats.callouts["adapted move"]


@WAYS
def test_a_fault_of_an_adapted_move_is_the_guests(ring: int) -> None:
    """The instruction meets an absent page in the end: the page fault has its address, its error code and its place."""
    body = f"mov edx,{TASK_PRIORITY}; mov edi,100; l: mov [edx],ebx; dec edi; jnz l; mov edi,100; mov edx,{ABSENT}; jmp l"
    handler = f"pop dword ptr [{LOG}]; pop dword ptr [{LOG + 4}]; mov eax,cr2; mov [{LOG + 8}],eax; mov [{LOG + 12}],edi; {FINISH}"
    vm = flat_vm(small_kernel(f"{APIC}; {body}", handlers={14: handler}), ring=ring)
    finish(vm)
    error, eip, address, left = words(vm, LOG, 4)
    assert (error, address, left) == (2, ABSENT, 100)
    assert vm.memory.read(eip, 2) == b"\x89\x1a"
    assert vm.stats.callouts["adapted move"]


@WAYS
def test_a_move_is_taken_back(ring: int) -> None:
    """It filled a device's register, and then goes over ordinary memory: no exit is left of it."""
    body = f"mov edx,{TASK_PRIORITY}; mov edi,100; l: mov [edx],ebx; dec edi; jnz l; mov edi,100000; cmp edx,{LOG}; mov edx,{LOG}; jne l"
    vm = flat_vm(small_kernel(f"{APIC}; {body}; {FINISH}"), ring=ring)
    finish(vm)
    assert 50 < vm.stats.callouts["adapted move"] < 300


@WAYS
def test_without_it_each_write_of_a_page_table_is_a_fault(ring: int) -> None:
    """`--no-adapt`: a table never goes out of sync; the shadow follows each write."""
    entry = IDENTITY + 4 * 0x230
    body = f"add ebx,[0x230000]; mov eax,edi; and eax,1; shl eax,12; lea eax,[eax+0x231003]; mov [{entry}],eax; add ebp,[0x230000]"
    parts = {0x230000: b"\0" * 4, 0x231000: (1).to_bytes(4, "little"), 0x232000: (0x100).to_bytes(4, "little")}
    guest = small_kernel(f"xor ebx,ebx; xor ebp,ebp; mov edi,100; l: {body}; invlpg [0x230000]; dec edi; jnz l; mov [{LOG}],ebx; {FINISH}") | parts
    vms = [flat_vm(guest, options=BtOptions(ring=ring, adapt=adapt)) for adapt in (True, False)]
    for vm in vms:
        finish(vm)
        assert words(vm, LOG, 1) == [50 * 1 + 49 * 0x100]
    assert [vm.stats.architectural["directory write"] for vm in vms] == [0, 100]
