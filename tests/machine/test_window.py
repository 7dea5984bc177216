"""The window of the translation cache gets out of the guest's way, and the cache survives being too small."""

import pytest

from guest_kernels import kernels
from tests.machine.flat import FINISH, finish, flat_vm
from vmm.backends.bt import BtOptions
from vmm.exits import End
from vmm.vm import Vm, machine_for

DIRECTORY = 0x10000
WINDOW = 0xE8000000
PAGING = f"""
    mov eax, cr4
    or eax, 0x10
    mov cr4, eax
    mov dword ptr [{DIRECTORY:#x}], 0x87
    mov eax, {DIRECTORY:#x}
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80010000
    mov cr0, eax
"""


def _map(gva: int, gpa: int) -> str:
    """Writes the directory entry of a large page."""
    return f"mov dword ptr [{DIRECTORY + (gva >> 22) * 4:#x}], {gpa | 0x87:#x}"


@pytest.mark.parametrize("ring", [1, 3])
def test_the_window_moves_when_the_guest_maps_its_range(ring: int) -> None:
    """The guest maps RAM there, writes and reads it at once, without a flush, and calls code that was translated before."""
    vm = flat_vm(
        {
            0x100000: f"""
            {PAGING}
            mov esp, 0x80000
            call 0x101000
            {_map(WINDOW, 0x200000 & ~0x3FFFFF)}
            mov dword ptr [{WINDOW + 0x300010:#x}], 0x12345678
            mov ebx, dword ptr [{WINDOW + 0x300010:#x}]
            cmp ebx, dword ptr [0x300010]
            jne 0x100800
            call 0x101000
            cmp esi, 2
            jne 0x100800
            {FINISH}
            """,
            0x100800: "mov al, 1; out 0xf4, al",
            0x101000: "inc esi; pushfd; cli; popfd; ret",
        },
        ring=ring,
    )
    assert vm.backend.window.base == WINDOW
    assert finish(vm) == 0
    assert vm.backend.window.base != WINDOW
    assert vm.stats.outside == 0


@pytest.mark.parametrize("ring", [1, 3])
def test_the_window_moves_again_and_again(ring: int) -> None:
    """The guest maps one directory entry after another, from the top down; each access must find its own memory."""
    vm = flat_vm(
        {
            0x100000: f"""
            {PAGING}
            mov esp, 0x80000
            mov edi, 1019
            next:
            mov dword ptr [edi*4 + {DIRECTORY:#x}], 0x87
            mov eax, edi
            shl eax, 22
            mov dword ptr [eax + 0x300020], edi
            cmp dword ptr [0x300020], edi
            jne 0x100800
            dec edi
            cmp edi, 20
            jne next
            {FINISH}
            """,
            0x100800: "mov al, 1; out 0xf4, al",
        },
        ring=ring,
    )
    assert finish(vm, 60) == 0


def test_no_room_for_the_window_is_a_clean_stop() -> None:
    """A guest that maps all 4 GiB to RAM leaves nowhere: the run ends and says why."""
    vm = flat_vm(
        {
            0x100000: f"""
            mov edi, 1023
            next:
            mov dword ptr [edi*4 + {DIRECTORY:#x}], 0x87
            dec edi
            jns next
            {PAGING}
            {FINISH}
            """
        }
    )
    stop = vm.run(20)
    assert stop.why is End.DIED
    assert "no room" in stop.reason


@pytest.mark.parametrize("ring", [1, 3])
@pytest.mark.parametrize("name", ["faults", "smc", "rings"])
def test_a_cache_that_overflows_changes_nothing(name: str, ring: int) -> None:
    """16 KiB of cache: everything is thrown away several times."""
    guest = kernels()[name]
    vm = Vm(machine_for(guest.memory_mib), memory_mib=guest.memory_mib, options=BtOptions(ring=ring, cache_size=16384))
    vm.load(str(guest.file), append=guest.command_line)
    stop = vm.run(60)
    assert (stop.why, stop.value) == (End.REPORTED, 0), stop
    assert vm.backend.cache.flushes > 1 or name == "rings"
    assert vm.stats.outside == 0


@pytest.mark.parametrize("ring", [1, 3])
def test_a_guest_that_maps_everything_to_itself(ring: int) -> None:
    """An identity map of all 4 GiB: the window lies where the guest maps nobody's memory (docs/QUIRKS.md), and RAM and devices are themselves."""
    vm = flat_vm(
        {
            0x100000: f"""
            mov edi, 1023
            next:
            mov eax, edi
            shl eax, 22
            or eax, 0x87
            mov dword ptr [edi*4 + {DIRECTORY:#x}], eax
            dec edi
            jns next
            {PAGING}
            mov esp, 0x80000
            mov dword ptr [0x300010], 0x1234
            cmp dword ptr [0x300010], 0x1234
            jne 0x100800
            cmp dword ptr [0xfee00030], 0x50014
            jne 0x100800
            {FINISH}
            """,
            0x100800: "mov al, 1; out 0xf4, al",
        },
        ring=ring,
    )
    assert finish(vm) == 0
