"""What there is to say about a VM that has stopped: the JSON record, the tables of `--stats`, and the report of a guest's death.

Knows where counters and state stand. Reads only; runs nothing. The keys of the JSON record are documented in docs/JSON.md and stay
as they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TextIO

from bt.block import Translation
from bt.census import census
from tools.screen import plain
from tools.session import Ended
from vmm.call_stack import backtrace
from vmm.cpu_state import Cpu
from vmm.errors import InputError
from vmm.exits import Stop
from vmm.machine import MIB

if TYPE_CHECKING:
    from rich.table import Table

    from vmm.vcpu import Vcpu
    from vmm.vm import Vm

_GENERAL = ("EAX", "EBX", "ECX", "EDX", "ESI", "EDI", "EBP", "ESP")
_NUMBERS = {"EAX": 0, "ECX": 1, "EDX": 2, "EBX": 3, "ESP": 4, "EBP": 5, "ESI": 6, "EDI": 7}
_SEGMENTS = (("ES", Cpu.ES), ("DS", Cpu.DS), ("FS", Cpu.FS), ("GS", Cpu.GS))
_FLAGS = ((0, "CF"), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (8, "TF"), (9, "IF"), (10, "DF"), (11, "OF"), (14, "NT"), (17, "VM"))
_LAST_BLOCKS = 8


# -- the record ----------------------------------------------------------------------------------------------------------------------


def record(ended: Ended, kernel: str, status: int) -> dict[str, object]:
    """Everything counted in a run, as docs/JSON.md says; the counters are those of the last start of the machine."""
    vm, stop = ended.vm, ended.stop
    stats, caches = vm.stats, vm.backend.caches.values()
    return {
        "kernel": kernel,
        "backend": vm.options.backend,
        "ring": vm.backend.ring,
        "user": "translate" if getattr(vm.options, "translate_user", False) else "direct",
        "status": status,
        "end": stop.why.value,
        "reason": stop.reason,
        "value": stop.value,
        "restarts": ended.restarts,
        "seconds": round(stats.seconds, 6),
        "cpu_seconds": round(stats.cpu_seconds, 6),
        "exits": {"architectural": dict(stats.architectural), "engine": dict(stats.engine)},
        "callouts": dict(stats.callouts),
        "injected": {str(vector): count for vector, count in sorted(stats.injected.items())},
        "blocks": sum(cache.blocks for cache in caches),
        "instructions": sum(cache.instructions for cache in caches),
        "cache_bytes": cache_bytes(vm),
        "invalidated": sum(cache.invalidated for cache in caches),
        "revived": sum(cache.revived for cache in caches),
        "flushes": sum(cache.flushes for cache in caches),
        "translated": census(translations(vm)).as_dict(),
        "audit": {"checked": stats.audited, "outside": stats.outside},
        "hypercalls": dict(stats.hypercalls),
        "refused": dict(stats.refused),
        "events": events(vm),
        "memory_mib": vm.memory.size // MIB,
        "fills": vm.mmu.fills,
        "retired": vm.icount.total() if vm.icount else None,
    }


def events(vm: Vm) -> dict[str, int]:
    """Events of a paravirtual guest: those that it sent, and those that it got."""
    channels = vm.domain.channels if vm.domain else None
    return {"sent": channels.sent if channels else 0, "raised": channels.raised if channels else 0}


def cache_bytes(vm: Vm) -> int:
    """Bytes of translated code in the caches now."""
    return sum(len(translation.code) for translation in translations(vm))


def translations(vm: Vm) -> Iterator[Translation]:
    """Everything in the caches now."""
    return (translation for cache in vm.backend.caches.values() for translation in cache.translations)


def write_record(path: str, values: Mapping[str, object]) -> None:
    """Writes the record to `path`. Raises InputError when it cannot be written."""
    write_file(path, lambda file: file.write(json.dumps(values, indent=2) + "\n"))


def write_file(path: str, write: Callable[[TextIO], object]) -> None:
    """Lets `write` fill the file `path`, which is replaced whole. Raises InputError when it cannot be written."""
    try:
        if os.path.lexists(path) and not os.path.isfile(path):  # a device or a pipe
            with open(path, "w", encoding="utf-8") as file:
                write(file)
            return
        beside = f"{path}.{os.getpid()}"
        with open(beside, "w", encoding="utf-8") as file:
            write(file)
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from None


# -- the tables ----------------------------------------------------------------------------------------------------------------------


def show_statistics(ended: Ended, seconds: Mapping[str, float]) -> None:
    """Prints the tables of `--stats` on standard error. seconds: the time spent in exits, by reason (tools/timing.py)."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    vm = ended.vm
    stats = vm.stats
    console = Console(stderr=True, highlight=False)
    exits = Table(box=SIMPLE_HEAD)
    for heading in ("exits", "reason"):
        exits.add_column(heading)
    for heading in ("count", "ms", "µs each"):
        exits.add_column(heading, justify="right")
    for kind, counter in (("architectural", stats.architectural), ("engine", stats.engine)):
        for reason, count in counter.most_common():
            time = seconds.get(reason, 0.0)
            exits.add_row(kind, reason, f"{count:,}", f"{time * 1e3:.1f}", f"{time / count * 1e6:.1f}")
        total = sum(seconds.get(reason, 0.0) for reason in counter)
        exits.add_row(kind, "all", f"{counter.total():,}", f"{total * 1e3:.1f}", "", style="bold", end_section=True)
    console.print(exits)
    vectors = {f"{vector} ({vector:#04x})": count for vector, count in stats.injected.items()}
    for title, counts in (
        ("callouts by instruction", stats.callouts),
        ("injected events by vector", vectors),
        ("hypercalls by name", stats.hypercalls),
        ("hypercalls refused", stats.refused),
    ):
        if counts:
            console.print(_counts(Table(box=SIMPLE_HEAD), title, counts))
    facts = Table(box=SIMPLE_HEAD)
    facts.add_column("run")
    facts.add_column("", justify="right")
    for name, value in (
        ("time", f"{stats.seconds:.3f} s"),
        ("CPU time", f"{stats.cpu_seconds:.3f} s"),
        *_translated(vm),
        *_memory(vm),
        ("restarts", f"{ended.restarts:,}"),
    ):
        facts.add_row(name, value)
    console.print(facts)
    screen = plain(vm.board.vga.text())
    if screen:
        console.print("VGA text screen:")
        console.print(screen, markup=False, end="")


