"""The bundled kernel `sensitive`: every form of every row of the table, in kernel and in user mode, line by line against QEMU.

Knows the table, and which lines differ for which reason. QEMU is the oracle where it is right; where it is not, the manual is.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from bt.sensitive import TABLE, Class, row_of
from guest_kernels import kernels
from tests.guests.test_bt import qemu_consoles, run
from tests.guests.test_qemu import QEMU
from tests.require import require
from tools.slips import compare, slipped
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions
from vmm.backends.native import NativeOptions
from vmm.backends.step import StepOptions
from vmm.backends.trap import TrapOptions
from vmm.exits import End

SENSITIVE = kernels()["sensitive"]
CODE = 0x8000  # where the kernel puts the instruction of each line
WAYS: dict[str, Options] = {"native": NativeOptions(), "hw": HwOptions(), "step": StepOptions()} | {
    f"{user}-ring{ring}-{stubs}": BtOptions(ring=ring, stubs_in_cache=stubs == "cache", translate_user=user == "translate")
    for user in ("direct", "translate")
    for ring in (1, 3)
    for stubs in ("cache", "trap")
}

# QEMU 7.2 has no performance counters to read, allowed or not; RDPMC names one that does not exist (SDM 2B "RDPMC": #GP). ICEBP it does not have.
QEMU_IS_WRONG = {
    "rdpmc kernel": ("#UD +0", "#GP(0) +0"),
    "icebp kernel": ("#UD +0", "#DB +1"),
    "icebp user": ("#UD +0", "#DB +1"),
}
# docs/QUIRKS.md 9: the CPU tries the store before it asks for the port.
INS_STORES_FIRST = {
    "insb 8 user": "#GP(0) +0 [a030]=00",
    "insb rep8 user": "#GP(0) +0 [a030]=00",
    "ins 32 user": "#GP(0) +0 [a030]=00 [a031]=00 [a032]=00 [a033]=00",
    "ins 16 user": "#GP(0) +0 [a030]=00 [a031]=00",
    "ins rep32 user": "#GP(0) +0 [a030]=00 [a031]=00 [a032]=00 [a033]=00",
    "ins rep16 user": "#GP(0) +0 [a030]=00 [a031]=00",
}
# docs/QUIRKS.md 3: what directly executed user code sees of the deprivileged machine: the VMM's tables (behind 4 GiB, of which SGDT stores the
# lower half), its LDT, no task register, and shadow descriptors that nothing has asked for yet. What SMSW shows of CR0 is the guest's own in all
# that is defined; [a013] of SGDT was 40h before.
_SHADOW_GDT = {1: "01", 3: "03"}  # the third byte of its address, by ring: with ring 3 users have tables of their own
# docs/QUIRKS.md 24: CPUID does not name SYSENTER, which is bit 11 of EDX.
NO_SYSENTER = {f"cpuid {mode}": "+2 eax=0 ecx=0 edx=780a179 ebx=0" for mode in ("kernel", "user")}
# A CPU with long mode refuses SYSENTER_ESP an address that is not canonical (SDM 2B "WRMSR"); qemu-system-i386 has a CPU without.
LONG_MODE = {"wrmsr kernel": "#GP(0) +0"}


def nine_reads(ring: int) -> dict[str, str]:
    """The lines of the nine unprivileged reads in directly executed user code."""
    lines = {}
    for form, size in (("32", 3), ("16", 4)):
        lines[f"sgdt {form} user"] = f"+{size} [a010]=ff [a011]=ff [a012]=00 [a014]={_SHADOW_GDT[ring]} [a015]=00"
        lines[f"sidt {form} user"] = f"+{size} [a010]=00 [a011]=00 [a012]=00 [a013]=00 [a014]=00 [a015]=00"
    for name, shown in (("sldt", 8), ("str", 0)):
        lines[f"{name} r32 user"] = f"+3 ecx={shown:x}"
        lines[f"{name} r16 user"] = f"+4 ecx=c1c2{shown:04x}"
        lines[f"{name} m user"] = f"+3 [a010]={shown:02x} [a011]=00"
    for name in ("lar", "lsl"):
        lines |= {f"{name} {form} user": f"+{size}" for form, size in (("r32", 3), ("r16", 4), ("m32", 3), ("m16", 4))}
    return lines | {f"{name} {form} user": "+3" for name in ("verr", "verw") for form in ("r", "m")}


def expected_differences(options: Options) -> dict[str, str]:
    """Name of each line that is not QEMU's, and what it says instead of that."""
    lines = {name: ours for name, (_, ours) in QEMU_IS_WRONG.items()}
    if isinstance(options, HwOptions):
        return lines | INS_STORES_FIRST | LONG_MODE
    if isinstance(options, NativeOptions):
        return lines | INS_STORES_FIRST
    if isinstance(options, StepOptions):
        return lines
    assert isinstance(options, BtOptions)
    return lines if options.translate_user else lines | INS_STORES_FIRST | NO_SYSENTER | nine_reads(options.ring)


