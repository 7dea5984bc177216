"""What the CPU does otherwise than the manual says, where the guest's own code runs on it: shown on the bare machine, and what bt makes of it."""

from __future__ import annotations

import struct

import pytest

from tests.machine.flat import FINISH, finish, flat_vm, words
from tests.machine.small_kernel import LOG, TO_USER, USER, small_kernel
from vmm.backends.bt import BtOptions
from vmm.backends.native import NativeOptions

NATIVE, BT = NativeOptions(), BtOptions(translate_user=True)


@pytest.mark.parametrize(("options", "stored"), ((NATIVE, True), (BT, False)), ids=("native", "bt"))
@pytest.mark.parametrize(
    "store",
    (f"mov [{LOG}],eax", f"mov edi,{LOG}; movd mm0,eax; pcmpeqb mm1,mm1; .byte 0x2e,0x0f,0xf7,0xc1", f"mov edi,{LOG}; .byte 0x2e; stosd"),
    ids=("mov", "maskmovq", "stos, through ES"),
)
def test_a_store_through_cs(store: str, options: NativeOptions | BtOptions, stored: bool) -> None:
    """The bare machine stores through a CS override; binary translation raises #GP, as the manual has it."""
    first = ".byte 0x2e; " if store.startswith("mov [") else ""
    stored = stored or "stosd" in store  # to which no override applies
    guest = small_kernel(f"mov eax,0x1234; {first}{store}; {FINISH}", handlers={13: FINISH})
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


WAYS = pytest.mark.parametrize("options", (NATIVE, BT), ids=("native", "bt"))


def raised(code: str, options: NativeOptions | BtOptions, *vectors: int) -> bool:
    """Whether the kernel's code raises one of these exceptions; else it comes to its end."""
    vm = flat_vm(small_kernel(f"{code}; {FINISH}", handlers=dict.fromkeys(vectors, f"mov dword ptr [{LOG}],1; {FINISH}")), options=options)
    finish(vm)
    return words(vm, LOG, 1) == [1]


_OS_SSE = "mov eax,cr4; or eax,0x600; mov cr4,eax"


@WAYS
def test_alignment_is_not_checked(options: NativeOptions | BtOptions) -> None:
    """With CR0.AM and EFLAGS.AC users read what is not aligned, and so does MOVAPS, where hardware raises #AC and #GP. FXSAVE is checked."""
    aligned = f"mov eax,cr0; or eax,0x40000; mov cr0,eax; {TO_USER}"
    handlers = {17: f"mov dword ptr [{LOG}],1; {FINISH}", 0x80: FINISH}
    vm = flat_vm(small_kernel(aligned, user="push 0x40202; popfd; mov eax,[esp+1]; int 0x80", handlers=handlers), options=options)
    finish(vm)
    assert words(vm, LOG, 1) == [0]
    assert not raised(f"{_OS_SSE}; movaps xmm0,[{LOG + 8}]", options, 13)
    assert raised(f"{_OS_SSE}; fxsave [{LOG + 8}]", options, 13)


@WAYS
def test_sse_raises_no_floating_point_exceptions(options: NativeOptions | BtOptions) -> None:
    """A division by zero that MXCSR does not mask goes on with infinity, where hardware raises #XM; reserved bits of MXCSR are taken."""
    divided = f"push 0x1d80; ldmxcsr [esp]; mov dword ptr [{LOG + 4}],0x3f800000; movss xmm1,[{LOG + 4}]; xorps xmm0,xmm0; divss xmm1,xmm0"
    assert not raised(f"{_OS_SSE}; {divided}", options, 6, 19)
    assert not raised(f"{_OS_SSE}; push 0xffffffff; ldmxcsr [esp]", options, 13)


@WAYS
def test_the_x87_stack_overflows_silently(options: NativeOptions | BtOptions) -> None:
    """Nine loads onto an x87 stack of eight set no flag of the status word, where hardware sets IE, SF and C1."""
    vm = flat_vm(small_kernel(f"fninit; {'fld1; ' * 9} fnstsw ax; mov [{LOG}],eax; {FINISH}"), options=options)
    finish(vm)
    assert words(vm, LOG, 1)[0] & 0x241 == 0


@WAYS
def test_x87_remainders_have_the_precision_of_a_double(options: NativeOptions | BtOptions) -> None:
    """FPREM of -1E300 by pi loses all digits; it is -1.365..."""
    code = f"fninit; fldpi; fld qword ptr [{LOG + 16}]; l: fprem; fnstsw ax; sahf; jp l; fstp qword ptr [{LOG}]; {FINISH}"
    vm = flat_vm(small_kernel(code) | {LOG + 16: struct.pack("<d", -1e300)}, options=options)
    finish(vm)
    assert words(vm, LOG, 2) == [0, 0]


@WAYS
def test_pusha_begins_with_its_lowest_word(options: NativeOptions | BtOptions) -> None:
    """PUSHA over the end of a page: CR2 names the lowest word of those that do not fit, where hardware, which pushes EAX first, names the highest."""
    handler = f"mov eax,cr2; mov [{LOG}],eax; {FINISH}"
    vm = flat_vm(small_kernel(TO_USER, user=f"mov esp,{USER + 0x10010}; pushad", handlers={14: handler}), options=options)
    finish(vm)
    assert words(vm, LOG, 1) == [USER + 0x10000]


@pytest.mark.parametrize(("options", "found"), ((NATIVE, 2), (BT, 1), (BtOptions(ring=3, stubs_in_cache=False), 1)), ids=("native", "bt", "ring3"))
def test_a_return_in_real_mode_with_a_wide_stack(options: NativeOptions | BtOptions, found: int) -> None:
    """IRET in real mode, with the 32-bit stack of before: the bare machine reads its frame at SP, where there are zeros, and so goes to 0:0."""
    leave = "mov eax,cr0; and eax,0x7ffffffe; mov cr0,eax; push 2; push 0"
    code = f"mov esp,0x158000; {leave}; call l; jmp m; l: .byte 0xcf; m: mov dword ptr [{LOG}],1; {FINISH}"
    vm = flat_vm(small_kernel(code) | {0: f"mov dword ptr [{LOG}],2; {FINISH}"}, options=options)
    finish(vm)
    assert words(vm, LOG, 1) == [found]
