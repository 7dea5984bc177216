"""--icount where instructions have boundaries inside: interrupts come between the same two iterations, and before the same end, everywhere.

The bare machine says where; guest mode, stepping and binary translation, in both rings and with both kinds of stub, must agree.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.machine.flat import FINISH, finish, words
from tests.machine.small_kernel import LOG, small_kernel
from tests.machine.test_icount import LAPIC_PAGE, TIMER, counting_vm
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions
from vmm.backends.native import NativeOptions
from vmm.backends.step import StepOptions
from vmm.exits import Exit, External, Outcome
from vmm.icount import NANOSECONDS

WAYS: dict[str, Options] = {
    "step": StepOptions(),
    "ring1": BtOptions(),
    "ring3": BtOptions(ring=3),
    "stubs": BtOptions(stubs_in_cache=False),
    "hw": HwOptions(),
    "hw-shadow": HwOptions(mmu="shadow"),
}
SHORT = ("hw", "hw-shadow")  # which count as the bare machine does, also where that is one less than the rule has it
_REP = ".byte 0xf3,"
_PIC = "mov al,0x11; out 0x20,al; mov al,0x20; out 0x21,al; mov al,4; out 0x21,al; mov al,1; out 0x21,al; mov al,0xfe; out 0x21,al"
_TICK = "push eax; mov al,0x20; out 0x20,al; pop eax; .byte 0xcf"
_FIRST = 16 + 10 + 1  # instructions before a body begins: small_kernel's, _PIC, sti
_RAM, _DEVICE = LOG + 64, LAPIC_PAGE + 0x80
_MASKED = f"cli; mov al,0xff; out 0x21,al; mov esi,{_RAM}; mov dword ptr [esi],0xfefefefe; mov edx,0x21; sti; nop"

STRINGS = {
    "stos": f"mov ecx,3; mov edi,{_RAM}; {_REP}0xaa",
    "stos of nothing": f"mov ecx,0; mov edi,{_RAM}; {_REP}0xaa",
    "stos by cx": f"mov ecx,0x30002; mov edi,{_RAM}; .byte 0x67; {_REP}0xaa",
    "stos to a device": f"mov ecx,3; mov edi,{_DEVICE}; {_REP}0xab",
    "movs from a device": f"mov ecx,3; mov esi,{_DEVICE}; mov edi,{_RAM}; {_REP}0xa5",
    "outs": f"mov ecx,3; mov edx,0x80; mov esi,{_RAM}; {_REP}0x6e",
    "ins to a device": f"mov ecx,3; mov edx,0x71; mov edi,{_DEVICE}; {_REP}0x6d",
    "cmps that are equal": f"mov ecx,3; mov esi,{_RAM}; mov edi,{_RAM + 32}; {_REP}0xa6",
    "cmps that differ at last": f"mov byte ptr [{_RAM + 1}],1; mov ecx,2; mov esi,{_RAM}; mov edi,{_RAM + 32}; {_REP}0xa6",
    "scas": f"mov ecx,3; mov edi,{_RAM}; xor eax,eax; .byte 0xf2,0xae",
}


def noted(parts: Mapping[int, bytes], options: Options, due: int | None = None) -> tuple[list[tuple[int, int, int]], int, list[int]]:
    """Each interrupt's count, EIP and ECX, the count at the end, and what the guest logged. due: when ISA line 0 rises."""
    vm = counting_vm(dict(parts), options)
    interrupts: list[tuple[int, int, int]] = []
    handle = vm.monitor.handle

    def note(exit_: Exit) -> Outcome:
        if isinstance(exit_, External):
            interrupts.append((vm.backend.retired(), vm.vcpu.eip, vm.vcpu.register(1)))
        return handle(exit_)

    vm.monitor.handle = note  # type: ignore[method-assign]
    line = vm.board.interrupts.line(0)
    if due is not None:
        vm.clock.at(due * NANOSECONDS, lambda: (line(False), line(True)))  # type: ignore[func-returns-value]
    assert finish(vm) == 0
    return interrupts, vm.backend.retired(), words(vm, LOG, 3)


@pytest.mark.parametrize("name", STRINGS)
def test_an_alarm_within_a_repeated_instruction(name: str) -> None:
    """Due at each instruction and each iteration in turn, the one between the last iteration and the end among them."""
    parts = small_kernel(f"{_PIC}; sti; {STRINGS[name]}; nop; nop; nop; nop; nop; {FINISH}", handlers={0x20: _TICK})
    places = set()
    for due in range(_FIRST + 1, _FIRST + 10):
        expected = noted(parts, NativeOptions(), due)
        for way, options in WAYS.items():
            assert noted(parts, options, due) == expected, (way, due)
        assert [count for count, _, _ in expected[0]] == [due]
        places.add(expected[0][0][1:])
    assert len(places) == 9


