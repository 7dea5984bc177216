"""Kernels with two views of themselves, one for user mode, changed at each system call: what a load of CR3 costs, and that it is right."""

from __future__ import annotations

import pytest

from tests.machine.flat import FINISH, finish, flat_vm, pack, words
from tests.machine.small_kernel import DIRECTORY, IDENTITY, LOG, TABLES, USER_TABLE, small_kernel
from vmm.backends.bt.guest_code import GuestCode

VIEW, TABLE = TABLES + 0x8000, TABLES + 0x9000  # the other directory, and its table for the kernel's memory
PAGES = 24  # of code that is called in each view
FIRST = 0x220000
EACH = "; ".join(f"mov eax,{FIRST + 0x1000 * n}; call eax" for n in range(PAGES))
ROUNDS = f"""
    mov ebp,{{}}
    again: {EACH}; mov eax,{VIEW}; mov cr3,eax; {EACH}; mov eax,{DIRECTORY}; mov cr3,eax; dec ebp; jnz again
    mov [{LOG}],ebx; {FINISH}
"""


def _guest(then: str) -> dict[int, bytes | str]:
    identity = pack([page << 12 | 3 for page in range(1024)])
    code = {FIRST + 0x1000 * n: "inc ebx; ret" for n in range(PAGES)}
    return small_kernel(f"xor ebx,ebx; {then}") | {VIEW: pack([TABLE | 3, USER_TABLE | 7]), TABLE: identity} | code


@pytest.mark.parametrize("ring", (1, 3))
def test_views_are_looked_at_once(ring: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of code are compared with both views when they are new there, not at each load of CR3."""
    looked: list[int] = []
    verify = GuestCode.verify
    monkeypatch.setattr(GuestCode, "verify", lambda self, page: (looked.append(page), verify(self, page))[1])
    counts = []
    for rounds in (10, 50):
        looked.clear()
        vm = flat_vm(_guest(ROUNDS.format(rounds)), ring=ring)
        finish(vm)
        assert words(vm, LOG, 1) == [2 * PAGES * rounds]
        counts.append(len(looked))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("ring", (1, 3))
def test_a_page_that_one_view_changes_is_noticed(ring: int) -> None:
    """A view leads elsewhere from some moment on, while it is not the current one: its code is executed there, the other's here."""
    other = FIRST + 0x1000 * PAGES
    call = f"mov eax,{FIRST}; call eax"
    change = f"mov dword ptr [{TABLE + 4 * (FIRST >> 12)}],{other | 3}"
    views = f"mov eax,{VIEW}; mov cr3,eax; {call}; mov eax,{DIRECTORY}; mov cr3,eax; {call}"
    vm = flat_vm(_guest(f"{views}; {views}; {change}; {views}; {views}; mov [{LOG}],ebx; {FINISH}") | {other: "add ebx,0x100; ret"}, ring=ring)
    finish(vm)
    assert words(vm, LOG, 1) == [0x206]
    assert words(vm, IDENTITY + 4 * (FIRST >> 12), 1)[0] >> 12 == FIRST >> 12


@pytest.mark.parametrize("ring", (1, 3))
def test_a_new_address_space_knows_the_kernel(ring: int) -> None:
    """Regions for which a new directory says what the one before it says are linked at once: no fault finds them again."""
    counts = []
    for spaces in (1, 9):
        made = {VIEW + 0x1000 * n: pack([IDENTITY | 0x23, USER_TABLE | 0x27]) for n in range(spaces)}  # accessed, as the first one has become
        loads = "; ".join(f"mov eax,{at}; mov cr3,eax; mov eax,[{LOG}]; inc ebx" for at in made)
        vm = flat_vm(small_kernel(f"xor ebx,ebx; {loads}; mov [{LOG}],ebx; {FINISH}") | made, ring=ring)
        finish(vm)
        assert words(vm, LOG, 1) == [spaces]
        counts.append(vm.stats.architectural["hidden page fault"])
    assert counts[0] == counts[1]
