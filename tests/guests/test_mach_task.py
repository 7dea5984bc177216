"""GNU Mach with a bootstrap task of our own, given by --module with a boot script: both flavours run it as QEMU runs the one for the PC.

The task is a few instructions: it prints by the kernel's call for that, through a call gate in an LDT, and stays.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest

from tests.assembly import assemble
from tests.guests import test_gnumach, test_xen
from tests.guests.dialogue import FINISHED, Dialogue, Step, talk_to_process
from tests.guests.test_qemu import QEMU
from tests.require import require
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.pv import PvOptions
from vmm.vm import Vm, machine_for

MESSAGE = "hello from the first task"
SCRIPT = "$(task-create) $(task-resume)"
_AT = 0x10000
_PRINT = -30 & 0xFFFFFFFF  # mach_print
_TIMEOUT = 120.0


def task() -> bytes:
    """The task's ELF file: CALL print; JMP $; print: the trap."""
    code = assemble("push 0x10040; call f; l: jmp l; f: nop", _AT)
    code += assemble(f"mov eax,{_PRINT}", _AT) + b"\x9a" + struct.pack("<IH", 0, 7) + b"\xc3"
    contents = code.ljust(0x40, b"\x90") + MESSAGE.encode() + b"\n\0"
    header = struct.pack("<16sHHIIIIIHHHHHH", b"\x7fELF\1\1\1", 2, 3, 1, _AT, 52, 0, 0, 52, 32, 1, 40, 0, 0)
    return (header + struct.pack("<8I", 1, 0x1000, _AT, _AT, len(contents), len(contents), 5, 0x1000)).ljust(0x1000, b"\0") + contents


def tail(log: str) -> list[str]:
    """The lines from the first that speaks of modules to the task's own."""
    lines = [line.strip("\r") for line in log.split("\n")]
    first = next(n for n, line in enumerate(lines) if line.startswith("module 0"))
    last = next(n for n, line in enumerate(lines) if line.endswith(MESSAGE))
    return lines[first : last + 1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the task in it: the console shows its name."""
    (tmp_path / "task").write_bytes(task())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ours(kernel: Path, options: Options, append: str) -> list[str]:
    """What a flavour prints of it under one of our back-ends."""
    console = Dialogue([Step(MESSAGE)])
    vm = Vm(machine_for(128, options), memory_mib=128, options=options, console=console)
    console.attach(vm)
    vm.load(str(kernel), append=append, modules=[f"task {SCRIPT}"])
    assert vm.run(_TIMEOUT).reason == FINISHED, console.text
    return tail(console.text)


@pytest.mark.parametrize("flavour", ("pc", "xen"))
def test_the_first_task(folder: Path, flavour: str) -> None:
    """Its message comes behind the same lines as on QEMU."""
    kernel, options, append = {
        "pc": (test_gnumach.kernel, BtOptions(), test_gnumach.COMMAND_LINE),
        "xen": (test_xen.mach, PvOptions(), ""),
    }[flavour]
    printed = ours(kernel(), options, append)
    unpacked = folder / "gnumach"
    unpacked.write_bytes(gzip.decompress(test_gnumach.kernel().read_bytes()))
    command = [require(QEMU), "-kernel", str(unpacked), "-append", test_gnumach.COMMAND_LINE, "-initrd", f"task {SCRIPT}"]
    log, _ = talk_to_process([*command, "-m", "128", "-display", "none", "-serial", "stdio", "-no-reboot"], [Step(MESSAGE)], _TIMEOUT)
    assert printed == tail(log)