def _memory(vm: Vm) -> list[tuple[str, str]]:
    """What memory took: shadow entries, or a paravirtual guest's own entries and events."""
    if vm.domain is None:
        return [("shadow fills", f"{vm.mmu.fills:,}")]
    counted = events(vm)
    return [("page-table entries validated", f"{vm.mmu.fills:,}"), ("events sent, raised", f"{counted['sent']:,}, {counted['raised']:,}")]


def _translated(vm: Vm) -> list[tuple[str, str]]:
    """What was translated: nothing where the back-end translates nothing."""
    caches = vm.backend.caches.values()
    if not caches:
        return []
    blocks, instructions, flushes = (sum(getattr(cache, name) for cache in caches) for name in ("blocks", "instructions", "flushes"))
    invalidated, revived = (sum(getattr(cache, name) for cache in caches) for name in ("invalidated", "revived"))
    now = census(translations(vm))
    return [
        ("blocks translated", f"{blocks:,}"),
        ("instructions in them", f"{instructions:,}"),
        ("bytes in the cache", f"{cache_bytes(vm):,}"),
        ("blocks in it now", f"{now.blocks:,}"),
        ("identity share of their instructions", f"{now.identity_share:.1%}"),
        ("in-cache emulations, callouts in them", f"{now.in_cache:,}, {now.callouts:,}"),
        ("growth: bytes for a byte of the guest's", f"{now.growth:.2f}"),
        ("blocks invalidated, revived", f"{invalidated:,}, {revived:,}"),
        ("cache flushes", f"{flushes:,}"),
        ("EIP audited, outside the cache", f"{vm.stats.audited:,}, {vm.stats.outside:,}"),
    ]


