"""--icount under bt: counts done by hand, deadlines met to the instruction, and runs that repeat exactly.

Each guest runs in two ways: by runs of instructions, and by single steps alone, which share no code in counting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from guest_kernels import kernels, missing_line
from tests.assembly import assemble
from tests.machine.flat import ENTRY, FINISH, finish, flat_vm, words
from tests.machine.small_kernel import IDENTITY, LOG, TO_USER, USER, small_kernel
from vmm.backends.bt import BtOptions
from vmm.backends.native import NativeOptions
from vmm.console import Recorder
from vmm.exits import Exit, External, Outcome
from vmm.icount import NANOSECONDS
from vmm.vm import Vm, machine_for

WAYS = pytest.mark.parametrize(("ring", "cached"), ((1, True), (3, True), (1, False), (3, False)))
_SMALL_KERNEL = 16  # instructions of small_kernel's beginning
_ENTER_USER, _USER_PROLOGUE = 6, 3


def bare(parts: Mapping[int, str | bytes]) -> Vm:
    """The same guest on the bare machine, which counts in another way."""
    return flat_vm(parts, options=NativeOptions(), icount=True)


def counted(parts: Mapping[int, str | bytes], *, ring: int = 1, cached: bool = True, steps: bool = False) -> Vm:
    """A VM that counts; with `steps` it never trusts a run's length."""
    vm = flat_vm(parts, ring=ring, stubs_in_cache=cached, icount=True)
    if steps:
        budget = vm.backend.budget
        assert budget is not None
        budget.overdrawn = budget.run_due = lambda *_: None  # type: ignore[method-assign]
        budget.creeping = True
    return vm


@dataclass(frozen=True)
class Case:
    """Kernel code with the number of instructions that it takes, its end (two more) not among them."""

    code: str
    count: int
    user: str = "nop"
    handlers: Mapping[int, str] = field(default_factory=dict)


