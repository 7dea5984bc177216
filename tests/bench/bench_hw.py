"""Guest mode: what its exits cost in empty callbacks, and Linux to its shell against QEMU, for which tools/fetch_guests.py must have been run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.bench_translate import callback_seconds
from tests.bench.conftest import Keep
from tests.bench.timing import VMM, compiled_environment, cpu_seconds, in_turns
from tests.guests.dialogue import Step, talk_to_process
from tests.guests.linux import BUSYBOX, MEMORY_MIB, OLD_PC
from tests.guests.test_long import QEMU_64
from tests.guests.test_qemu import QEMU
from tests.machine.flat import FINISH, flat_vm
from tests.machine.long_kernel import TO_USER, long_kernel
from tests.machine.small_kernel import IDENTITY, small_kernel
from tests.require import require, require_file
from tools.fetch_guests import guest
from tools.initrd import READY, make_initrd
from vmm.backends.hw import HwOptions

pytestmark = pytest.mark.bench

TIMES, ROUNDS = 20_000, 3
_LAPIC = f"mov dword ptr [{IDENTITY + 0xF80}],0xfee0001b; mov eax,cr3; mov cr3,eax; mov dword ptr [0x3e00f0],0x1ff"
_REQUEST = "mov dword ptr [0x3e0300],0x40081; sti; nop; cli"  # to itself; its handler is EOI and IRET
_LINE, _VECTOR, _BELL = 5, 0x85, 0x300
_PIC = "mov al,0x11; out 0x20,al; mov al,0x80; out 0x21,al; mov al,4; out 0x21,al; mov al,3; out 0x21,al; mov al,0xdf; out 0x21,al"  # automatic EOI


class Bell:
    """A device that pulses its line as often as it is told to: once, or not at all."""

    def __init__(self, line: Callable[[bool], None]) -> None:
        self.line = line

    def access(self, offset: int, size: int, value: int | None) -> int:
        self.line(False)
        self.line(bool(value))
        return 0


def interrupt_seconds(rings: int) -> float:
    """CPU seconds of one round in which a device is told to ring the CPU, and does (1), or not (0). The handler is an IRET."""
    source = f"{_LAPIC}; {_PIC}; mov edi,{TIMES}; mov edx,{_BELL}; sti; l: mov al,{rings}; out dx,al; dec edi; jnz l; {FINISH}; m: jmp m"
    vm = flat_vm(small_kernel(source, handlers={_VECTOR: ".byte 0xcf"}), options=HwOptions(mmu="nested"))
    vm.board.bus.attach_ports(_BELL, 1, Bell(vm.board.interrupts.line(_LINE)))
    seconds = cpu_seconds(lambda: vm.run(60)) / TIMES
    assert vm.stats.injected[_VECTOR] == rings * TIMES
    return seconds


def test_interrupt(keep: Keep) -> None:
    """What a device's interrupt costs, from its line to the instruction that was interrupted; that the device is told to takes no part."""
    pair = in_turns(lambda: interrupt_seconds(1) - interrupt_seconds(0), callback_seconds)
    keep("hw-interrupt", pair.ratio, f"{pair.ours * 1e6:.1f} µs against {pair.theirs * 1e6:.2f} µs")


def loop_seconds(body: str) -> float:
    """CPU seconds of one round of `body` in a guest's kernel."""
    source = f"{_LAPIC}; mov edi,{TIMES}; l: {body}; dec edi; jnz l; {FINISH}; m: jmp m"
    vm = flat_vm(small_kernel(source, handlers={0x81: "mov dword ptr [0x3e00b0],0; .byte 0xcf"}), options=HwOptions(mmu="nested"))
    return cpu_seconds(lambda: vm.run(60)) / TIMES


@pytest.mark.parametrize(("row", "body"), (("hw-cpuid", "xor eax,eax; cpuid"), ("hw-port", "in al,0x80"), ("hw-request", _REQUEST)))
def test_exit(row: str, body: str, keep: Keep) -> None:
    """One round of each kind of exit; that of the request has its delivery, EOI and return in it."""
    pair = in_turns(lambda: loop_seconds(body) - loop_seconds("nop"), callback_seconds)
    keep(row, pair.ratio, f"{pair.ours * 1e6:.1f} µs against {pair.theirs * 1e6:.2f} µs")


def syscall_seconds(call: str) -> float:
    """CPU seconds of one round of a loop in user code with `call` in it."""
    user = f"mov r12d,{TIMES}; l: {call}; dec r12d; jnz l; int 0x81"
    msrs = "mov ecx,0xc0000082; mov eax,0x150000; xor edx,edx; wrmsr; mov ecx,0xc0000084; mov eax,0x200; wrmsr"
    parts = long_kernel(f"{msrs}; {TO_USER}", user=user, handlers={0x81: f"{FINISH}; l: jmp l"})
    vm = flat_vm({**parts, 0x150000: b"\x48\x0f\x07"}, options=HwOptions())  # SYSRET
    return cpu_seconds(lambda: vm.run(60)) / TIMES


def test_syscall(keep: Keep) -> None:
    """One round through the kernel and back, which the CPU does by itself on hardware."""
    pair = in_turns(lambda: syscall_seconds("syscall") - syscall_seconds("nop"), callback_seconds)
    keep("hw-syscall", pair.ratio, f"{pair.ours * 1e6:.1f} µs against {pair.theirs * 1e6:.2f} µs")


@pytest.mark.parametrize("kernel", ("linux-pae", "linux", "linux-amd64"))
def test_linux(kernel: str, keep: Keep, tmp_path: Path) -> None:
    """Both systems run the same kernel file, RAM disk and command line, in turns."""
    image = str(require_file(guest(kernel), "Linux (python -m tools.fetch_guests)"))
    initrd = tmp_path / "initrd.cpio"
    initrd.write_bytes(make_initrd(require_file(guest(BUSYBOX[kernel]), "BusyBox (python -m tools.fetch_guests)").read_bytes()))
    common = ["-m", str(MEMORY_MIB), "-initrd", str(initrd), "-append", OLD_PC]
    environment = compiled_environment(tmp_path)
    ours = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *VMM, "run", image]
    ours += [f"-{word}" if word in ("-initrd", "-append") else word for word in common]
    theirs = [require(QEMU_64 if kernel == "linux-amd64" else QEMU), "-kernel", image, *common, "-display", "none", "-serial", "stdio", "-no-reboot"]

    def seconds(command: list[str]) -> float:
        return talk_to_process(command, (Step(READY),), 120)[1].cpu[0]

    seconds(ours)  # compiles the modules
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS)]
    mine, qemu = (statistics.median(pair[side] for pair in pairs) for side in range(2))
    keep(kernel, mine / qemu, f"{mine:.2f} s against {qemu:.2f} s")