def lines(console: str) -> dict[str, str]:
    """What each line says, by the row, form and mode that it begins with."""
    return dict(line.split(": ", 1) for line in console.replace("\r\n", "\n").splitlines())


def line_names() -> list[str]:
    """A name for each line that there must be: table rows times forms times modes."""
    return [" ".join(filter(None, (row.name, form, mode))) for row in TABLE for form in row.forms.split() or [""] for mode in ("kernel", "user")]


def test_qemu_prints_a_line_for_each_row_form_and_mode() -> None:
    """The guest's table of forms and bt/sensitive.py name the same instructions, each form once in each mode."""
    require(QEMU)
    (console,) = qemu_consoles("sensitive")
    printed = [line.split(": ", 1)[0] for line in console.replace("\r\n", "\n").splitlines()]
    assert Counter(printed) == Counter(line_names())
    assert len(printed) == sum(2 * len(row.forms.split() or [""]) for row in TABLE)


def test_the_table_says_what_traps() -> None:
    """On QEMU an instruction of the table traps in user mode if and only if its row says so; far transfers and jumps go where they lead."""
    require(QEMU)
    (console,) = qemu_consoles("sensitive")
    printed = lines(console)
    for row in TABLE:
        for form in row.forms.split() or [""]:
            name = " ".join(filter(None, (row.name, form, "user")))
            trapped = not printed[name].startswith("+") or row.name == "sysenter"  # which is no exception, but goes to the kernel
            assert trapped == row.traps, f"{name}: {printed[name]}"
            if row.klass is Class.PRIVILEGED:
                assert printed[name].startswith("#GP(0)"), name
            elif row.klass is Class.UNDEFINED:
                assert printed[name] == "#UD +0", name


@pytest.mark.parametrize("how", WAYS)
def test_the_console_is_qemus_but_for_what_is_known(how: str) -> None:
    """All lines are QEMU's to the byte, in its order, except exactly those that are listed, and these say exactly what is listed."""
    require(QEMU)
    (console,) = qemu_consoles("sensitive")
    wanted = lines(console)
    assert {name: wanted[name] for name in QEMU_IS_WRONG} == {name: theirs for name, (theirs, _) in QEMU_IS_WRONG.items()}
    _, printed, _ = run(SENSITIVE, WAYS[how], None)
    got, allowed = lines(printed), expected_differences(WAYS[how])
    assert list(got) == list(wanted)
    assert {name: line for name, line in got.items() if line != wanted[name]} == allowed
    assert len(printed) - sum(len(line) for line in allowed.values()) == len(console) - sum(len(wanted[name]) for name in allowed)


