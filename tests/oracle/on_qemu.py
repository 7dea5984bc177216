"""Generated programs on QEMU, many for each boot, against what the bare machine made of them: an oracle that shares no code with us.

Knows what QEMU's CPU and ours are known to do differently, and compares nothing of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from tests.oracle.generated import Generated
from tests.oracle.guest import (
    DATA,
    GDT,
    LOG,
    MEMORY_MIB,
    MOST_EVENTS,
    RECORD,
    RECORD_FIELDS,
    REPORT,
    TABLES,
    TEST_PAGES,
    USER_BYTES,
    USER_PAGES,
    WORDS,
)
from tests.oracle.harness import on_bare_machine
from tests.oracle.outcome import Outcome, differences
from tests.oracle.program import DONE, Program, run_on_qemu
from vmm.exits import End

_WATCHED: Final = (
    (GDT, 0x4000),  # with the IDT, the LDT and the TSS
    (WORDS, 0x1000),
    (DATA, 0x2000),
    (LOG, RECORD.size * MOST_EVENTS),
    (REPORT, 0x1000),
    (USER_PAGES + USER_BYTES, 0x2000),
    (TEST_PAGES, 0x8000),
    (TABLES, 0x5000),
    (TABLES + 0x10000, 0x7000),
)
_ERROR, _EFLAGS = (4 * RECORD_FIELDS.index(name) for name in ("error", "eflags"))
_SELECTOR_ERRORS: Final = (10, 11, 12, 13)
_OTHERWISE: Final = (  # texts of steps that end otherwise on QEMU 7.2, and why
    ".byte 0xf1",  # ICEBP is reported at itself, and asks for a gate that users may use
    "0xf1;",
    "cli; sti;",  # no single-step trap behind STI
    "mov esp,0; push",
    "mov esp,2;",  # at the end of the 4 GiB a PC has its ROM
    "popfd; cpuid",  # it is another CPU
    "rdmsr",  # unknown MSRs read 0
    "mov eax,0x20000011; mov cr0",  # NW without CD is allowed
    "xor eax,536870912; mov cr0",
    "mov eax,0x80000000; mov cr0",  # PG without PE as well
    "mov cr4,edx",  # and so are reserved bits
)
_DONE_ENTRIES: Final = ((TABLES + 0x1000 + 4 * (DONE >> 12), 4), (TABLES + 0x13000 + 8 * ((DONE >> 12) - 512), 8))  # of a page used on QEMU only


def disagreements_with_qemu(qemu: str, programs: Iterable[Generated], most: int) -> tuple[int, list[str]]:
    """Runs the first `most` programs that can be compared on QEMU: how many of them came to their end there, and what differs from
    the bare machine, as text."""
    ending = list(islice(filter(_comparable_at_all, programs), most))
    compared, found = 0, []
    for program, memory in zip(ending, _left_on_qemu(qemu, ending), strict=True):
        compared += memory is not None
        differing = _differences(program, memory)
        if differing:
            found.append("\n".join(["native / QEMU:", *differing, program.text(), program.to_json()]))
    return compared, found


def _left_on_qemu(qemu: str, programs: Sequence[Generated]) -> list[bytes | None]:
    """The memory that programs leave on QEMU, as far as it is watched; None for one that did not come to its end."""
    memories: list[bytes | None] = []
    for left in run_on_qemu(qemu, [Program(program.parts(ending=f"jmp {DONE}"), _WATCHED) for program in programs]):
        memory = bytearray(MEMORY_MIB << 20)
        for (at, size), part in zip(_WATCHED, left.memory if left else (), strict=left is not None):
            memory[at : at + size] = part
        memories.append(bytes(memory) if left else None)
    return memories


def _differences(program: Generated, memory: bytes | None) -> list[str]:
    if memory is None:
        return []
    return differences(_comparable(on_bare_machine(program).memory), _comparable(memory), program.paging)


def _comparable_at_all(program: Generated) -> bool:
    names = {name for name, _ in program.steps}
    if program.timer or "table_row" in names:  # its time is another; odd encodings depend on the CPU model: the kernel `sensitive` has the others
        return False
    here, texts = on_bare_machine(program), [f"{step.kernel}; {step.user};" for step in program.built()]
    return here.end is End.REPORTED and not here.cut_off and not any(otherwise in text for text in texts for otherwise in _OTHERWISE)


def _comparable(memory: bytes) -> Outcome:
    """What is watched of an outcome's memory, without what QEMU does otherwise than the manual."""
    kept = bytearray(len(memory))
    for at, size in _WATCHED:
        kept[at : at + size] = memory[at : at + size]
    for at in range(LOG, LOG + RECORD.size * MOST_EVENTS, RECORD.size):
        vector = kept[at]
        kept[at + _EFLAGS + 2] &= ~1  # RF: SDM 3B 17.3.1.1 "Instruction-Breakpoint Exception Condition": QEMU sets it in no frame
        if vector == 14 and kept[at + _ERROR] & 8:
            kept[at + _ERROR] &= ~1  # P with RSVD: QEMU leaves it clear
        if vector in _SELECTOR_ERRORS:
            kept[at + _ERROR] &= ~1  # EXT: QEMU does not set it for an exception on the way to a handler
    for entry, width in _DONE_ENTRIES:
        kept[entry : entry + width] = bytes(width)
    return Outcome(End.REPORTED, "", bytes(kept), (), 0, 0, protected=True)
