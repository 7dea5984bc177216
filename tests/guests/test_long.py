"""The bundled kernels that need long mode: on QEMU's 64-bit PC, and in guest mode with the very console of that run.

Knows guests.toml and the way a VM is made.
"""

from __future__ import annotations

import subprocess

import pytest

from guest_kernels import kernels, missing_line
from tests.guests.test_bt import run
from tests.guests.test_qemu import qemu_command, status_of
from tests.require import require
from tools.cli import status
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions

QEMU_64 = "qemu-system-x86_64"
GUESTS = kernels("pc64")


@pytest.mark.parametrize("name", GUESTS)
def test_console_is_that_of_qemu(name: str) -> None:
    """QEMU's run is as guests.toml says, and ours prints the same to the byte."""
    guest = GUESTS[name]
    command = [require(QEMU_64), *qemu_command(guest, None)[1:]]
    command[command.index("-cpu") + 1] = "qemu64"
    reference = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=guest.timeout_s, check=False)
    printed = reference.stdout.decode("latin-1")
    assert (status_of(reference.returncode), missing_line(printed, guest.console)) == (guest.status, None), printed
    assert run(guest, HwOptions(), None)[:2] == (guest.status, printed)


@pytest.mark.parametrize("name", GUESTS)
def test_passes_in_guest_mode(name: str) -> None:
    """Status and console lines are those of guests.toml; users' faults and system calls are no exits of the architecture."""
    guest = GUESTS[name]
    ended, printed, vm = run(guest, HwOptions(mmu="nested"), None)
    assert (ended, missing_line(printed, guest.console)) == (guest.status, None), printed
    assert vm.stats.architectural["port"]
    assert not vm.stats.architectural["exception"]


@pytest.mark.parametrize("name", GUESTS)
@pytest.mark.parametrize("options", (BtOptions(), HwOptions(mmu="shadow")), ids=("bt", "shadow"))
def test_a_cpu_without_long_mode_says_so(name: str, options: BtOptions | HwOptions) -> None:
    """CPUID names no long mode there, and the kernel reports it."""
    ended, printed, _ = run(GUESTS[name], options, None)
    assert (ended, printed.splitlines()[0]) == (1, "FAIL: the CPU has no long mode")


def test_auto_is_hw(capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody has to name a back-end."""
    assert status(["run", "real16"]) == 0
    assert missing_line(capfd.readouterr().out, GUESTS["real16"].console) is None
