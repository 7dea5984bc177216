"""Every bundled guest kernel on QEMU: a guest that never ran elsewhere tests nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from guest_kernels import Guest, kernels, missing_line
from tests.require import require

QEMU = "qemu-system-i386"
# isa-debug-exit ends QEMU with (value << 1) | 1; a triple fault under -no-reboot ends it with 0.
REPORTED_ALL_PASSED = 1
DIED = 0


def qemu_command(guest: Guest, disk: Path | None) -> list[str]:
    """The command line that runs `guest` on QEMU, with `disk` as its raw image."""
    command = [QEMU, "-kernel", str(guest.file), "-cpu", "qemu32,+nx", "-display", "none", "-serial", "stdio", "-no-reboot"]
    command += ["-m", str(guest.memory_mib), "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    if guest.command_line:
        command += ["-append", guest.command_line]
    if disk:
        command += ["-drive", f"file={disk},if=ide,format=raw"]
    return command


def status_of(qemu_status: int) -> int:
    """QEMU's exit status in the terms of guests.toml."""
    return {REPORTED_ALL_PASSED: 0, DIED: 3}.get(qemu_status, 1)


@pytest.mark.parametrize("guest", kernels().values(), ids=lambda guest: guest.name)
def test_passes_on_qemu(guest: Guest, tmp_path: Path) -> None:
    """Status and console lines are those of guests.toml, in every run of the guest."""
    require(QEMU)
    disk = tmp_path / "disk.img" if guest.disk_bytes else None
    if disk and guest.disk_bytes:
        disk.touch()
        os.truncate(disk, guest.disk_bytes)
    for expected in guest.runs():
        run = subprocess.run(qemu_command(guest, disk), stdin=subprocess.DEVNULL, capture_output=True, timeout=guest.timeout_s, check=False)
        printed = run.stdout.decode("latin-1")
        assert (status_of(run.returncode), missing_line(printed, expected)) == (guest.status, None), printed + run.stderr.decode()