_MAP = f"mov eax,cr2; shr eax,10; and eax,0xffc; or dword ptr [eax+{IDENTITY}],3"
_REPAIR = f"push eax; {_MAP}; mov eax,cr2; invlpg [eax]; pop eax; add esp,4; .byte 0xcf"
_REP = ".byte 0xf3; "
CASES = {
    "straight": Case("nop; nop; inc eax; push eax; pop ecx", 5),
    "a loop": Case("mov ecx,1000; l: dec ecx; jnz l", 1 + 2 * 1000),
    "loop": Case("mov ecx,1000; l: nop; loop l", 1 + 2 * 1000),
    "branches into the midst": Case(
        "xor eax,eax; mov ecx,10; l: inc eax; m: inc eax; dec ecx; jz e; test cl,1; jz l; jmp m; e: nop", 2 + 5 * 7 + 4 * 5 + 3 + 1
    ),
    "calls": Case("mov ecx,100; l: call f; dec ecx; jnz l; jmp e; f: ret; e: nop", 1 + 100 * 4 + 2),
    "an indirect jump": Case(f"mov eax,{ENTRY + 0x800}; jmp eax", 2 + 2),
    "flags": Case("cli; pushfd; popfd; pushfd; pop eax", 5),
    "control registers": Case("mov eax,cr3; mov cr3,eax; mov eax,cr0; str ax; mov ax,cs", 5),
    "segments": Case("mov eax,0x10; mov es,eax; push es; pop fs; mov ss,eax; mov ecx,ss", 6),
    "movs": Case("cld; mov ecx,100; mov esi,0x200000; mov edi,0x210000; " + _REP + ".byte 0xa5", 4 + 101),
    "movs of nothing": Case("cld; xor ecx,ecx; " + _REP + ".byte 0xa4", 2 + 1),
    "many stos": Case("cld; mov ecx,70000; mov edi,0x200000; xor eax,eax; " + _REP + ".byte 0xaa", 4 + 70001),
    "stos with a short counter": Case(
        "cld; mov ecx,0x50008; mov edi,0x200000; .byte 0x67,0xf3,0xaa; cmp ecx,0x50000; jne bad; jmp e; bad: hlt; e: nop", 3 + 9 + 4
    ),
    "cmps that differ": Case("cld; mov ecx,100; mov esi,0x200000; mov edi,0x210000; mov byte ptr [0x200005],1; " + _REP + ".byte 0xa6", 5 + 6),
    "cmps that are equal": Case("cld; mov ecx,100; mov esi,0x200000; mov edi,0x210000; " + _REP + ".byte 0xa6", 4 + 101),
    "cmps that differ at last": Case("cld; mov ecx,6; mov esi,0x200000; mov edi,0x210000; mov byte ptr [0x200005],1; " + _REP + ".byte 0xa6", 5 + 6),
    "cmps of nothing": Case("cld; xor ecx,ecx; inc eax; " + _REP + ".byte 0xa6", 3 + 1),
    "scas": Case("cld; mov ecx,100; mov edi,0x200000; xor eax,eax; mov byte ptr [0x200000],1; .byte 0xf2,0xae", 5 + 2),
    "hidden faults": Case("mov ecx,50; mov edi,0x200000; l: mov [edi],eax; add edi,0x1000; dec ecx; jnz l", 2 + 50 * 4),
    "a fault": Case("xor ecx,ecx; div ecx; nop", 4, handlers={0: "add dword ptr [esp],2; .byte 0xcf"}),
    "a page fault": Case("mov eax,[0x3f0000]", 1 + 10, handlers={14: _REPAIR}),
    "a page fault in stos": Case("cld; mov ecx,1000; mov edi,0x3effff; " + _REP + ".byte 0xaa", 3 + 1001 + 10, handlers={14: _REPAIR}),
    "a page fault in many stos": Case("cld; mov ecx,70000; mov edi,0x3e0000; " + _REP + ".byte 0xaa", 3 + 70001 + 20, handlers={14: _REPAIR}),
    "ud2": Case("ud2", 2, handlers={6: "add dword ptr [esp],2; .byte 0xcf"}),
    "int": Case("int 0x80; int3", 2 + 2, handlers={0x80: ".byte 0xcf", 3: ".byte 0xcf"}),
    "int that is refused": Case("int 0x50", 4, handlers={13: "add esp,4; add dword ptr [esp],2; nop; .byte 0xcf"}),
    "ports": Case("in al,0x71; out 0x80,al; in al,0x71; mov dx,0x80; out dx,al", 5),
    "strings of ports": Case("cld; mov dx,0x80; mov ecx,10; mov esi,0x200000; " + _REP + ".byte 0x6e; mov edi,esi; .byte 0x6c", 4 + 11 + 2),
    "cpuid": Case("xor eax,eax; cpuid", 2),
    "a device's memory": Case(f"mov dword ptr [{IDENTITY + 0xF80}],0xfee0001b; mov dword ptr [0x3e0080],0; mov eax,[0x3e0020]", 3),
    "its own code": Case(f"mov byte ptr [{ENTRY + 0x900}],0x41; nop; nop; call {ENTRY + 0x900}", 4 + 2),
    "user code": Case(TO_USER, _ENTER_USER + _USER_PROLOGUE + 5 + 1, user="pushfd; popfd; str eax; call f; f: int 0x80", handlers={0x80: "nop"}),
    "user code that faults": Case(TO_USER, _ENTER_USER + _USER_PROLOGUE + 1 + 1, user="nop; cli", handlers={13: "nop"}),
    "single steps": Case("push 0x102; popfd; nop; push 2; popfd", 5 + 3 * 3, handlers={1: "inc dword ptr [0x200000]; nop; .byte 0xcf"}),
}  # fmt: skip


def guest_of(case: Case) -> dict[int, bytes]:
    ends = {0x80, 13} & set(case.handlers) if case.user != "nop" else set()
    handlers = {vector: f"{code}; {FINISH}" if vector in ends else code for vector, code in case.handlers.items()}
    parts = small_kernel(f"{case.code}; {FINISH}", user=case.user, handlers=handlers)
    return parts | {ENTRY + 0x800: assemble(f"nop; nop; {FINISH}", ENTRY + 0x800), ENTRY + 0x900: assemble("nop; ret", ENTRY + 0x900)}


