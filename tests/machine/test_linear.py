"""The linear address space as a 32-bit guest knows it: around its end, and with paging off in user mode."""

from __future__ import annotations

import pytest

from tests.assembly import assemble
from tests.machine.flat import ENTRY, FINISH, finish, flat_vm, pack, words
from tests.machine.small_kernel import LOG, USER_PAGES, small_kernel

RINGS = pytest.mark.parametrize("ring", (1, 3))


@RINGS
def test_user_mode_with_paging_off(ring: int) -> None:
    """With paging off nothing is the supervisor's own: user code runs, reads and writes there."""
    kernel = f"""mov eax,cr0; and eax,0x7fffffff; mov cr0,eax
        push 0x23; push {LOG + 0x800}; push 2; push 0x1b; push {USER_PAGES}; .byte 0xcf"""
    guest = small_kernel(kernel, handlers={0x80: f"mov ecx,[{LOG}]; mov [{LOG + 4}],ecx; {FINISH}"})
    guest[USER_PAGES] = assemble(f"mov eax,0x23; mov ds,eax; mov dword ptr [{LOG}],0x12345678; int 0x80", USER_PAGES)
    vm = flat_vm(guest, ring=ring)
    finish(vm)
    assert words(vm, LOG, 2) == [0x12345678] * 2


@RINGS
@pytest.mark.parametrize("paged", (False, True))
def test_an_access_over_the_end(ring: int, paged: bool) -> None:
    """What begins in the last bytes of the 4 GiB ends in the first ones: a store there, where the end is nobody's memory."""
    on = "mov eax,cr4; or eax,0x10; mov cr4,eax; mov eax,0x300000; mov cr3,eax; mov eax,cr0; or eax,0x80000000; mov cr0,eax"
    store = "mov dword ptr [0xfffffffe],0x11223344; mov eax,[0xfffffffe]; mov ebx,[0]"
    guest = {
        ENTRY: f"{on if paged else 'nop'}; {store}; mov [{LOG}],eax; mov [{LOG + 4}],ebx; {FINISH}",
        0x300000: pack(region << 22 | 0x83 for region in range(1024)),
    }
    vm = flat_vm(guest, ring=ring)
    finish(vm)
    read, first = words(vm, LOG, 2)
    assert (read, first & 0xFFFF) == (0x1122FFFF, 0x1122)

