"""--icount under hw: the cases of the bare machine count the same, and interrupts come at the same instruction, by the engine's own count.

Knows the cases of test_icount.py and test_icount_bt.py, which are counted by hand there.
"""

import pytest

from guest_kernels import kernels
from tests.machine.flat import FINISH, finish, flat_vm, words
from tests.machine.small_kernel import LOG, TO_USER, small_kernel
from tests.machine.test_icount import _HANDLERS, CASES, LAPIC_PAGE, TIMER, interrupted, run_counted
from tests.machine.test_icount_bt import _SMALL_KERNEL, guest_of
from tests.machine.test_icount_bt import CASES as MORE_CASES
from vmm.backends.hw import HwOptions
from vmm.backends.native import NativeOptions
from vmm.errors import InputError
from vmm.icount import NANOSECONDS
from vmm.machine import Machine
from vmm.vm import Vm

BOTH = pytest.mark.parametrize("mmu", ("nested", "shadow"))


@BOTH
@pytest.mark.parametrize("name", CASES)
def test_counted_by_hand(name: str, mmu: str) -> None:
    """Between two RDTSC lie so many instructions, and the total is the bare machine's."""
    body, expected = CASES[name]
    parts = small_kernel(f"rdtsc; mov ebp,eax; {body}; rdtsc; sub eax,ebp; mov [{LOG}],eax; {FINISH}", handlers=_HANDLERS)
    vm, native = run_counted(parts, HwOptions(mmu=mmu)), run_counted(parts, NativeOptions())
    assert words(vm, LOG, 1) == [NANOSECONDS * (2 + expected)]
    assert vm.backend.retired() == native.backend.retired()


@BOTH
@pytest.mark.parametrize("name", MORE_CASES)
def test_more_counted_by_hand(name: str, mmu: str) -> None:
    """The number of instructions retired at the end of the guest: faults hidden and true, user code, single steps, code that is written."""
    vm = flat_vm(guest_of(MORE_CASES[name]), options=HwOptions(mmu=mmu), icount=True)
    finish(vm)
    assert vm.backend.retired() - _SMALL_KERNEL - 2 == MORE_CASES[name].count


@BOTH
def test_user_mode_and_a_refused_port(mmu: str) -> None:
    """A system call and IRET count one each; a port access that is not allowed counts none, nor what ran before it was taken back."""
    user = "rdtsc; mov ebp,eax; int 0x80; nop; in al,0x60; nop; nop; rdtsc; sub eax,ebp; int 0x82"
    handlers = {0x80: "nop; .byte 0xcf", 13: "add esp,4; add dword ptr [esp],2; .byte 0xcf", 0x82: f"mov ss:[{LOG}],eax; {FINISH}"}
    vm = run_counted(small_kernel(TO_USER, user=user, handlers=handlers), HwOptions(mmu=mmu))
    assert words(vm, LOG, 1) == [NANOSECONDS * (2 + 3 + 1 + 3 + 2)]


@BOTH
@pytest.mark.parametrize("after", (1, 2, 11, 1000, 250_001))
def test_a_timer_interrupts_at_its_instruction(after: int, mmu: str) -> None:
    """The local APIC's timer interrupts behind exactly so many instructions."""
    arm = f"mov dword ptr [{LAPIC_PAGE + 0x3E0}],0xb; mov dword ptr [{LAPIC_PAGE + 0x320}],{TIMER}"
    body = f"{arm}; xor ecx,ecx; sti; nop; mov dword ptr [{LAPIC_PAGE + 0x380}],{NANOSECONDS * after}; l: inc ecx; jmp l"
    vm = run_counted(small_kernel(body, handlers={TIMER: f"mov [{LOG}],ecx; {FINISH}"}), HwOptions(mmu=mmu))
    assert words(vm, LOG, 1) == [after // 2]


@BOTH
def test_rings_is_interrupted_as_on_the_bare_machine(mmu: str) -> None:
    """A kernel with four processes pre-empted by the timer: console, count, virtual time, and each interrupt's count, EIP and vector."""
    guest = kernels()["rings"]
    assert interrupted(guest, HwOptions(mmu=mmu), most=6) == interrupted(guest, NativeOptions(), most=6)


def test_a_shared_machine_is_refused() -> None:
    """The engine's own count is of all that runs on it, and kicks are not exact while it counts."""
    machine = Machine(64 << 20, 4 << 20, shared=True)
    with pytest.raises(InputError, match="a machine of its own"):
        Vm(machine, memory_mib=4, options=HwOptions(), icount=True)
