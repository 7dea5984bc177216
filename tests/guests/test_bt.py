"""Every bundled guest kernel under binary translation: what guests.toml expects, and the very console that QEMU's run of it shows.

Knows guests.toml and the way a VM is made. QEMU is the oracle: where it is not installed, only guests.toml is.
"""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from guest_kernels import Guest, kernels, missing_line
from tests.guests.test_qemu import QEMU, qemu_command
from tests.require import require
from tools.session import status_of
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.console import Recorder
from vmm.devices.disk import Disk
from vmm.vm import Vm, machine_for

GUESTS = kernels()
ALIKE = [name for name in GUESTS if name != "sensitive"]  # that one's lines are compared one by one, in test_sensitive.py
OPTIONS = {
    "ring1": BtOptions(),
    "ring3": BtOptions(ring=3),
    "ring1-trap": BtOptions(stubs_in_cache=False),
    "ring3-trap": BtOptions(ring=3, stubs_in_cache=False),
    "ring1-translate": BtOptions(translate_user=True),
    "ring3-translate": BtOptions(ring=3, translate_user=True),
    "ring1-trap-translate": BtOptions(stubs_in_cache=False, translate_user=True),
    "ring3-trap-translate": BtOptions(ring=3, stubs_in_cache=False, translate_user=True),
    "ring1-no-adapt": BtOptions(adapt=False),
    "ring1-counted": BtOptions(counted=True),
    "ring3-counted-translate": BtOptions(ring=3, counted=True, translate_user=True),
}


@cache
def qemu_consoles(name: str) -> tuple[str, ...]:
    """What QEMU's serial line shows of the guest, for each of its runs."""
    guest = GUESTS[name]
    with TemporaryDirectory() as folder:
        disk = empty_disk(guest, Path(folder))
        runs = (
            subprocess.run(qemu_command(guest, disk), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=guest.timeout_s, check=False)
            for _ in guest.runs()
        )
        return tuple(run.stdout.decode("latin-1") for run in runs)


def empty_disk(guest: Guest, folder: Path) -> Path | None:
    """A new image for the guest, when it wants one."""
    if guest.disk_bytes is None:
        return None
    disk = folder / "disk.img"
    disk.touch()
    os.truncate(disk, guest.disk_bytes)
    return disk


def run(guest: Guest, options: Options, image: Path | None, timeout: float | None = None) -> tuple[int, str, Vm]:
    """Exit status, console and the stopped VM of one run."""
    console = Recorder()
    disks = [Disk(str(image))] if image else []
    try:
        vm = Vm(machine_for(guest.memory_mib, options), memory_mib=guest.memory_mib, options=options, disks=disks, console=console)
        vm.load(str(guest.file), append=guest.command_line)
        stop = vm.run(timeout or guest.timeout_s)
    finally:
        for disk in disks:
            disk.close()
    return status_of(stop), console.output.decode("latin-1"), vm


@pytest.mark.parametrize("how", OPTIONS)
@pytest.mark.parametrize("name", GUESTS)
def test_passes_under_bt(name: str, how: str, tmp_path: Path) -> None:
    """Status and console lines are those of guests.toml in every run of the guest; nothing that is to be translated ran outside a cache."""
    guest = GUESTS[name]
    disk = empty_disk(guest, tmp_path)
    for expected in guest.runs():
        status, printed, vm = run(guest, OPTIONS[how], disk)
        assert (status, missing_line(printed, expected)) == (guest.status, None), printed
        assert vm.stats.audited > 0
        assert vm.stats.outside == 0


@pytest.mark.parametrize("translate_user", (False, True))
@pytest.mark.parametrize("ring", (1, 3))
@pytest.mark.parametrize("name", ("rings", "faults", "faults-pae", "smc"))
def test_a_cache_that_overflows(name: str, ring: int, translate_user: bool) -> None:
    """4 KiB for translated code: each cache is thrown away again and again, and nothing of the guest's work changes."""
    guest = GUESTS[name]
    status, printed, vm = run(guest, BtOptions(ring=ring, translate_user=translate_user, cache_size=4 << 10), None)
    assert (status, missing_line(printed, guest.console)) == (guest.status, None), printed
    assert vm.backend.caches["kernel"].flushes > 2, "the cache never overflowed"
    if translate_user and name == "smc":  # the others have less user code
        assert vm.backend.caches["user"].flushes > 2, "the users' cache never overflowed"
    assert vm.stats.outside == 0


@pytest.mark.parametrize("ring", (1, 3))
@pytest.mark.parametrize("name", ALIKE)
def test_console_is_that_of_qemu(name: str, ring: int, tmp_path: Path) -> None:
    """The whole console of each run is, to the byte, what the same kernel prints on QEMU."""
    require(QEMU)
    guest = GUESTS[name]
    disk = empty_disk(guest, tmp_path)
    for reference in qemu_consoles(name):
        _, printed, _ = run(guest, BtOptions(ring=ring), disk)
        assert printed == reference


def test_the_oracle_says_something() -> None:
    """The comparison with QEMU compares something: QEMU's consoles are whole lines, and no two guests' are the same."""
    require(QEMU)
    consoles = [console for name in ("hello", "faults-io", "faults-step") for console in qemu_consoles(name)]
    assert all(console.endswith("\n") for console in consoles)
    assert len(set(consoles)) == len(consoles)
