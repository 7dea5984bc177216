"""The bundled kernels' paravirtual flavours: what guests.toml expects, and the very console of the flavour for the PC."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest_kernels import Guest, kernels, missing_line
from tests.guests.test_bt import empty_disk
from tools.session import status_of
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.pv import PvOptions
from vmm.console import Recorder
from vmm.devices.disk import Disk
from vmm.vm import Vm, machine_for

GUESTS = kernels("xen")


def run(guest: Guest, options: Options, disk: Path | None) -> tuple[int, str, Vm]:
    """One run of a guest: status, console and VM."""
    console = Recorder()
    disks = [Disk(str(disk))] if disk else []
    vm = Vm(machine_for(guest.memory_mib, options), memory_mib=guest.memory_mib, options=options, disks=disks, console=console)
    try:
        vm.load(str(guest.file), append=guest.command_line)
        status = status_of(vm.run(guest.timeout_s))
    finally:
        for opened in disks:
            opened.close()
    return status, console.text, vm


@pytest.mark.parametrize("guest", GUESTS.values(), ids=lambda guest: guest.name)
@pytest.mark.parametrize("strict", (False, True), ids=("", "strict"))
def test_passes(guest: Guest, strict: bool, tmp_path: Path) -> None:
    """Status and console lines are those of guests.toml, in every run of the guest; nothing was refused, and no page table was stored into."""
    disk = empty_disk(guest, tmp_path)
    for expected in guest.runs():
        status, console, vm = run(guest, PvOptions(strict=strict), disk)
        assert (status, missing_line(console, expected)) == (guest.status, None), console
        assert not vm.stats.refused
        assert not vm.stats.architectural["page-table store"]


@pytest.mark.parametrize("guest", GUESTS.values(), ids=lambda guest: guest.name)
def test_prints_what_the_other_flavour_prints(guest: Guest, tmp_path: Path) -> None:
    """Line by line, the console is that of the same kernel for the PC under binary translation."""
    plain = kernels()[guest.name.removesuffix("-pv")]
    disk = empty_disk(guest, tmp_path)
    (tmp_path / "other").mkdir()
    other = empty_disk(plain, tmp_path / "other")
    for _ in guest.runs():
        assert run(guest, PvOptions(), disk)[1] == run(plain, BtOptions(), other)[1]