def _counts(table: Table, title: str, counts: Mapping[str, int]) -> Table:
    table.add_column(title)
    table.add_column("count", justify="right")
    for name, count in sorted(counts.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{count:,}")
    return table


# -- the death of a guest --------------------------------------------------------------------------------------------------------------


def death_report(vm: Vm, stop: Stop) -> str:
    """Why the guest is dead and what it was doing: registers, back-trace, last exits and blocks, as lines of text."""
    parts = [f"{stop.why.value}: {stop.reason}", registers(vm), "back-trace:", trace(vm)]
    if vm.stats.last:
        parts += ["last exits, latest last:", *(f"  {eip:08x} {place(vm, eip):<28} {name}" for name, eip in vm.stats.last)]
    made = [translation for cache in vm.backend.caches.values() for translation in cache.translations]
    blocks = [translation for translation in made if translation.block.instructions][-_LAST_BLOCKS:]
    if blocks:
        parts.append("last blocks translated, latest last:")
        for translation in blocks:
            block = translation.block
            parts.append(f"  {block.entry:08x} {place(vm, block.entry):<28} {len(block.instructions)} instructions")
    return "\n".join(parts) + "\n"


def place(vm: Vm, eip: int) -> str:
    """The symbol of an address, or nothing."""
    name = vm.start.symbols.name(eip) if vm.start else ""
    return "" if name.startswith("0x") else name


def whereabouts(vm: Vm) -> str:
    """One phrase: where the guest is."""
    vcpu = vm.vcpu
    return " ".join(filter(None, ("halted" if vcpu.halted else "", f"at {vcpu.cs.selector:04x}:{vcpu.eip:08x}", place(vm, vcpu.eip))))


def registers(vm: Vm) -> str:
    """The state of the virtual CPU as the guest knows it, in QEMU's order."""
    vcpu = vm.vcpu
    flags = vcpu.flags()
    names = " ".join(name for bit, name in _FLAGS if flags >> bit & 1)
    lines = _general(vcpu)
    lines += [
        f"{'RIP' if vcpu.code_64 else 'EIP'}={vcpu.eip:08x} EFL={flags:08x} [{names}] CPL={vcpu.cpl} {place(vm, vcpu.eip)}".rstrip(),
        f"CR0={vcpu.cr0:08x} CR2={vcpu.cr2:08x} CR3={vcpu.cr3:08x} CR4={vcpu.cr4:08x} EFER={vcpu.efer:x}",
    ]
    held = [("CS", vcpu.cs), ("SS", vcpu.ss)]
    lines += [f"{name} ={segment.selector:04x} {segment.base:08x} {segment.limit:08x} {segment.attributes:08x}" for name, segment in held]
    state = vcpu.state
    for name, at in _SEGMENTS:
        lines.append(f"{name} ={state[at]:04x} {state[at + Cpu.BASE]:08x} {state[at + Cpu.LIMIT]:08x} {state[at + Cpu.ATTRIBUTES]:08x}")
    for name, held_segment in (("LDT", vcpu.ldt), ("TR", vcpu.tr)):
        lines.append(f"{name:<3}={held_segment.selector:04x} {held_segment.base:08x} {held_segment.limit:08x} {held_segment.attributes:08x}")
    lines.append(f"GDT=     {vcpu.gdt_base:08x} {vcpu.gdt_limit:08x}")
    lines.append(f"IDT=     {vcpu.idt_base:08x} {vcpu.idt_limit:08x}")
    return "\n".join(lines)


def _general(vcpu: Vcpu) -> list[str]:
    """The general registers, four to a line."""
    if vcpu.code_64:
        parts = [f"R{name[1:]}={vcpu.register(_NUMBERS[name]):016x}" for name in _GENERAL]
        parts += [f"{f'R{number}':<3}={vcpu.register(number):016x}" for number in range(8, 16)]
    else:
        parts = [f"{name}={vcpu.register(_NUMBERS[name]):08x}" for name in _GENERAL]
    return [" ".join(parts[first : first + 4]) for first in range(0, len(parts), 4)]


def trace(vm: Vm) -> str:
    """The back-trace, a line for each frame."""
    found = backtrace(vm)
    lines = [f"  #{number:<2} {frame.eip:08x} {frame.name}" for number, frame in enumerate(found.frames)]
    return "\n".join([*lines, f"  ({found.end})"])
