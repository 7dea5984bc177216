"""What a generated guest left behind, and how two such outcomes differ.

Knows the guest's memory map. Accessed bits are left out: a CPU may set them early (SDM 3A 4.8 "Accessed and Dirty Flags"); dirty bits are not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from tests.machine.flat import flat_vm
from tests.oracle.generated import Generated
from tests.oracle.guest import EVENTS, LOG, MEMORY_MIB, MOST_EVENTS, PAGINGS, RECORD, RECORD_FIELDS, TABLES, Paging
from vmm.backends import Options
from vmm.exits import End
from vmm.x86.bits import Cr0

_ACCESSED: Final = 0x20
_SECONDS: Final = 3  # of CPU time: a program takes a tenth
_PLACES: Final = {  # first address: what lies there
    0: "low memory", 0x110000: "handlers", 0x120000: "GDT", 0x121000: "IDT", 0x122000: "LDT", 0x123000: "TSS", 0x124000: "words", 0x130000: "program",
    0x140000: "data", 0x150000: "stack", 0x160000: "log", 0x170000: "report", 0x180000: "user", 0x1A0000: "test pages", TABLES: "page tables",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """end: how the run ended. memory: all of it at the end. general: EAX to EDI by their encoding; eip, flags: where and how it stood.
    protected: it was in protected mode."""

    end: End
    reason: str
    memory: bytes
    general: tuple[int, ...]
    eip: int
    flags: int
    protected: bool

    @property
    def cut_off(self) -> bool:
        """Whether so much happened that the log was full."""
        return int.from_bytes(self.memory[EVENTS : EVENTS + 4], "little") >= MOST_EVENTS

    @property
    def events(self) -> list[dict[str, int]]:
        """The log: a record of each event, in order."""
        count = min(int.from_bytes(self.memory[EVENTS : EVENTS + 4], "little"), MOST_EVENTS)
        return [dict(zip(RECORD_FIELDS, RECORD.unpack_from(self.memory, LOG + RECORD.size * n), strict=True)) for n in range(count)]


def run_on(program: Generated, options: Options) -> Outcome:
    """Runs a program under a back-end of ours; what it left behind."""
    vm = flat_vm(program.parts(), options=options, timeless=not program.timer, icount=program.timer)
    stop, end = vm.run(_SECONDS), time.process_time() + _SECONDS
    while stop.why is End.TIMEOUT and not vm.vcpu.halted and time.process_time() < end:  # a busy machine gave it little of its time
        vm.stopped = None
        stop = vm.run(_SECONDS)
    vcpu = vm.vcpu
    memory, general = vm.memory.read(0, MEMORY_MIB << 20), tuple(vcpu.register(n) for n in range(8))
    return Outcome(stop.why, stop.reason, memory, general, vcpu.eip, vcpu.flags(), bool(vcpu.cr0 & Cr0.PE))


def differences(one: Outcome, other: Outcome, paging: str, most: int = 12) -> list[str]:
    """Where two outcomes differ, the first events first; none when they agree."""
    found: list[str] = []
    if one.end is not other.end:
        found.append(f"end: {one.reason} / {other.reason}")
    for number, (left, right) in enumerate(zip(one.events, other.events, strict=False)):
        if left != right:
            fields = ", ".join(f"{name} {left[name]:#x}/{right[name]:#x}" for name in left if left[name] != right[name])
            found.append(f"event {number} (vector {left['vector']}/{right['vector']} at {left['eip']:#x}/{right['eip']:#x}): {fields}")
            break
    else:
        if len(one.events) != len(other.events):
            found.append(f"{len(one.events)} / {len(other.events)} events")
    mask = PAGINGS[paging]
    for at in range(0, len(one.memory), 4096):
        if one.memory[at : at + 4096] != other.memory[at : at + 4096]:
            found += _words(one.memory, other.memory, at, mask)
    if not found:
        for name, left, right in (("registers", one.general, other.general), ("EIP", one.eip, other.eip), ("EFLAGS", one.flags, other.flags)):
            if left != right:
                found.append(f"{name}: {_text(left)} / {_text(right)}")
    return found[:most]


def _words(one: bytes, other: bytes, page: int, paging: Paging) -> list[str]:
    """The words of a page that differ."""
    found = []
    for at in range(page, page + 4096, 4):
        left, right = (int.from_bytes(image[at : at + 4], "little") for image in (one, other))
        entry = TABLES <= at < TABLES + 0x20000 and at % paging.width == 0
        if left != right and not (entry and left | _ACCESSED == right | _ACCESSED):
            name = _PLACES[max(start for start in _PLACES if start <= at)]
            found.append(f"{at:#x} ({name}): {left:#x} / {right:#x}")
    return found


def _text(value: int | tuple[int, ...]) -> str:
    return f"{value:#x}" if isinstance(value, int) else " ".join(f"{part:x}" for part in value)
