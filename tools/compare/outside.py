"""One run of one cell on QEMU, with TCG: none of our counters, only the time between the marks.

Knows how QEMU is started, and the marks of guest_kernels/lib/rows.h.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import guest_kernels
from tools.compare.cell import BEGIN, END, Wanted, command_line, count_in, wrong
from tools.compare.model import Boot, Sample, kernels
from vmm.boot.image import read_image

QEMU: Final = "qemu-system-i386"


class Marks:
    """Clocks read at marks. cpu: a clock, in nanoseconds. readings: that one and the wall clock at each mark."""

    def __init__(self, cpu: Callable[[], int]) -> None:
        self._cpu = cpu
        self.readings: list[tuple[int, int]] = []
        self.ended = False

    def read(self) -> None:
        self.readings.append((self._cpu(), time.perf_counter_ns()))

    def heard(self, byte: int) -> None:
        """A byte on the debug console."""
        if byte in (BEGIN, END):
            self.read()
            self.ended = byte == END

    def sample(self, count: int) -> Sample:
        """What lies between the last mark of the beginning and the end."""
        begin, end = self.readings[-2:]
        return Sample("", count, max(1, end[0] - begin[0]), max(1, end[1] - begin[1]))


def on_qemu(wanted: Wanted) -> Sample:
    """One run of a cell on QEMU: CPU time is that of its process, seen from outside when a mark arrives."""
    if shutil.which(QEMU) is None:
        return Sample(f"absent: {QEMU} is not installed")
    kernel = kernels()[wanted.cell.kernel]
    if kernel.boot:
        boot = kernel.boot["pc"]
        return Sample(f"absent: {boot.absent}") if boot.path is None else _boot_on_qemu(wanted, boot)
    guest = guest_kernels.kernels()[kernel.file["pc"]]
    with ExitStack() as until:
        serial = until.enter_context(tempfile.NamedTemporaryFile(prefix="vmm-serial-"))
        command = _qemu(str(guest.file), guest.memory_mib, command_line(wanted))
        command += ["-serial", f"file:{serial.name}", "-chardev", "stdio,id=marks,signal=off", "-device", "isa-debugcon,iobase=0xe9,chardev=marks"]
        command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
        if guest.disk_bytes:
            image = until.enter_context(tempfile.NamedTemporaryFile(prefix="vmm-disk-"))
            os.truncate(image.fileno(), guest.disk_bytes)
            command += ["-drive", f"file={image.name},if=ide,format=raw"]
        marks, ended = _listen(command, wanted.timeout, None)
        text = Path(serial.name).read_text("latin-1")
    return wrong(text) or (marks.sample(count_in(text)) if marks.ended else Sample(f"{QEMU}: {ended}"))


def _boot_on_qemu(wanted: Wanted, boot: Boot) -> Sample:
    with tempfile.NamedTemporaryFile(prefix="vmm-kernel-") as plain:  # QEMU's multiboot loader unpacks nothing
        plain.write(read_image(str(boot.path), boot.memory_mib << 20))
        plain.flush()
        command = [*_qemu(plain.name, boot.memory_mib, boot.append), "-serial", "stdio"]
        marks, ended = _listen(command, wanted.timeout, boot.until.encode())
    return marks.sample(1) if marks.ended else Sample(f"{QEMU}: {ended}")


def _qemu(kernel: str, memory_mib: int, append: str) -> list[str]:
    command = [QEMU, "-kernel", kernel, "-cpu", "qemu32,+nx", "-display", "none", "-monitor", "none", "-no-reboot", "-m", str(memory_mib)]
    return [*command, *(["-append", append] if append else [])]


def _listen(command: Sequence[str], timeout: float, until: bytes | None) -> tuple[Marks, str]:
    """Runs QEMU until it ends, or `until` has come; what arrived by then, and how it ended."""
    end, output = time.monotonic() + timeout, bytearray()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        clock = ~process.pid << 3 | 2  # clock_getcpuclockid(3): the CPU time of that process

        def cpu() -> int:
            return time.clock_gettime_ns(clock)

        marks = Marks(cpu)
        assert process.stdout is not None
        if until is not None:
            marks.read()
        try:
            while True:
                ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
                if not ready:
                    return marks, f"time-out after {timeout:g} s"
                data = os.read(process.stdout.fileno(), 65536)
                if not data:
                    return marks, "ended without a mark"
                if until is None:
                    for byte in data:
                        marks.heard(byte)
                else:
                    output += data
                    if until in output:
                        marks.heard(END)
                        return marks, ""
        finally:
            process.kill()
