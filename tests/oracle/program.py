"""A small guest that runs here and on QEMU, and what it leaves: parts of memory and an entry in, registers and memory out.

A program starts at `entry` in flat 32-bit segments at CPL 0, paging off, IF clear, general registers 0 but ESP, no IDT, all memory
from 64 KiB to 4 MiB zero but for its parts. It ends by going to DONE in flat 32-bit segments (CS, DS and SS) at CPL 0, where
DONE to DONE + 4 KiB is mapped to itself. Knows how each side is run; knows no test.
"""

from __future__ import annotations

import math
import resource
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.machine.flat import ENTRY, FINISH, FLAT_CODE, FLAT_DATA, MEMORY_MIB, assemble, finish, flat_vm, image, pack, quads
from vmm.backends import Options
from vmm.start import STACK

DONE: Final = 0x3E0000
REGISTERS: Final = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eflags")
_SAVED, _ONWARD, _HERE = DONE + 0x800, DONE + 0x900, DONE + 0xA00  # the registers; where DONE goes on; where that is without QEMU
_SUPERVISOR = 0x800000  # on QEMU: out of the programs' reach
_CURRENT, _POINTER, _GDT, _RECORDS = (_SUPERVISOR + offset for offset in (0x800, 0x810, 0x820, 0x1000))
_SECONDS = 10

_SAVE = "; ".join(f"mov [{_SAVED + 4 * n:#x}],{name}" for n, name in enumerate(REGISTERS[:8]))
_DONE = assemble(
    f"""{_SAVE}; mov esp,{_SAVED + 0x80:#x}; pushfd; pop dword ptr [{_SAVED + 32:#x}]; push 2; popfd
    mov eax,cr0; and eax,0x7fffffff; mov cr0,eax; jmp dword ptr [{_ONWARD:#x}]""",
    DONE,
)


@dataclass(frozen=True)
class Program:
    """parts: text or bytes by address, below DONE. watched: (address, bytes) of the memory that is looked at in the end."""

    parts: Mapping[int, str | bytes]
    watched: tuple[tuple[int, int], ...] = ()
    entry: int = ENTRY


@dataclass(frozen=True)
class Left:
    """What a program left. registers: by name, as they were at DONE. memory: the watched ranges, in order."""

    registers: Mapping[str, int]
    memory: tuple[bytes, ...]

    def words(self, watched: int = 0) -> list[int]:
        """A watched range as 32-bit words."""
        return list(struct.unpack(f"<{len(self.memory[watched]) // 4}I", self.memory[watched]))


def run_here(
    program: Program,
    *,
    ring: int = 1,
    stubs_in_cache: bool = True,
    translate_user: bool = False,
    timeless: bool = True,
    options: Options | None = None,
) -> Left:
    """Runs a program under binary translation, or as `options` say. Fails with the reason for any other end than DONE.

    timeless: no device interrupts.
    """
    parts = {**program.parts, DONE: _DONE, _ONWARD: pack([_HERE]), _HERE: FINISH}
    if program.entry != ENTRY:
        parts[ENTRY] = f"mov eax,{program.entry:#x}; jmp eax"
    vm = flat_vm(
        parts, ring=ring, stubs_in_cache=stubs_in_cache, translate_user=translate_user, memory_mib=MEMORY_MIB, timeless=timeless, options=options
    )
    finish(vm)
    registers = struct.unpack("<9I", vm.memory.read(_SAVED, 36))
    return Left(dict(zip(REGISTERS, registers, strict=True)), tuple(vm.memory.read(at, size) for at, size in program.watched))


def run_on_qemu(qemu: str, programs: Sequence[Program]) -> list[Left | None]:
    """Runs programs one after the other on QEMU (the program `qemu`), many for each boot; None for one that did not get to DONE."""
    left: list[Left | None] = []
    while len(left) < len(programs):
        rest = programs[len(left) :]
        done = list(_parse(_boot(qemu, rest), rest))
        left += done
        if len(done) < len(rest):
            left.append(None)
    return left


def _boot(qemu: str, programs: Sequence[Program]) -> bytes:
    """What one boot of QEMU printed on its debug console until all programs were done, or one hung or reset the machine."""
    with tempfile.TemporaryDirectory() as folder:
        kernel, printed = Path(folder, "kernel"), Path(folder, "printed")
        kernel.write_bytes(_kernel(programs))
        command = [qemu, "-kernel", str(kernel), "-cpu", "qemu32,+nx", "-m", "64", "-display", "none", "-no-reboot", "-net", "none"]
        command += ["-debugcon", f"file:{printed}", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
        most = math.ceil(_SECONDS + 0.05 * len(programs))  # of CPU time; one that halts for ever takes none

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_CPU, (most, most))

        try:
            subprocess.run(command, timeout=10 * most, capture_output=True, check=False, preexec_fn=limit)
        except subprocess.TimeoutExpired:
            pass
        return printed.read_bytes() if printed.exists() else b""


