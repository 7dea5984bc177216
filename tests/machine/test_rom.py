"""A BIOS of ours from the reset vector on: ROM at the top of memory and below 1 MiB, and RAM in its place as PAM says, on QEMU too."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.assembly import ENTRY, assemble
from tests.machine.flat import describe, finish, flat_vm
from tests.require import require
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions
from vmm.boot.bios import Bios
from vmm.console import Recorder
from vmm.errors import InputError
from vmm.exits import End
from vmm.vm import Vm, machine_for

MEMORY_MIB = 4
SIZE = 0x10000
# Offsets in the image, which are those in segment F000h, each on a page of its own.
MARK, TOP, LOW, CALLED, PUT, BACK = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000
REPORT = f"call {PUT:#x}"


def pam(value: int) -> str:
    """PAM0 of the host bridge: RAM at F0000h for reads (10h), for writes (20h)."""
    return f"mov eax, 0x80000058; mov dx, 0xcf8; out dx, eax; mov al, {value:#x}; mov dx, 0xcfd; out dx, al"


def show(segment: str = "ds") -> str:
    """Prints the byte at MARK."""
    return f"mov al, byte ptr {segment}:[{MARK:#x}]; {REPORT}"


def store(letter: str) -> str:
    return f"mov byte ptr ds:[{MARK:#x}], {ord(letter)}"


def say(text: str) -> str:
    return "; ".join(f"mov al, {ord(letter)}; {REPORT}" for letter in text)


def bios() -> bytes:
    """Runs at the top, where CS has a base that reaches no RAM, then copies itself into RAM and goes on there, then back in ROM."""
    parts = {
        TOP: f"""
            mov ax, 0xf000; mov ds, ax; mov es, ax; xor ax, ax; mov ss, ax; mov sp, 0x7000
            {say("top ")}; {show("cs")}; {show()}; {store("x")}; {show()}; {show("cs")}
            {pam(0x30)}; {store("W")}; {show()}; {show("cs")}
            {pam(0x10)}; {store("x")}; {show()}
            {pam(0x00)}; {store("x")}; {show()}
            {pam(0x30)}; {show()}; {say(" ram ")}
            cld; xor si, si; xor di, di; mov cx, {SIZE - 1:#x}; rep movsb byte ptr es:[di], byte ptr cs:[si]
            .byte 0xea; .short {LOW:#x}; .short 0xf000
        """,
        LOW: f"""
            {store("C")}; {show("cs")}
            mov byte ptr ds:[{CALLED:#x} + 1], 0x44; call {CALLED:#x}
            {pam(0x10)}; mov byte ptr ds:[{CALLED:#x} + 1], 0x45; call {CALLED:#x}; {say(" rom ")}
            {pam(0x00)}; {show()}; call {CALLED:#x}
            mov byte ptr ds:[{CALLED:#x} + 1], 0x46; mov al, byte ptr ds:[{CALLED:#x} + 1]; {REPORT}; call {CALLED:#x}
            mov byte ptr ds:[{CALLED:#x} + 1], 0x46; call {CALLED:#x}
            mov cx, 3
            mov byte ptr cs:[{LOW:#x}], 0; loop -5
            {say("!")}
            mov al, 10; {REPORT}; mov al, 0; out 0xf4, al; hlt
        """,
        CALLED: f"mov al, 0x43; jmp {PUT:#x}",
    }
    return image_of(parts, b"R")


def image_of(parts: Mapping[int, str], mark: bytes) -> bytes:
    """A BIOS image whose reset vector leads to TOP."""
    image = bytearray(SIZE)
    for at, text in {**parts, PUT: "mov dx, 0x3f8; out dx, al; ret", SIZE - 16: f".byte 0xe9; .short {(TOP - (SIZE - 13)) & 0xFFFF:#x}"}.items():
        code = assemble(text.replace("loop -5", ".byte 0xe2, 0xf8"), at, wide=False)
        image[at : at + len(code)] = code
    image[MARK : MARK + len(mark)] = mark
    return bytes(image)


def run(image: bytes) -> str:
    """What a BIOS prints before it reports 0."""
    console, options = Recorder(), HwOptions(mmu="nested")
    vm = Vm(machine_for(MEMORY_MIB, options), memory_mib=MEMORY_MIB, options=options, console=console, bios=Bios("bios", image))
    vm.reset()
    stop = vm.run(20)
    assert (stop.why, stop.value) == (End.REPORTED, 0), describe(vm, stop)
    return console.text


EXPECTED = "top RRRRWRWRW ram CDD rom RCCCC!\n"


def test_rom_and_ram_below_1_mib() -> None:
    """What is read, written and executed under each setting; ROM that is written stays, even by an instruction on the same page."""
    assert run(bios()) == EXPECTED


def test_the_same_on_qemu(tmp_path: Path) -> None:
    """Prints the same line."""
    file = tmp_path / "bios"
    file.write_bytes(bios())
    machine = ["-m", str(MEMORY_MIB), "-display", "none", "-net", "none", "-serial", "stdio", "-bios", str(file)]
    command = [require("qemu-system-i386"), *machine, "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False)
    assert done.stdout.decode().replace("\r", "") == EXPECTED, done.stderr


def test_shadowing_in_place() -> None:
    """Writes go to the RAM behind while ROM is read (82441FX data sheet; on QEMU this setting is RAM for both)."""
    parts = {
        TOP: f"""
            mov ax, 0xf000; mov ds, ax; xor ax, ax; mov ss, ax; mov sp, 0x7000
            {pam(0x30)}; {store("1")}; {show()}
            {pam(0x20)}; {show()}; {store("2")}; {show()}; mov word ptr ds:[{MARK:#x} + 2], 0x3433; mov al, byte ptr ds:[{MARK:#x} + 3]; {REPORT}
            {pam(0x30)}; {show()}; mov al, byte ptr ds:[{MARK:#x} + 3]; {REPORT}
            mov al, 0; out 0xf4, al
        """,
    }
    assert run(image_of(parts, b"Rabc")) == "1RRc24"


def test_without_a_bios_there_is_ram() -> None:
    """Whatever PAM says."""
    write = "mov eax, 0x80000058; mov dx, 0xcf8; out dx, eax; mov dx, 0xcfd; xor eax, eax; out dx, al; in al, dx; mov ebx, eax"
    vm = flat_vm({ENTRY: f"{write}; mov byte ptr [0xf0800], 65; movzx eax, byte ptr [0xf0800]; add eax, ebx; out 0xf4, eax"})
    assert finish(vm) == 65


@pytest.mark.parametrize("options", (BtOptions(), HwOptions(), HwOptions(mmu="shadow")), ids=("bt", "hw auto", "hw shadow"))
def test_other_back_ends_have_no_bios(options: BtOptions | HwOptions) -> None:
    """They say what it takes."""
    with pytest.raises(InputError, match="--backend hw with --mmu nested"):
        Vm(machine_for(MEMORY_MIB, options), memory_mib=MEMORY_MIB, options=options, bios=Bios("bios", bios()))


def test_a_bios_that_halts() -> None:
    """Ends the run with the reason, as any guest that nothing can wake."""
    options = HwOptions(mmu="nested")
    vm = Vm(machine_for(MEMORY_MIB, options), memory_mib=MEMORY_MIB, options=options, bios=Bios("bios", b"\xf4" * SIZE))
    vm.reset()
    assert vm.snapshot().bios == vm.bios
    stop = vm.run(20)
    assert (stop.why, stop.reason) == (End.DIED, "halted for good: hlt with interrupts disabled")
    with pytest.raises(InputError, match="the guest has ended"):
        vm.snapshot()
