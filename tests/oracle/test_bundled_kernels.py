"""The bundled kernels with virtual time by instructions: the bare machine, guest mode, binary translation and stepping end in one and the same state.

What may differ is listed here, and nothing else: accessed bits that a CPU may set early, and what docs/QUIRKS.md says of the bare machine
and of the x87's pointers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest

from guest_kernels import kernels
from tests.oracle.harness import WAYS
from vmm.backends import Options
from vmm.backends.hw import HwOptions
from vmm.backends.native import NativeOptions
from vmm.backends.step import StepOptions
from vmm.console import Recorder
from vmm.exits import Stop
from vmm.vm import Vm, machine_for

NAMES = ("hello", "faults", "faults-pae", "faults-io", "faults-step", "smc", "stale-code", "stale-shadow", "lost-if", "raw-pointer")
QUICK = ("hello", "faults-io", "faults-step", "smc", "stale-code", "stale-shadow", "lost-if", "raw-pointer")  # those that step does in seconds
COUNTED_TWICE = {"smc": 30}  # stores into their own block, which the bare machine counts twice (quirk 14)
ACCESSED_ENTRY, ACCESSED_DESCRIPTOR = 0x20, 0x100
WINDOWS = 0xE0000000  # translated code lies above


@dataclass(frozen=True)
class End:
    """What is left of a run. registers: EAX to EDI, EIP, EFLAGS, CR0, CR2, CR3, CR4. gdt: its first and last byte."""

    reason: str
    console: str
    retired: int
    registers: tuple[int, ...]
    memory: bytes
    gdt: range


def run(name: str, options: Options) -> End:
    """Runs a bundled kernel to its end, counting instructions."""
    guest = kernels()[name]
    console = Recorder()
    vm = Vm(machine_for(guest.memory_mib, options), memory_mib=guest.memory_mib, options=options, console=console, icount=True)
    vm.load(str(guest.file), append=guest.command_line)
    return end_of(vm, vm.run(120), console)


def end_of(vm: Vm, stop: Stop, console: Recorder) -> End:
    """What is left of a run that counted instructions."""
    assert vm.icount is not None
    vcpu = vm.vcpu
    registers = (*(vcpu.register(n) for n in range(8)), vcpu.eip, vcpu.flags(), vcpu.cr0, vcpu.cr2, vcpu.cr3, vcpu.cr4)
    gdt = range(vcpu.gdt_base, vcpu.gdt_base + vcpu.gdt_limit + 1)
    return End(stop.reason, console.text, vm.icount.total(), registers, vm.memory.read(0, vm.memory_size), gdt)


@cache
def bare(name: str) -> End:
    """The run that defines what is right."""
    return run(name, NativeOptions())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_binary_translation_ends_as_the_bare_machine(name: str, way: str) -> None:
    """Console, registers, memory and the number of instructions, in both rings and with both kinds of stub."""
    agree(name, run(name, WAYS[way]))


@pytest.mark.parametrize("mmu", ("nested", "shadow"))
@pytest.mark.parametrize("name", (*NAMES, "rings"))
def test_guest_mode_ends_as_the_bare_machine(name: str, mmu: str) -> None:
    """The same, in guest mode, under nested paging and under shadow paging. It counts as the bare machine does."""
    expected, end = bare(name), run(name, HwOptions(mmu=mmu))
    agree(name, end, counted=expected.retired)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_stepping_ends_as_the_bare_machine(name: str) -> None:
    """The same, one instruction at a time."""
    agree(name, run(name, StepOptions()))


@pytest.mark.slow
def test_interrupts_come_at_the_same_instructions() -> None:
    """`rings`, which the timer pre-empts: the x87's pointers in saved images say where translated code stands, and nothing else differs."""
    agree("rings", run("rings", WAYS["ring1"]), images=True)


def agree(name: str, end: End, *, images: bool = False, counted: int | None = None) -> None:
    """Fails with what differs. images: pointers in saved x87 images may be those of translated code. counted: by quirk 14 too."""
    expected = bare(name)
    assert (end.reason, end.console, end.registers) == (expected.reason, expected.console, expected.registers)
    assert end.retired == (counted or expected.retired - COUNTED_TWICE.get(name, 0))
    differing = []
    for page in range(0, len(end.memory), 4096):
        if end.memory[page : page + 4096] != expected.memory[page : page + 4096]:
            for at in range(page, page + 4096, 4):
                right, here = (int.from_bytes(memory[at : at + 4], "little") for memory in (expected.memory, end.memory))
                if right != here and not _may_differ(at, right, here, expected.gdt) and not (images and _pointer(end.memory, at)):
                    differing.append(f"{at:#x}: {right:#x} / {here:#x}")
    assert not differing, differing[:20]


def _may_differ(at: int, right: int, here: int, gdt: range) -> bool:
    if right ^ here == ACCESSED_DESCRIPTOR:  # the bare machine's loads of CS do not set it (quirk 19)
        return at in gdt
    return right ^ here == ACCESSED_ENTRY and bool(right & 1)


def _pointer(memory: bytes, at: int) -> bool:
    """The offset of an x87 instruction in the cache, or the selector of the cache behind it."""
    offset, selector = (int.from_bytes(memory[place : place + 4], "little") for place in (at, at + 4))
    before = int.from_bytes(memory[at - 4 : at], "little")
    return offset >= WINDOWS and selector & 0xFFFC == 0xFFF0 or before >= WINDOWS and offset & 0xFFFC == 0xFFF0