def _parse(printed: bytes, programs: Sequence[Program]) -> Iterator[Left]:
    for program in programs:
        sizes = (36, *(size for _, size in program.watched))
        if len(printed) < sum(sizes):
            return
        pieces = []
        for size in sizes:
            pieces.append(printed[:size])
            printed = printed[size:]
        yield Left(dict(zip(REGISTERS, struct.unpack("<9I", pieces[0]), strict=True)), tuple(pieces[1:]))


def _kernel(programs: Sequence[Program]) -> bytes:
    """A multiboot kernel, loaded at _SUPERVISOR: code, the programs' records, their lists, and the bytes of their parts.

    A record: entry, address of the list of parts (to, bytes, from), address of the list of what to print (from, bytes); entry 0
    is the end of the records and 0 bytes that of a list.
    """
    at = _RECORDS + 12 * (len(programs) + 1)
    records, behind = [], bytearray()
    for program in programs:
        parts = image({**program.parts, DONE: _DONE, _ONWARD: pack([_SUPERVISOR + 0x400])})
        copies: list[int] = []
        for to, part in parts.items():
            copies += [to, len(part), at + len(behind)]
            behind += part
        records += [program.entry, at + len(behind)]
        behind += pack([*copies, 0, 0, 0])
        records.append(at + len(behind))
        behind += pack([word for address, size in ((_SAVED, 36), *program.watched) for word in (address, size)] + [0, 0])
    kernel = bytearray(_RECORDS - _SUPERVISOR)
    load_end = at + len(behind)
    flags = 1 << 16
    header = [0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF, _SUPERVISOR, _SUPERVISOR, load_end, load_end, _SUPERVISOR + 0x40]
    for offset, part in (
        (0, pack(header)),
        (0x40, assemble(f"mov dword ptr [{_CURRENT:#x}],{_RECORDS:#x}; jmp {_SUPERVISOR + 0x100:#x}", _SUPERVISOR + 0x40)),
        (0x100, assemble(_NEXT, _SUPERVISOR + 0x100)),
        (0x400, assemble(_PRINT, _SUPERVISOR + 0x400)),
        (_POINTER - _SUPERVISOR, pack([0x17 | (_GDT & 0xFFFF) << 16, _GDT >> 16])),
        (_GDT - _SUPERVISOR, quads([0, FLAT_CODE, FLAT_DATA])),
    ):
        kernel[offset : offset + len(part)] = part
    return bytes(kernel) + pack([*records, 0, 0, 0]) + behind


_NEXT = f"""
    .byte 0x0f,0x01,0x15; .long {_POINTER:#x}
    .byte 0xea; .long {_SUPERVISOR + 0x110:#x}; .short 8
    nop; nop; nop
    mov eax,0x10; mov ds,eax; mov es,eax; mov fs,eax; mov gs,eax; mov ss,eax; mov esp,{_SUPERVISOR + 0x800:#x}
    mov eax,0x11; mov cr0,eax; xor eax,eax; mov cr3,eax; mov cr4,eax; .byte 0x0f,0x00,0xd0
    mov dr0,eax; mov dr1,eax; mov dr2,eax; mov dr3,eax; mov eax,0xffff0ff0; mov dr6,eax; mov eax,0x400; mov dr7,eax
    fninit; cld
    mov ebp,[{_CURRENT:#x}]; cmp dword ptr [ebp],0; jne go
    mov al,0; out 0xf4,al
    go: xor eax,eax; mov edi,0x10000; mov ecx,0x23c00; rep stosd; mov edi,0x100000; mov ecx,0xc0000; rep stosd
    mov ebx,[ebp+4]
    part: mov edi,[ebx]; mov ecx,[ebx+4]; mov esi,[ebx+8]; add ebx,12; test ecx,ecx; jz ready; rep movsb; jmp part
    ready: mov eax,[ebp]; mov [{_CURRENT + 4:#x}],eax; xor eax,eax; mov ebx,eax; mov ecx,eax; mov edx,eax; mov esi,eax; mov edi,eax; mov ebp,eax
    mov esp,{STACK + 4:#x}; push 2; popfd; mov esp,{STACK:#x}; jmp dword ptr [{_CURRENT + 4:#x}]
"""
_PRINT = f"""
    mov esp,{_SUPERVISOR + 0x800:#x}; cld
    mov ebp,[{_CURRENT:#x}]; mov ebx,[ebp+8]; add ebp,12; mov [{_CURRENT:#x}],ebp; mov edx,0xe9
    range: mov esi,[ebx]; mov ecx,[ebx+4]; add ebx,8; test ecx,ecx; jz all; rep outsb; jmp range
    all: jmp {_SUPERVISOR + 0x100:#x}
"""
