"""Segments, modes and privilege levels: the same programs under binary translation and on QEMU."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.assembly import ENTRY
from tests.oracle.level_programs import at_levels
from tests.oracle.narrow_programs import in_narrow_code, in_real_mode
from tests.oracle.program import Left, Program, run_here, run_on_qemu
from tests.oracle.segment_programs import segments
from tests.oracle.segmented import ANY, BASE, COMMON, LOG, NARROW_CODE, STACKS, USER, enter, far, finish, log, program
from tests.oracle.snippets import DATA, DEBUG, FROM_NARROW, NARROW_END, TO_NARROW, TRAPPING, S, narrowed, shown
from tests.oracle.step_programs import lazy_fpu, stepping
from tests.require import require
from vmm.backends.step import StepOptions

PROGRAMS: dict[str, Program] = in_narrow_code() | at_levels() | stepping() | lazy_fpu() | segments() | in_real_mode()

_GENERAL_PROTECTION = (0xFFFFFFFF, 13, 0)
# What QEMU does not check and the manual demands: the vector, error code and EIP that are logged.
BY_THE_MANUAL: dict[str, tuple[Program, tuple[int, ...]]] = {
    "a jump beyond the limit": (narrowed(".byte 0x66,0xe9; .long 0x20000"), (*_GENERAL_PROTECTION, 0x100)),
    "running over the limit": (narrowed(".byte 0xe9,0xfc,0xfe", parts={NARROW_CODE + 0xFFFF: b"\x90"}), (*_GENERAL_PROTECTION, 0x10000)),
    "a conforming segment behind a gate keeps the level": (
        program(enter(3), user=f"push 1; push 2; {far('call', S['gate_conforming'], 0)}", inner=shown(4, "ud2")),
        (S["conforming0"] | 3, 0x23, 0, 0, 0, 0, STACKS[3] - 0x10, USER + 0xB, 0x1B, 2, 1),
    ),
    "a trap behind lss": (
        program(f"push 0x10; push esp; {TRAPPING} .byte 0x0f,0xb2,0x24,0x24; ud2"),
        (0xFFFFFFFF, 1, 0xE0E0, ENTRY + 0x61, 8, 0x102, 0x10, 0x10, 0x10, 0x10, 0x80000011, 0, 0xFFFFFFFF, 6, 0xE0E0, ENTRY + 0x61),
    ),
    "no access to debug registers with DR7.GD": (
        program(f"mov eax,0x2400; mov dr7,eax; nop; mov ecx,dr6; nop; mov edx,dr7; {DEBUG} {log('edx')}; {finish()}"),
        (0xFFFFFFFF, 1, 0xE0E0, ENTRY + 0x5D, 8, 0x86, 0x10, 0x10, 0x10, 0x10, 0x2400, 0, 0xFFFF2FF0, 0x400),
    ),
    "a store through a 16-bit cs": (narrowed("mov word ptr cs:[0x200],1"), (*_GENERAL_PROTECTION, 0x100)),
    "a store through a flat cs": (program(far("jmp", 8, ANY), parts={ANY: "mov dword ptr cs:[0x180000],1"}), (*_GENERAL_PROTECTION, ANY)),
    "a store through a based cs": (
        program(far("jmp", S["based_code"], ANY - BASE), parts={ANY: "add cs:[0x200],eax"}),
        (*_GENERAL_PROTECTION, ANY - BASE),
    ),
    "a selector stored through cs": (program(far("jmp", 8, ANY), parts={ANY: ".byte 0x2e,0x8c,0x0d; .long 0x180000"}), (*_GENERAL_PROTECTION, ANY)),
    "a table stored through cs": (program(far("jmp", 8, ANY), parts={ANY: ".byte 0x2e,0x0f,0x01,0x05; .long 0x180000"}), (*_GENERAL_PROTECTION, ANY)),
    "an x87 store through cs": (program(far("jmp", 8, ANY), parts={ANY: ".byte 0x2e,0xdd,0x1d; .long 0x180000"}), (*_GENERAL_PROTECTION, ANY)),
}

_TICKS = LOG + 0x300
_TIMER = "mov al,0x11; out 0x20,al; mov al,0x40; out 0x21,al; mov al,4; out 0x21,al; mov al,1; out 0x21,al; mov al,0xfe; out 0x21,al; "
_TIMER += "mov al,0x34; out 0x43,al; mov al,0; out 0x40,al; mov al,8; out 0x40,al"
_TICK = f"push eax; .byte 0x1e; mov eax,0x10; mov ds,eax; inc dword ptr [{_TICKS:#x}]; mov al,0x20; out 0x20,al; .byte 0x1f; pop eax; .byte 0xcf"
_UNTIL = f"mov edi,{_TICKS:#x}; xor ecx,ecx; l: inc ecx; mov eax,[edi]; cmp eax,5; jb l"
INTERRUPTED = {
    "16-bit code": program(f"{_TIMER}; {TO_NARROW}", narrow=f"sti; {_UNTIL}; cli; {FROM_NARROW}", inner=_TICK, parts=NARROW_END),
    "16-bit code that halts": program(
        f"{_TIMER}; {TO_NARROW}",
        narrow=f"mov edi,{_TICKS:#x}; l: sti; hlt; mov eax,[edi]; cmp eax,5; jb l; cli; {FROM_NARROW}",
        inner=_TICK,
        parts=NARROW_END,
    ),
    "a string instruction in 16-bit code": program(
        f"{_TIMER}; {TO_NARROW}",
        narrow=f"sti; mov edi,{_TICKS:#x}; l: xor si,si; mov cx,0xfff0; rep lodsb; mov eax,[edi]; cmp eax,5; jb l; cli; {FROM_NARROW}",
        inner=_TICK,
        parts=NARROW_END,
    ),
    **{f"level {level}": program(f"{_TIMER}; {enter(level, flags=0x202)}", user=f"{DATA} {_UNTIL}; ud2", inner=_TICK) for level in (1, 2, 3)},
    "single-stepped code": program(
        f"{_TIMER}; push 0x302; popfd; {_UNTIL.replace('5', '1')}; push 2; popfd; {finish()}",
        inner=_TICK,
        parts={COMMON + 0x800: "add esp,8; .byte 0xcf"},
    ),
}

CONFIGURATIONS = [
    {"ring": 1},
    {"ring": 3},
    {"ring": 1, "stubs_in_cache": False},
    {"ring": 1, "translate_user": True},
    {"ring": 3, "translate_user": True},
]
GROUPS = sorted({name.partition(":")[0] for name in PROGRAMS})
configured = pytest.mark.parametrize("options", CONFIGURATIONS, ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()))


@cache
def on_qemu() -> dict[str, Left | None]:
    """What QEMU leaves of each program, all in one boot."""
    return dict(zip(PROGRAMS, run_on_qemu(require("qemu-system-i386"), list(PROGRAMS.values())), strict=True))


def _differs(here: Left, expected: Left | None) -> str:
    if expected is None:
        return "QEMU does not get to the end"
    logs = [[f"{word:x}" for word in left.words()[4 : (left.words()[0] - LOG) // 4]] for left in (here, expected)]
    return "" if here == expected else f"log {logs[0]} instead of {logs[1]}; {here.registers} instead of {expected.registers}"


@configured
@pytest.mark.parametrize("group", GROUPS)
def test_equals_qemu(group: str, options: dict[str, Any]) -> None:
    """Registers, and the log of values and exceptions, are those that QEMU leaves."""
    found = {name: _differs(run_here(case, **options), on_qemu()[name]) for name, case in PROGRAMS.items() if name.startswith(f"{group}:")}
    assert not [f"{name}: {difference}" for name, difference in found.items() if difference]


@configured
@pytest.mark.parametrize("name", BY_THE_MANUAL)
def test_is_as_the_manual_says(name: str, options: dict[str, Any]) -> None:
    """Where QEMU checks less than hardware: the exception, its error code and its EIP, or what is logged first."""
    case, logged = BY_THE_MANUAL[name]
    assert [hex(n) for n in run_here(case, **options).words()[4 : 4 + len(logged)]] == [hex(n) for n in logged]


@pytest.mark.parametrize("group", ("16-bit", "TF", "real"))
def test_stepping_equals_translation(group: str) -> None:
    """The step back-end, whose emulator is the same but which runs the rest in place, leaves the same memory."""
    for name, case in PROGRAMS.items():
        if name.startswith(f"{group}:"):
            assert run_here(case, options=StepOptions()) == run_here(case), name


@configured
@pytest.mark.parametrize("name", INTERRUPTED)
def test_is_interrupted(name: str, options: dict[str, Any]) -> None:
    """Timer interrupts arrive in code that is translated with care, at instruction boundaries: it goes on as if there had been none."""
    left = run_here(INTERRUPTED[name], timeless=False, **options)
    assert left.words()[(_TICKS - LOG) // 4] >= 5 or name.startswith("single")