@pytest.mark.parametrize("count", (1, 3))
def test_a_port_access_of_a_repeated_instruction_that_brings_an_interrupt_about(count: int) -> None:
    """REP OUTS unmasks the line that waits: the interrupt comes behind that iteration, and before the others."""
    parts = small_kernel(f"{_PIC}; sti; {_MASKED}; mov ecx,{count}; {_REP}0x6e; nop; {FINISH}", handlers={0x20: _TICK})
    expected = noted(parts, NativeOptions(), _FIRST + 4)
    assert [ecx for _, _, ecx in expected[0]] == [count - 1]
    for way, options in WAYS.items():
        assert noted(parts, options, _FIRST + 4) == expected, way


def test_a_repeated_instruction_in_the_shadow_of_sti() -> None:
    """The shadow lasts to the end of the instruction. The CPU itself counts one less there (quirk 14)."""
    parts = small_kernel(f"{_PIC}; sti; cli; mov ecx,3; mov edi,{_RAM}; sti; {_REP}0xaa; nop; {FINISH}", handlers={0x20: _TICK})
    for due in range(_FIRST + 2, _FIRST + 6):
        (((count, *place),), total, _) = noted(parts, NativeOptions(), due)
        assert place[1] == 0
        for way, options in WAYS.items():
            more = way not in SHORT
            assert noted(parts, options, due)[:2] == ([(count + more, *place)], total + more), way


@pytest.mark.parametrize(
    ("start", "lateness"),
    (
        ("cli; nop; nop; sti", [4, 3, 2, 1, 0]),
        ("mov ebx,ss; nop; nop; mov ss,ebx", [0, 0, 0, 1, 0]),
        ("mov ebx,ss; nop; push ebx; pop ss", [0, 0, 0, 1, 0]),
    ),
)
def test_an_alarm_in_a_shadow(start: str, lateness: list[int]) -> None:
    """Behind STI and loads of SS the interrupt waits for one instruction more, wherever a run of instructions ends."""
    parts = small_kernel(f"{_PIC}; sti; {start}; inc ecx; inc ecx; nop; nop; {FINISH}", handlers={0x20: _TICK})
    late = []
    for due in range(_FIRST + 1, _FIRST + 6):
        expected = noted(parts, NativeOptions(), due)
        for way, options in WAYS.items():
            assert noted(parts, options, due) == expected, (way, due)
        late.append(expected[0][0][0] - due)
    assert late == lateness


_ARM = f"mov dword ptr [{LAPIC_PAGE + 0x3E0}],0xb; mov dword ptr [{LAPIC_PAGE + 0x320}],{TIMER}; xor ecx,ecx; sti; nop"
_COUNT = LAPIC_PAGE + 0x380
_LOOP = "l: inc ecx; jmp l"


@pytest.mark.parametrize("after", (1, 2, 3, 10, 1000))
@pytest.mark.parametrize(
    "start",
    (
        f"mov dword ptr [{_COUNT}],{{0}}",
        f"mov eax,{{0}}; xchg eax,[{_COUNT}]",
        f"push {{0}}; pop dword ptr [{_COUNT}]; mov eax,[{_COUNT + 0x10}]; rdtsc",
        f"mov dword ptr [{_RAM}],{{0}}; mov esi,{_RAM}; mov edi,{_COUNT}; mov ecx,1; {_REP}0xa5",
        f"mov dword ptr [{_RAM + 4}],{{0}}; mov esi,{_RAM}; mov edi,{_COUNT - 4}; mov ecx,4; {_REP}0xa5",
    ),
    ids=("mov", "xchg", "pop", "movs", "movs of several"),
)
def test_a_timer_that_a_store_starts(start: str, after: int) -> None:
    """The device sees the time before the instruction that starts it, whoever carries that out."""
    body = f"{_ARM}; {start.format(NANOSECONDS * after)}; {_LOOP}"
    parts = small_kernel(body, handlers={TIMER: f"mov [{LOG}],ecx; pop dword ptr [{LOG + 4}]; mov [{LOG + 8}],eax; {FINISH}"})
    expected = noted(parts, NativeOptions())
    assert len(expected[0]) == 1
    for way, options in WAYS.items():
        assert noted(parts, options) == expected, way


@pytest.mark.parametrize("way", ("native", *WAYS))
def test_the_time_stamp_as_an_msr(way: str) -> None:
    """RDMSR 10h reads what RDTSC would."""
    code = f"rdtsc; mov ebp,eax; mov ecx,0x10; rdmsr; sub eax,ebp; mov [{LOG}],eax; mov [{LOG + 4}],edx; {FINISH}"
    assert noted(small_kernel(code), {"native": NativeOptions(), **WAYS}[way])[2][:2] == [3 * NANOSECONDS, 0]
