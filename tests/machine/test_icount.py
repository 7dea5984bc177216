"""--icount on the bare machine: the count is what the rule says, to the instruction, and interrupts come where the count says.

The cases are counted by hand; the engine's own report of every instruction that begins is a second count that knows nothing of ours.
"""

import ctypes

import pytest

from guest_kernels import Guest, kernels, missing_line
from tests.machine.flat import ENTRY, FINISH, MEMORY_MIB, finish, flat_vm, words
from tests.machine.small_kernel import IDENTITY, LOG, TO_USER, small_kernel
from vmm.backends import Options
from vmm.backends.native import NativeOptions
from vmm.backends.trap import TrapOptions
from vmm.console import Recorder
from vmm.errors import InputError
from vmm.exits import End, Stop
from vmm.icount import NANOSECONDS
from vmm.vm import Vm, machine_for

LAPIC_PAGE = 0x3E0000  # linear, mapped to the local APIC
TIMER = 0x81
_HOOK_CODE, _BEGINS = 4, ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)


def counting_vm(parts: dict[int, bytes], options: Options | None = None, *, icount: bool = True) -> Vm:
    """A small kernel that counts its instructions, on the bare machine unless `options` say otherwise, with the local APIC at LAPIC_PAGE."""
    table = bytearray(parts[IDENTITY])
    table[LAPIC_PAGE >> 10 : (LAPIC_PAGE >> 10) + 4] = (0xFEE0001B).to_bytes(4, "little")
    return flat_vm({**parts, IDENTITY: bytes(table)}, options=options or NativeOptions(), icount=icount)


def run_counted(parts: dict[int, bytes], options: Options) -> Vm:
    """A VM that has run to its debug exit, which reports 0."""
    vm = counting_vm(parts, options)
    assert finish(vm) == 0
    return vm


def _skip(size: int, *, code: bool) -> str:
    """A handler of three or four instructions that goes on behind a faulting instruction of so many bytes."""
    return f"{'add esp,4; ' if code else ''}add dword ptr [esp],{size}; nop; .byte 0xcf"


_HANDLERS = {
    0: _skip(2, code=False),
    6: _skip(2, code=False),
    13: _skip(2, code=True),
    14: "add esp,4; mov dword ptr [esp],ebx; nop; .byte 0xcf",
    0x80: "nop; .byte 0xcf",
}
_REP = ".byte 0xf3,"
CASES = {
    # body: instructions retired in it, the handlers' included
    "nothing": ("", 0),
    "plain": ("nop; nop; mov eax,1; push eax; pop eax", 5),
    "loop": ("mov ecx,100; l: nop; loop l", 201),
    "rep": (f"mov edi,{LOG + 64}; mov ecx,7; {_REP}0xaa", 2 + 7 + 1),
    "rep of nothing": (f"mov edi,{LOG + 64}; mov ecx,0; {_REP}0xaa", 2 + 1),
    "repe that ends early": (f"mov edi,{LOG + 64}; mov ecx,9; mov al,1; {_REP}0xae", 3 + 1),
    "undefined": (".byte 0x0f,0x0b", 3),
    "divide error": ("xor ecx,ecx; .byte 0xf7,0xf1", 1 + 3),
    "int": ("int 0x80", 1 + 2),
    "refused": ("mov ecx,0x12345; rdmsr", 1 + 4),
    "privileged": ("mov eax,cr0; mov cr0,eax; mov eax,cr4; mov cr4,eax", 4),
    "emulated": ("mov ecx,0x1b; rdmsr; wrmsr; xor eax,eax; cpuid; rdtsc", 6),
    "page fault": (".byte 0xbb; .long n; mov eax,[0x3f0000]; n: nop", 1 + 4 + 1),
    "fetch fault": (".byte 0xbb; .long n; mov eax,0x3f0000; jmp eax; n: nop", 3 + 4 + 1),
    "rep that faults": (f".byte 0xbb; .long n; mov edi,0x3efff0; mov ecx,32; {_REP}0xaa; n: nop", 3 + 16 + 4 + 1),
    "ports": ("in al,0x61; out 0x80,al; in al,0x40", 3),
    "device memory": (f"mov eax,[{LAPIC_PAGE + 0x20}]; mov [{LAPIC_PAGE + 0x80}],eax; push dword ptr [{LAPIC_PAGE + 0x30}]; pop eax", 4),
    "rep of ports": ("mov dx,0x61; mov edi,0x240000; mov ecx,3; .byte 0xf3,0x6c", 3 + 3 + 1),
    "flags": ("sti; cli; pushfd; popfd", 4),
}