@pytest.mark.parametrize(("cache", "options"), (("kernel", BtOptions()), ("user", BtOptions(translate_user=True))), ids=("kernel", "user"))
def test_every_translation_is_executed(cache: str, options: Options) -> None:
    """Each row's translation, which tests/expect/golden shows, is entered in kernel code and in user code: the lines above are its doing."""
    _, _, vm = run(SENSITIVE, options, None)
    entered = [translation.block for translation in vm.backend.caches[cache].translations if translation.block.entry == CODE]
    first = {(block.instructions[0].opcode, block.instructions[0].modrm) for block in entered if block.instructions}
    undecodable = {"0f 01 /5"}  # for the decoder these bytes are no instruction: their stub is that of any such bytes
    assert {row.name for row in TABLE} - undecodable == {row.name for opcode, modrm in first if (row := row_of(opcode, modrm)) is not None}


SLIPPED = {  # under trap with ring 1: how many lines each instruction is to blame for, besides those that stand under "everywhere"
    "sgdt": 4 + 2,  # its own, and those of LGDT, which traps but is read back by it
    "sidt": 4 + 2,
    "sldt": 6 + 2,
    "str": 6 + 2,
    "pushf": 2,
    "popf": 2,
    "lar": 8,
    "lsl": 8,
    "verr": 4,
    "verw": 4,
    "push cs": 2,
    "mov r/m,cs": 3,
    "push ss": 2,
    "mov r/m,ss": 3 + 6,  # its own, and those of MOV SS, POP SS and LSS, which trap
    "call far": 2,
    "call far m": 2,
    "iret": 2,  # in user mode: the IOPL that POPF had not put back
    "insb": 2,  # docs/QUIRKS.md 9: no slip
    "ins": 4,
}


def test_what_slips_under_trap() -> None:
    """The lesson: deprivileged and untranslated, exactly these lines differ from those of a run that emulates all, for exactly these reasons."""
    _, bare, _ = run(SENSITIVE, StepOptions(), None)
    _, printed, vm = run(SENSITIVE, TrapOptions(), None)
    assert vm.stopped is not None
    assert vm.stopped.why is End.REPORTED
    lesson = compare(printed, bare)
    assert [(what, row.name) for what, row in lesson.everywhere] == [("IF clear", "iret"), ("ss 11", "mov r/m,ss")]
    assert Counter(row.name for slip in lesson.slips for row in slip.to_blame) == SLIPPED
    assert not lesson.missing
    traps = {row.name for slip in lesson.slips for row in slip.to_blame if not slipped(row)}
    assert traps == {"ins", "insb"}


def test_the_lecture_s_ring_lets_more_slip() -> None:
    """With ring 3 an IRET to user mode changes no mode: users run as the kernel, lose IF, and HLT stops for good."""
    _, bare, _ = run(SENSITIVE, StepOptions(), None)
    _, printed, vm = run(SENSITIVE, TrapOptions(ring=3), None)
    assert vm.stopped is not None
    assert (vm.stopped.why, vm.stopped.reason) == (End.DIED, "halted for good: hlt with interrupts disabled")
    lesson = compare(printed, bare)
    assert lesson.missing > 500
    assert {slip.line for slip in lesson.slips} >= {"cli user", "sti user"}


def test_the_lesson_of_the_command() -> None:
    """`vmm run ... --explain` prints the lesson on standard error; another kernel's is what it met, and the lines that differ."""
    command = [sys.executable, "-c", "from tools.cli import main; main()", "run"]
    done = subprocess.run([*command, "sensitive", "--backend", "trap", "--explain"], capture_output=True, text=True, timeout=60, check=False)
    assert "In every line: ss 11. mov r/m,ss shows a selector and its privilege level, and does not trap." in done.stderr
    assert "popf 32 kernel: saw eflags 246; the bare machine shows eflags 3046. popf changes IF and IOPL" in done.stderr
    done = subprocess.run([*command, "lost-if", "--backend", "trap", "--explain"], capture_output=True, text=True, timeout=60, check=False)
    assert "popf changes IF and IOPL, or silently does not, and does not trap." in done.stderr
    assert "only here: FAIL: the clock ticks behind it" in done.stderr