@WAYS
@pytest.mark.parametrize("steps", (False, True), ids=("runs", "steps"))
@pytest.mark.parametrize("name", CASES)
def test_counts_done_by_hand(name: str, steps: bool, ring: int, cached: bool) -> None:
    """The number of instructions retired at the end of the guest, which its last instruction, an OUT, has brought about."""
    vm = counted(guest_of(CASES[name]), ring=ring, cached=cached, steps=steps)
    finish(vm)
    assert vm.backend.retired() - _SMALL_KERNEL - 2 == CASES[name].count


@pytest.mark.parametrize("name", CASES)
def test_the_bare_machine_counts_the_same(name: str) -> None:
    """native, where the CPU's own count is the rule, agrees with what was counted by hand."""
    vm = bare(guest_of(CASES[name]))
    finish(vm)
    assert vm.backend.retired() - _SMALL_KERNEL - 2 == CASES[name].count


@WAYS
def test_the_time_stamp_is_that_of_the_instructions_before(ring: int, cached: bool) -> None:
    """RDTSC counts the nanoseconds of the instructions that are done, in the kernel and in user code."""
    note = "rdtsc; mov [{0}],eax; nop; rdtsc; mov [{1}],eax; mov [{2}],edx"
    kernel, user = note.format(*range(LOG, LOG + 12, 4)), note.format(*range(USER + 0x4000, USER + 0x400C, 4))
    vm = counted(small_kernel(f"{kernel}; {TO_USER}", user=f"{user}; int 0x80", handlers={0x80: FINISH}), ring=ring, cached=cached)
    finish(vm)
    first = _SMALL_KERNEL * NANOSECONDS
    assert words(vm, LOG, 3) == [first, first + 3 * NANOSECONDS, 0]
    first += (6 + _ENTER_USER + _USER_PROLOGUE) * NANOSECONDS
    assert words(vm, 0x184000, 3) == [first, first + 3 * NANOSECONDS, 0]


_PIC = "mov al,0x11; out 0x20,al; mov al,0x20; out 0x21,al; mov al,4; out 0x21,al; mov al,1; out 0x21,al; mov al,0xfe; out 0x21,al"
_WORK = """
    mov ebp,20; l: call f; pushfd; cli; mov ecx,9; mov edi,0x200000; cld; .byte 0xf3,0xaa; popfd
    mov ecx,7; mov edi,0x200000; .byte 0xf3,0xab; sti; nop; nop; mov ecx,8; mov edi,0x200000; mov esi,0x200040; .byte 0xf3,0xa6
    in al,0x71; mov eax,cr3; mov cr3,eax; dec ebp; jnz l; jmp e; f: push eax; pop eax; ret; e: nop
"""
_PRIVILEGED = ("cli", "sti", "in al,0x71", "mov cr3,eax", "mov eax,cr3")
_BEFORE = 10 + 1  # _PIC and sti


def _deliveries(vm: Vm) -> list[tuple[int, int, int]]:
    """(instructions retired, EIP, vector's return to) for each external interrupt, filled while the VM runs."""
    noted: list[tuple[int, int, int]] = []
    handle = vm.monitor.handle

    def noting(exit_: Exit) -> Outcome:
        if isinstance(exit_, External):
            noted.append((vm.backend.retired(), vm.vcpu.eip, vm.machine.state[2]))
        return handle(exit_)

    vm.monitor.handle = noting  # type: ignore[method-assign]
    return noted