@pytest.mark.parametrize("name", CASES)
def test_counted_by_hand(name: str) -> None:
    """Between two RDTSC lie so many instructions, and the total is that of the engine's reports less the faulting ones."""
    body, expected = CASES[name]
    parts = small_kernel(f"rdtsc; mov ebp,eax; {body}; rdtsc; sub eax,ebp; mov [{LOG}],eax; {FINISH}", handlers=_HANDLERS)
    vm = counting_vm(parts)
    assert finish(vm) == 0
    assert words(vm, LOG, 1) == [NANOSECONDS * (2 + expected)]
    again = counting_vm(parts, icount=False)
    again.machine.count_instructions()  # no kicks: while one is pending the engine reports nothing
    begun: list[int] = []
    callback = _BEGINS(lambda handle, address, size, data: begun.append(address))
    again.machine._hook(_HOOK_CODE, callback, 0)
    assert finish(again) == 0
    begun = begun[: begun.index(ENTRY + len(parts[ENTRY]) - 2) + 1]  # behind the last OUT the engine finishes its block, whatever that holds
    fetches = 1 if name == "fetch fault" else 0
    faults = sum(vm.stats.injected[vector] for vector in (0, 6, 13, 14)) - fetches
    assert vm.backend.retired() == len(begun) - faults


def test_user_mode_and_a_refused_port() -> None:
    """A system call and IRET count one each; a port access that is not allowed counts none, nor what ran before it was taken back."""
    user = "rdtsc; mov ebp,eax; int 0x80; nop; in al,0x60; nop; nop; rdtsc; sub eax,ebp; int 0x82"
    handlers = {0x80: "nop; .byte 0xcf", 13: "add esp,4; add dword ptr [esp],2; .byte 0xcf", 0x82: f"mov ss:[{LOG}],eax; {FINISH}"}
    vm = counting_vm(small_kernel(TO_USER, user=user, handlers=handlers))
    assert finish(vm) == 0
    assert words(vm, LOG, 1) == [NANOSECONDS * (2 + 3 + 1 + 3 + 2)]


