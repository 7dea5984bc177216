"""Bits that an instruction must set or leave alone, in page tables, descriptors and flags: found by comparing generated guests."""

from __future__ import annotations

import pytest

from tests.machine.flat import FINISH, finish, flat_vm, words
from tests.machine.small_kernel import LOG, TO_USER, USER_TABLE, small_kernel

RINGS = pytest.mark.parametrize("ring", (1, 3))
TSS_ENTRY = 0x310028  # free, once TR is loaded
GDT_PAGE, GDT_ENTRY = 0x410000, USER_TABLE + 4 * 16  # another place for the GDT, and its page-table entry
DIRTY, ACCESSED = 0x40, 0x20
END = {0x80: FINISH}


@RINGS
def test_a_read_modify_write_of_device_memory_is_a_write(ring: int) -> None:
    """The page-table entry of a page where there is no memory gets its D bit by an exchange, which reads first."""
    vm = flat_vm(small_kernel(f"mov dword ptr [{USER_TABLE}],0xf0000007; xchg eax,[0x400000]; {FINISH}"), ring=ring)
    finish(vm)
    assert words(vm, USER_TABLE, 1)[0] & (DIRTY | ACCESSED) == DIRTY | ACCESSED


@RINGS
def test_a_read_modify_write_of_device_memory_needs_the_right_to_write(ring: int) -> None:
    """With CR0.WP set, the same through a read-only entry is a page fault, as a write."""
    kernel = f"mov eax,cr0; or eax,0x10000; mov cr0,eax; mov dword ptr [{USER_TABLE}],0xf0000005; xchg eax,[0x400000]"
    vm = flat_vm(small_kernel(kernel, handlers={14: f"pop dword ptr [{LOG}]; mov eax,cr2; mov [{LOG + 4}],eax; {FINISH}"}), ring=ring)
    finish(vm)
    assert words(vm, LOG, 2) == [3, 0x400000]


@RINGS
@pytest.mark.parametrize(("access", "loadable"), ((0xF2, True), (0xFA, True), (0xF8, False), (0x92, False), (0x9E, True)))
def test_a_descriptor_that_is_refused_is_not_accessed(ring: int, access: int, loadable: bool) -> None:
    """A user's load of a data segment register sets the descriptor's accessed bit only when it succeeds."""
    kernel = f"mov dword ptr [{TSS_ENTRY}],0xffff; mov dword ptr [{TSS_ENTRY + 4}],{0xCF0000 | access << 8}; {TO_USER}"
    guest = small_kernel(kernel, user="mov eax,0x2b; mov es,eax; int 0x80", handlers={**END, 13: FINISH})
    vm = flat_vm(guest, ring=ring)
    finish(vm)
    assert words(vm, TSS_ENTRY + 4, 1)[0] >> 8 & 0xFF == (access | 1 if loadable else access)


@RINGS
@pytest.mark.parametrize("level", (0, 3))
@pytest.mark.parametrize("marked", (False, True))
def test_marking_a_descriptor_writes_its_page(ring: int, level: int, marked: bool) -> None:
    """A load that sets a descriptor's accessed bit, the kernel's or a user's, sets the D bit of the table's page; no other load does."""
    access = 0x92 | level << 5 | marked
    descriptor = f"mov dword ptr [{TSS_ENTRY}],0xffff; mov dword ptr [{TSS_ENTRY + 4}],{0xCF0000 | access << 8}"
    moved = f"mov dword ptr [{GDT_ENTRY}],0x310003; sub esp,8; mov word ptr [esp],0x2f; mov dword ptr [esp+2],{GDT_PAGE}; lgdt [esp]; add esp,8"
    load = f"mov eax,{0x28 | level}; mov es,eax"
    kernel = f"{descriptor}; {moved}; mov dword ptr [{GDT_ENTRY}],0x310003; invlpg [{GDT_PAGE}]"
    guest = small_kernel(f"{kernel}; {load}; {FINISH}") if not level else small_kernel(f"{kernel}; {TO_USER}", user=f"{load}; int 0x80", handlers=END)
    vm = flat_vm(guest, ring=ring)
    finish(vm)
    assert words(vm, TSS_ENTRY + 4, 1)[0] >> 8 & 0xFF == access | 1
    assert bool(words(vm, GDT_ENTRY, 1)[0] & DIRTY) is not marked


