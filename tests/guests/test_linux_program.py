"""A program of ours under Debian's 32-bit kernels prints of exceptions, signals, segments, changing code and the rest what it prints on QEMU.

Knows how the program is built, and which of its lines differ for which reason. The program's sources are in `linux_program/`.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.guests.dialogue import Step, talk_to_process
from tests.guests.linux import MEMORY_MIB, OLD_PC, TIMEOUT, boot
from tests.guests.test_qemu import QEMU
from tests.require import require, require_file
from tools.fetch_guests import guest
from tools.initrd import READY, make_initrd
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions

_SOURCES = Path(__file__).parent / "linux_program"
_LIBRARY = Path(__file__).parents[2] / "guest_kernels" / "lib"
_FLAGS = (
    "-m32 -march=i686 -msse2 -mgeneral-regs-only -std=gnu11 -ffreestanding -nostdlib -static -fno-pic -no-pie -O2 -Wall -Wextra -Werror "
    "-fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -fno-strict-aliasing -fno-tree-loop-distribute-patterns "
    "-ffunction-sections -Wl,-z,noexecstack,--gc-sections,--build-id=none"
).split()
_ASKED = (
    Step("# ", "dmesg -n 1; chmod +x /program; grep -ow sep /proc/cpuinfo; dmesg | grep isolation; echo st''art\n"),
    Step("\nstart"),
    Step("# ", "/program; echo e''nd\n"),
    Step("\nend\r\n"),
)

DIRECT, TRANSLATED, HW = BtOptions(), BtOptions(translate_user=True), HwOptions()
WAYS: dict[str, tuple[tuple[str, Options], ...]] = {
    "linux-pae": ((f"{OLD_PC} pti=off", DIRECT), (OLD_PC, TRANSLATED), ("console=ttyS0", HW)),
    "linux": (("console=ttyS0", DIRECT),),
}
# docs/QUIRKS.md 28 and 30: QEMU 7.2 has mended these, as far as it goes; what of the CPU is not the manual's in QEMU either does not show here.
CPU_OF_QEMU_5 = {"movaps that is not aligned": "passes flags 202", "remainder": "00000000 00000000"}


def program(folder: Path) -> bytes:
    """The program, built for 32-bit Linux, without a library."""
    sources = [*sorted(_SOURCES.glob("*.[cS]")), _LIBRARY / "printf.c", _LIBRARY / "memory.c"]
    built = subprocess.run([require("gcc"), *_FLAGS, "-o", folder / "program", *sources], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return (folder / "program").read_bytes()


def lines(console: str) -> dict[str, str]:
    """What the program printed, by what each line is about."""
    found = re.search(r"\n(faults: .*)\nend\n", console.replace("\r", ""), re.DOTALL)
    assert found is not None, console[-2000:]
    printed = [line.partition(": ") for line in found[1].splitlines()]
    assert len({name for name, _, _ in printed}) == len(printed)
    return {name: rest for name, _, rest in printed}


def on_qemu(kernel: str, image: bytes, folder: Path) -> dict[str, str]:
    """The lines on QEMU."""
    initrd = folder / "qemu.cpio"
    initrd.write_bytes(make_initrd(require_file(guest("busybox"), "BusyBox").read_bytes(), {"program": image}))
    command = [require(QEMU), "-kernel", str(require_file(guest(kernel), "Linux")), "-initrd", str(initrd), "-append", OLD_PC]
    command += ["-m", str(MEMORY_MIB), "-cpu", "qemu32,+nx", "-display", "none", "-serial", "stdio", "-no-reboot"]
    console, _ = talk_to_process(command, [Step(READY), *_ASKED], TIMEOUT)
    return lines(console)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kernel", WAYS)
def test_the_same_as_on_qemu(kernel: str, tmp_path: Path) -> None:
    """Each line, under binary translation with direct and translated user code, with and without page-table isolation, and in guest mode."""
    image = program(tmp_path)
    expected = on_qemu(kernel, image, tmp_path) | CPU_OF_QEMU_5
    assert len(expected) > 200
    steps = (*_ASKED, Step("# ", "reboot -f\n"), Step("Restarting system"))
    for command_line, options in WAYS[kernel]:
        _, console = boot(kernel, command_line, steps, tmp_path, {"program": image}, options)
        assert lines(console.text) == expected, options
        # docs/QUIRKS.md 24: SYSENTER is named where it always works, and the kernel's own entry uses it then.
        assert bool(re.search(r"^sep\r$", console.text, re.MULTILINE)) == (options != DIRECT)
        assert ("isolation: enabled" in console.text) == (kernel == "linux-pae" and "pti=off" not in command_line)