@pytest.mark.parametrize("after", (1, 2, 10, 11, 999, 1000, 250_001))
def test_a_timer_interrupts_at_its_instruction(after: int) -> None:
    """The local APIC's timer, set by an instruction, interrupts behind exactly so many instructions, that one included; or one later, behind it."""
    arm = f"mov dword ptr [{LAPIC_PAGE + 0x3E0}],0xb; mov dword ptr [{LAPIC_PAGE + 0x320}],{TIMER}"
    body = f"{arm}; xor ecx,ecx; sti; nop; mov dword ptr [{LAPIC_PAGE + 0x380}],{NANOSECONDS * after}; l: inc ecx; jmp l"
    vm = counting_vm(small_kernel(body, handlers={TIMER: f"mov [{LOG}],ecx; pop dword ptr [{LOG + 4}]; {FINISH}"}))
    assert finish(vm) == 0
    rounds, eip = words(vm, LOG, 2)
    loop = ENTRY + len(assemble_head(body))
    assert (rounds, eip - loop) == (after // 2, 0 if after % 2 else 1)


def assemble_head(body: str) -> bytes:
    """What stands in front of the loop."""
    return small_kernel(body.partition("l: inc")[0])[ENTRY]


@pytest.mark.parametrize("shadow", (0, 1))
def test_a_timer_waits_for_the_interrupt_flag_and_its_shadow(shadow: int) -> None:
    """What is due while IF is clear comes behind STI's shadow."""
    arm = f"mov dword ptr [{LAPIC_PAGE + 0x3E0}],0xb; mov dword ptr [{LAPIC_PAGE + 0x320}],{TIMER}; mov dword ptr [{LAPIC_PAGE + 0x380}],40"
    body = f"{arm}; xor ecx,ecx; {'nop; ' * 8} {'nop; ' * shadow} sti; inc ecx; inc ecx; l: jmp l"
    vm = counting_vm(small_kernel(body, handlers={TIMER: f"mov [{LOG}],ecx; {FINISH}"}))
    assert finish(vm) == 0
    assert words(vm, LOG, 1) == [1]


def test_a_timer_interrupts_between_iterations() -> None:
    """REP STOSB is interrupted behind the iteration at which the count is reached, and goes on."""
    arm = f"mov dword ptr [{LAPIC_PAGE + 0x3E0}],0xb; mov dword ptr [{LAPIC_PAGE + 0x320}],{TIMER}"
    start = f"mov ecx,1000; mov edi,{LOG + 64}; mov al,7; sti; nop; mov dword ptr [{LAPIC_PAGE + 0x380}],{NANOSECONDS * 301}"
    parts = small_kernel(f"{arm}; {start}; {_REP}0xaa; {FINISH}", handlers={TIMER: f"mov ss:[{LOG}],ecx; .byte 0xcf"})
    vm = counting_vm(parts)
    assert finish(vm) == 0
    assert words(vm, LOG, 1) == [700]
    assert set(vm.memory.read(LOG + 64, 1000)) == {7}


def test_hlt_jumps_to_what_is_due_next() -> None:
    """A guest that waits an hour of virtual time for its timer has waited it at once."""
    arm = f"mov dword ptr [{LAPIC_PAGE + 0x3E0}],0xa; mov dword ptr [{LAPIC_PAGE + 0x320}],{TIMER}; mov dword ptr [{LAPIC_PAGE + 0x380}],0x80000000"
    vm = counting_vm(small_kernel(f"{arm}; sti; l: hlt; jmp l", handlers={TIMER: f"rdtsc; mov [{LOG}],edx; {FINISH}"}))
    assert finish(vm, 5) == 0
    assert words(vm, LOG, 1) == [0x80000000 * 128 >> 32]


@pytest.mark.parametrize("name", ("faults", "faults-pae", "faults-step", "smc", "sensitive"))
def test_bundled_kernels(name: str) -> None:
    """The kernels pass with their instructions counted as they do in real time, whatever falls due between two of them."""
    guest, console = kernels()[name], Recorder()
    vm = Vm(machine_for(guest.memory_mib, NativeOptions()), memory_mib=guest.memory_mib, options=NativeOptions(), console=console, icount=True)
    vm.load(str(guest.file), append=guest.command_line)
    assert vm.run(guest.timeout_s).why is End.REPORTED
    assert missing_line(console.output.decode("latin-1"), guest.console) is None


def interrupted(guest: Guest, options: Options, most: int = 1000) -> tuple[str, int, list[tuple[int, int, int]], int]:
    """What a guest printed, the count and the virtual time at its end, and the count, EIP and vector of each interrupt, `most` of them."""
    console, interrupts = Recorder(), []
    vm = Vm(machine_for(guest.memory_mib, options), memory_mib=guest.memory_mib, options=options, console=console, icount=True)
    acknowledge = vm.board.interrupts.acknowledge

    def log() -> int:
        vector = acknowledge()
        interrupts.append((vm.backend.retired(), vm.vcpu.eip, vector))
        if len(interrupts) == most:
            vm.stop(Stop(End.QUIT, "enough seen"))
        return vector

    setattr(vm.board.interrupts, "acknowledge", log)  # noqa: B010  the instance's own goes before the class's
    vm.load(str(guest.file), append=guest.command_line)
    assert vm.run(10 * guest.timeout_s).why in (End.REPORTED, End.QUIT)
    return console.output.decode(), vm.backend.retired(), interrupts, vm.clock.now()


def test_two_runs_are_the_same() -> None:
    """Console, count, virtual time, and each interrupt's count and EIP of a kernel with four processes pre-empted by the timer."""
    first, second = (interrupted(kernels()["rings"], NativeOptions()) for _ in range(2))
    assert first == second
    assert first[0].endswith("35 passed, 0 failed\r\n")
    assert len(first[2]) > 10


def test_a_back_end_that_does_not_count_refuses() -> None:
    """Where instructions are not counted --icount is bad input, and says so."""
    options = TrapOptions()
    with pytest.raises(InputError, match="--backend trap does not count"):
        Vm(machine_for(MEMORY_MIB, options), memory_mib=MEMORY_MIB, options=options, icount=True)


@pytest.mark.parametrize(
    ("body", "counted", "rule"),
    (
        (".byte 0xbb; .long m; mov byte ptr [ebx],0x90; nop; m: nop", 5, 4),
        (f"mov edi,{LOG + 64}; mov ecx,1; mov ebx,ss; mov ss,ebx; {_REP}0xaa", 5, 6),
    ),
    ids=("a store into its own block", "rep in a shadow"),
)
def test_what_is_counted_against_the_rule(body: str, counted: int, rule: int) -> None:
    """The quirk: the engine begins a store anew that changes its own block, and ends a REP without another look at the count when it steps."""
    vm = counting_vm(small_kernel(f"rdtsc; mov ebp,eax; {body}; rdtsc; sub eax,ebp; mov [{LOG}],eax; {FINISH}"))
    assert finish(vm) == 0
    assert words(vm, LOG, 1) == [NANOSECONDS * (2 + counted)]
    assert counted != rule
