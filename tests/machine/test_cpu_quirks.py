"""What the CPU does otherwise than the manual says, where the guest's own code runs on it: shown on the bare machine, and what bt makes of it."""

from __future__ import annotations

import pytest

from tests.machine.flat import FINISH, finish, flat_vm, words
from tests.machine.small_kernel import LOG, TO_USER, USER, small_kernel
from vmm.backends.bt import BtOptions
from vmm.backends.native import NativeOptions

NATIVE, BT = NativeOptions(), BtOptions(translate_user=True)


@pytest.mark.parametrize(("options", "stored"), ((NATIVE, True), (BT, False)), ids=("native", "bt"))
def test_a_store_through_cs(options: NativeOptions | BtOptions, stored: bool) -> None:
    """The bare machine stores through a CS override; binary translation raises #GP, as the manual has it."""
    guest = small_kernel(f"mov eax,0x1234; .byte 0x2e; mov [{LOG}],eax; {FINISH}", handlers={13: FINISH})
    vm = flat_vm(guest, options=options)
    finish(vm)
    assert words(vm, LOG, 1) == [0x1234 if stored else 0]


@pytest.mark.parametrize(("options", "behind"), ((NATIVE, 2), (BT, 0)), ids=("native", "bt"))
def test_a_refused_int_with_prefixes(options: NativeOptions | BtOptions, behind: int) -> None:
    """INT n with two prefixes whose gate refuses users: the bare machine takes it to have been two bytes long."""
    start = USER + 9  # behind what loads DS and ES
    handler = f"pop eax; pop eax; mov [{LOG}],eax; {FINISH}"
    vm = flat_vm(small_kernel(TO_USER, user=".byte 0x66,0x66,0xcd,0x0d", handlers={13: handler}), options=options)
    finish(vm)
    assert words(vm, LOG, 1) == [start + behind]


@pytest.mark.parametrize(("options", "own"), ((NATIVE, True), (BT, False)), ids=("native", "bt"))
def test_the_x87_pointer_says_where_code_ran(options: NativeOptions | BtOptions, own: bool) -> None:
    """FNSTENV stores the address of the last x87 instruction: under binary translation that of its translation."""
    vm = flat_vm(small_kernel(f"fninit; fld1; fnstenv [{LOG}]; {FINISH}"), options=options)
    finish(vm)
    pointer = words(vm, LOG + 12, 1)[0]
    assert (0x100000 <= pointer < 0x101000) is own


def test_a_return_to_users_marks_no_code_segment() -> None:
    """IRET on the bare machine leaves the accessed bit of the code segment that it loads; binary translation sets it."""
    seen = []
    for options in (NATIVE, BT):
        guest = small_kernel(f"and byte ptr [{0x310000 + 0x1D}],0xfe; {TO_USER}", user="int 0x80", handlers={0x80: FINISH})
        vm = flat_vm(guest, options=options)
        finish(vm)
        seen.append(words(vm, 0x31001C, 1)[0] >> 8 & 1)
    assert seen == [0, 1]


@pytest.mark.parametrize("options", (NATIVE, BT, BtOptions(ring=3), BtOptions(stubs_in_cache=False)), ids=("native", "bt", "ring3", "stubs"))
@pytest.mark.parametrize(
    ("setting", "flags"),
    (("mov eax,5; sub eax,5", 0x46), ("mov eax,3; imul eax,eax", 6), ("mov eax,1; dec eax", 0x46)),
    ids=("sub", "imul", "dec"),
)
@pytest.mark.parametrize("opcode", (0xE0, 0xE1), ids=("loopne", "loope"))
def test_a_loop_that_ecx_ends(opcode: int, setting: str, flags: int, options: NativeOptions | BtOptions) -> None:
    """LOOPE and LOOPNE change no flag. The bare machine loses those set right before when ECX ends the loop; binary translation does not."""
    code = f"push 0x202; popfd; cli; {setting}; mov ecx,1; .byte {opcode},0; pushfd; pop eax; mov [{LOG}],eax; {FINISH}"
    vm = flat_vm(small_kernel(code), options=options)
    finish(vm)
    lost = options == NATIVE
    assert (words(vm, LOG, 1)[0] == flags) is not lost
