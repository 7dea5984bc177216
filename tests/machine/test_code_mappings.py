"""Kernel code whose addresses come to lead elsewhere: translations follow the guest's tables, as a CPU's fetches do."""

import pytest

from tests.machine.flat import FINISH, finish, flat_vm, pack, words
from tests.machine.small_kernel import DIRECTORY, LOG, small_kernel

_CODE, _TABLE, _FIRST, _SECOND = 0x800000, 0x303000, 0x1B0000, 0x1B1000
_ACCESSED = 0x20
_RELOAD = "mov ebx,cr3; mov cr3,ebx"
_INVALIDATE = f"invlpg [{_CODE}]"


def _guest(body: str) -> dict[int, bytes]:
    """A kernel that may call _CODE, which is mapped to _FIRST, supervisor's, by a page table that serves nothing else."""
    parts = small_kernel(body + FINISH)
    parts[DIRECTORY] += pack([_TABLE | 3])
    code = {_FIRST: b"\xb8\x01\0\0\0\xc3", _SECOND: b"\xb8\x02\0\0\0\xc3"}  # mov eax,n; ret
    return parts | {_TABLE: pack([_FIRST | 3])} | code


@pytest.mark.parametrize("ring", (1, 3))
@pytest.mark.parametrize("flush", (_RELOAD, _INVALIDATE), ids=("cr3", "invlpg"))
def test_code_that_nothing_has_read_is_mapped_elsewhere(flush: str, ring: int) -> None:
    """The page was never touched but by fetches, so no shadow entry was ever made for it."""
    call = f"mov ecx,{_CODE}; call ecx; "
    body = f"{call}{call} mov [{LOG}],eax; mov dword ptr [{_TABLE}],{_SECOND | 3}; {flush}; {call} mov [{LOG + 4}],eax; "
    body += f"mov dword ptr [{_TABLE}],{_FIRST | 3}; {flush}; {call} mov [{LOG + 8}],eax; "
    vm = flat_vm(_guest(body), ring=ring)
    assert finish(vm) == 0
    assert words(vm, LOG, 3) == [1, 2, 1]


@pytest.mark.parametrize("ring", (1, 3))
@pytest.mark.parametrize("flush", (_RELOAD, _INVALIDATE), ids=("cr3", "invlpg"))
def test_the_accessed_bit_of_code_is_set_by_fetches_only(flush: str, ring: int) -> None:
    """It stays clear when the guest has cleared it, until the code runs again."""
    call, read = f"mov ecx,{_CODE}; call ecx; ", f"mov eax,[{_TABLE}]; and eax,{_ACCESSED}; "
    body = f"{call} {read} mov [{LOG}],eax; and dword ptr [{_TABLE}],{~_ACCESSED & 0xFFFFFFFF}; {flush}; {_RELOAD}; {read} mov [{LOG + 4}],eax; "
    body += f"{call} {read} mov [{LOG + 8}],eax; "
    vm = flat_vm(_guest(body), ring=ring)
    assert finish(vm) == 0
    assert words(vm, LOG, 3) == [_ACCESSED, 0, _ACCESSED]