@pytest.mark.parametrize("user", (False, True), ids=("kernel", "user"))
def test_an_alarm_comes_at_its_instruction(user: bool) -> None:
    """An alarm at each of 120 successive instructions: the interrupt is delivered exactly there if it may be, and what follows is not disturbed.

    By runs of instructions and by steps it is the same place, with the same ECX.
    """
    tick = "push eax; mov al,0x20; out 0x20,al; pop eax; .byte 0xcf"
    work = f"{_WORK}; {FINISH}"
    if user:
        work = _WORK.replace("0x2000", hex(USER + 0x4000)[:-2])
        for instruction in _PRIVILEGED:
            work = work.replace(instruction, "nop")
    guest = small_kernel(f"{_PIC}; sti; {TO_USER if user else work}", user=f"{work}; int 0x80", handlers={0x20: tick, 0x80: FINISH})
    start = _SMALL_KERNEL + _BEFORE + (_ENTER_USER + _USER_PROLOGUE if user else 0)
    late = set()
    totals = set()
    for due in range(start + 2, start + 122):
        seen = []
        for steps in (False, True) if due % 7 == 0 else (False,):
            vm = counted(guest, steps=steps)
            budget = vm.backend.budget
            assert budget is not None
            if steps:
                del budget.run_due
            noted = _deliveries(vm)
            line = vm.board.interrupts.line(0)
            vm.clock.at(due * NANOSECONDS, lambda line=line: (line(False), line(True)))  # type: ignore[misc]
            if steps:
                budget.run_due = lambda budget=budget: (type(budget).run_due(budget), setattr(budget, "creeping", True))  # type: ignore[method-assign,misc]
            finish(vm)
            assert len(noted) == 1
            seen.append(noted[0])
            totals.add(vm.backend.retired())
        assert len(set(seen)) == 1
        if seen[0][0] != due:
            late.add(seen[0][0] - due)
    assert len(totals) == 1
    assert late <= set() if user else late <= set(range(1, 18)), late  # the kernel has IF clear for a while
    assert user or len(late) > 3


def _run(name: str, ring: int, cached: bool) -> tuple[bytes, int, list[tuple[int, int, int]], bytes]:
    guest = kernels()[name]
    console = Recorder()
    options = BtOptions(ring=ring, stubs_in_cache=cached)
    vm = Vm(machine_for(guest.memory_mib), memory_mib=guest.memory_mib, options=options, console=console, icount=True)
    vm.load(str(guest.file), append=guest.command_line)
    noted = _deliveries(vm)
    vm.run(guest.timeout_s * 4)
    return bytes(console.output), vm.backend.retired(), noted, vm.memory.read(0, vm.memory.size)


def test_runs_repeat_exactly() -> None:
    """`rings` twice, and once each in ring 3 and with trapping stubs: the same console and count, interrupts at the same instructions."""
    first = _run("rings", 1, True)
    assert len(first[2]) > 10
    assert b"0 failed" in first[0]
    for ring, cached in ((1, True), (3, True), (1, False)):
        again = _run("rings", ring, cached)
        assert again[:3] == first[:3]


@pytest.mark.parametrize("name", ("faults", "faults-pae", "smc"))
def test_memory_repeats_exactly(name: str) -> None:
    """Memory to the byte, accessed and dirty bits in it."""
    assert _run(name, 1, True) == _run(name, 1, True)


@pytest.mark.parametrize("ring", (1, 3))
@pytest.mark.parametrize("name", [name for name, guest in kernels().items() if guest.disk_bytes is None])
def test_bundled_kernels(name: str, ring: int) -> None:
    """Every bundled kernel says under --icount what it is to say."""
    console, *_ = _run(name, ring, True)
    assert missing_line(console.decode("latin-1"), kernels()[name].console) is None


def test_a_halted_guest_does_not_wait() -> None:
    """Twenty halts of 50 ms each take no host time to speak of, and virtual time is right."""
    pit = "mov al,0x34; out 0x43,al; mov al,0x0d; out 0x40,al; mov al,0xe9; out 0x40,al"  # 59,661 of 1.193182 MHz: 50 ms
    tick = "push eax; mov al,0x20; out 0x20,al; pop eax; .byte 0xcf"
    vm = counted(small_kernel(f"{_PIC}; {pit}; mov ebp,20; l: sti; hlt; dec ebp; jnz l; {FINISH}", handlers={0x20: tick}))
    stop = vm.run(20)
    assert stop.value == 0
    assert 0.95e9 < vm.clock.now() < 1.05e9
    assert vm.stats.seconds < 0.5
    assert vm.backend.retired() == _SMALL_KERNEL + 10 + 6 + 1 + 20 * 4 + 20 * 5 + 2