@RINGS
def test_a_descriptor_that_changed_is_not_taken_back(ring: int) -> None:
    """Others of its page, which are, are loaded without an exit again; it is looked at anew, and so is one that was refused meanwhile."""
    flat = f"mov dword ptr [{TSS_ENTRY}],0xffff; mov dword ptr [{TSS_ENTRY + 4}],0xcf9200"
    moved = f"mov dword ptr [{TSS_ENTRY + 4}],0x10cf9200"  # base 10000000h
    load = "mov eax,0x28; mov es,eax"
    loads = f"mov eax,0x10; mov fs,eax; {load}"
    read = f"mov eax,es:[{LOG + 0x100} - 0x10000000]; mov [{LOG}],eax"
    absent = f"mov dword ptr [{TSS_ENTRY + 4}],0x10cf1200"
    kernel = f"mov dword ptr [{LOG + 0x100}],77; {flat}; {loads}; {moved}; {loads}; {read}; {absent}; {loads}; {FINISH}"
    vm = flat_vm(small_kernel(kernel, handlers={11: f"pop dword ptr [{LOG + 4}]; {FINISH}"}), ring=ring)
    finish(vm)
    assert words(vm, LOG, 2) == [77, 0x28]


@RINGS
def test_descriptors_beside_data_are_loaded_with_one_exit_a_write(ring: int) -> None:
    """Four data segments are loaded after each write to their table's page: the first load exits, the others do not."""

    def callouts(rounds: int) -> int:
        loads = "; ".join(f"mov {name},eax" for name in ("ds", "es", "fs", "gs"))
        entries = "; ".join(f"mov dword ptr [{TSS_ENTRY + 8 * n}],0xffff; mov dword ptr [{TSS_ENTRY + 8 * n + 4}],0xcf9200" for n in range(3))
        wider = "sub esp,8; mov word ptr [esp],0x3f; mov dword ptr [esp+2],0x310000; lgdt [esp]; add esp,8"
        some = "; ".join(f"mov eax,{0x28 + 8 * n}; mov {name},eax" for n, name in enumerate(("es", "fs", "gs")))
        loop = f"mov ecx,{rounds}; again: mov dword ptr [0x310f00],ecx; {some}; dec ecx; jnz again"
        kernel = f"{entries}; {wider}; mov eax,0x10; {loads}; {loop}; {FINISH}"
        vm = flat_vm(small_kernel(kernel), ring=ring)
        finish(vm)
        return vm.stats.architectural["callout"]

    assert callouts(30) - callouts(20) == 10


@RINGS
def test_arpl_writes_what_it_leaves_alone(ring: int) -> None:
    """ARPL is a write of its operand even when it changes nothing, on this CPU."""
    vm = flat_vm(small_kernel(f"mov eax,0; .byte 0x63,0x05; .long 0x400000; {FINISH}"), ring=ring)
    finish(vm)
    assert words(vm, USER_TABLE, 1)[0] & DIRTY


@RINGS
@pytest.mark.parametrize("native_errors", (False, True))
def test_x87_errors_are_exceptions_only_with_cr0_ne(ring: int, native_errors: bool) -> None:
    """An unmasked division by zero is #MF at the next waiting instruction when CR0.NE is set, and none when it is clear."""
    control = f"mov eax,cr0; {'or eax,0x20' if native_errors else 'and eax,0xffffffdf'}; mov cr0,eax"
    divide = "fninit; push 0x360; fldcw [esp]; fldz; fld1; fdivrp; fwait"
    guest = small_kernel(f"{control}; {divide}; mov dword ptr [{LOG}],1; {FINISH}", handlers={16: f"mov dword ptr [{LOG}],16; {FINISH}"})
    vm = flat_vm(guest, ring=ring)
    finish(vm)
    assert words(vm, LOG, 1) == [16 if native_errors else 1]
