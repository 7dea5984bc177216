"""--icount under step, the plain definition of the rule: the cases of the bare machine count the same, and interrupts come at the same instruction.

Knows the cases of test_icount.py, which are counted by hand there.
"""

import pytest

from guest_kernels import kernels
from tests.machine.flat import FINISH, words
from tests.machine.small_kernel import LOG, TO_USER, small_kernel
from tests.machine.test_icount import _HANDLERS, _REP, CASES, LAPIC_PAGE, TIMER, interrupted, run_counted
from vmm.backends import Options
from vmm.backends.native import NativeOptions
from vmm.backends.step import StepOptions
from vmm.icount import NANOSECONDS

BOTH = pytest.mark.parametrize("options", (NativeOptions(), StepOptions()), ids=lambda options: options.backend)


@pytest.mark.parametrize("name", CASES)
def test_counted_by_hand(name: str) -> None:
    """Between two RDTSC lie so many instructions, and the total is the bare machine's."""
    body, expected = CASES[name]
    parts = small_kernel(f"rdtsc; mov ebp,eax; {body}; rdtsc; sub eax,ebp; mov [{LOG}],eax; {FINISH}", handlers=_HANDLERS)
    step, native = run_counted(parts, StepOptions()), run_counted(parts, NativeOptions())
    assert words(step, LOG, 1) == [NANOSECONDS * (2 + expected)]
    assert step.backend.retired() == native.backend.retired()


@pytest.mark.parametrize(
    ("body", "expected"),
    (
        (".byte 0xbb; .long m; mov byte ptr [ebx],0x90; nop; m: nop", 4),
        (f"mov edi,{LOG + 64}; mov ecx,1; mov ebx,ss; mov ss,ebx; {_REP}0xaa", 6),
        (f"mov edi,{LOG + 64}; mov ecx,0; mov ebx,ss; mov ss,ebx; {_REP}0xaa", 5),
        (f"mov edi,{LOG + 64}; mov ecx,3; mov al,0; {_REP}0xae", 3 + 4),
        (f"mov edi,{LOG + 64}; mov ecx,3; mov al,0; .byte 0xf2,0xae", 3 + 1),
        (f"mov edi,{LOG + 64}; mov ecx,0x30000; .byte 0x67; {_REP}0xaa", 2 + 1),
    ),
)
def test_by_the_rule(body: str, expected: int) -> None:
    """Also what the bare machine counts against it, and repeated instructions that end in other ways."""
    vm = run_counted(small_kernel(f"rdtsc; mov ebp,eax; {body}; rdtsc; sub eax,ebp; mov [{LOG}],eax; {FINISH}"), StepOptions())
    assert words(vm, LOG, 1) == [NANOSECONDS * (2 + expected)]


def test_user_mode_and_a_refused_port() -> None:
    """A system call and IRET count one each; a port access that is not allowed counts none."""
    user = "rdtsc; mov ebp,eax; int 0x80; nop; in al,0x60; nop; nop; rdtsc; sub eax,ebp; int 0x82"
    handlers = {0x80: "nop; .byte 0xcf", 13: "add esp,4; add dword ptr [esp],2; .byte 0xcf", 0x82: f"mov ss:[{LOG}],eax; {FINISH}"}
    vm = run_counted(small_kernel(TO_USER, user=user, handlers=handlers), StepOptions())
    assert words(vm, LOG, 1) == [NANOSECONDS * (2 + 3 + 1 + 3 + 2)]


@BOTH
@pytest.mark.parametrize("after", (1, 2, 10, 11, 999, 1000, 30_001))
def test_a_timer_interrupts_at_its_instruction(after: int, options: Options) -> None:
    """The local APIC's timer interrupts behind exactly so many instructions."""
    arm = f"mov dword ptr [{LAPIC_PAGE + 0x3E0}],0xb; mov dword ptr [{LAPIC_PAGE + 0x320}],{TIMER}"
    body = f"{arm}; xor ecx,ecx; sti; nop; mov dword ptr [{LAPIC_PAGE + 0x380}],{NANOSECONDS * after}; l: inc ecx; jmp l"
    vm = run_counted(small_kernel(body, handlers={TIMER: f"mov [{LOG}],ecx; {FINISH}"}), options)
    assert words(vm, LOG, 1) == [after // 2]


@BOTH
def test_a_timer_interrupts_between_iterations(options: Options) -> None:
    """REP STOSB is interrupted behind the iteration at which the count is reached, and goes on."""
    arm = f"mov dword ptr [{LAPIC_PAGE + 0x3E0}],0xb; mov dword ptr [{LAPIC_PAGE + 0x320}],{TIMER}"
    start = f"mov ecx,1000; mov edi,{LOG + 64}; mov al,7; sti; nop; mov dword ptr [{LAPIC_PAGE + 0x380}],{NANOSECONDS * 301}"
    vm = run_counted(small_kernel(f"{arm}; {start}; {_REP}0xaa; {FINISH}", handlers={TIMER: f"mov ss:[{LOG}],ecx; .byte 0xcf"}), options)
    assert words(vm, LOG, 1) == [700]
    assert set(vm.memory.read(LOG + 64, 1000)) == {7}


def test_hlt_jumps_to_what_is_due_next() -> None:
    """A guest that waits an hour of virtual time for its timer has waited it at once."""
    arm = f"mov dword ptr [{LAPIC_PAGE + 0x3E0}],0xa; mov dword ptr [{LAPIC_PAGE + 0x320}],{TIMER}; mov dword ptr [{LAPIC_PAGE + 0x380}],0x80000000"
    vm = run_counted(small_kernel(f"{arm}; sti; l: hlt; jmp l", handlers={TIMER: f"rdtsc; mov [{LOG}],edx; {FINISH}"}), StepOptions())
    assert words(vm, LOG, 1) == [0x80000000 * 128 >> 32]


def test_rings_is_interrupted_as_on_the_bare_machine() -> None:
    """A kernel with four processes, up to the first change of process by the timer: console, and each interrupt's count, EIP and vector."""
    guest = kernels()["rings"]
    (console, _, interrupts, _), (native_console, _, native_interrupts, _) = (
        interrupted(guest, options, most=4) for options in (StepOptions(), NativeOptions())
    )
    assert (console, interrupts) == (native_console, native_interrupts)
    assert len(interrupts) == 4
