"""Kernels that exist for Xen, unmodified, under paravirtualization: GNU Mach's boot log against its native flavour's, and GRUB at its prompt.

Knows which lines speak of the platform; what the two flavours share must be the same.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.guests.dialogue import FINISHED, Dialogue, Step
from tests.guests.test_gnumach import LAST_LINE
from tests.require import require_file
from tools.fetch_guests import guest
from vmm.backends.pv import PvOptions
from vmm.devices.disk import Disk
from vmm.exits import End
from vmm.vm import Vm, machine_for

TIMEOUT = 60.0
MACH_LOG = """\
GNU Mach 1.8+git20221224-xen-486
Running on xen-3.0-x86_32p.
biosmem: physical memory map:
biosmem: 000000000000000000:{memory:018x}, available
"""


def mach() -> Path:
    """The downloaded kernel."""
    return require_file(guest("gnumach-xen"), "GNU Mach for Xen (python -m tools.fetch_guests)")


def grub() -> Path:
    """The downloaded boot loader."""
    return require_file(guest("grub-xen"), "GRUB for Xen (python -m tools.fetch_guests)")


def talk(kernel: Path, steps: list[Step], memory_mib: int = 128, *, disks: Sequence[Disk] = ()) -> tuple[Vm, str]:
    """Holds a dialogue with a kernel; returns its VM and console."""
    console = Dialogue(steps)
    vm = Vm(machine_for(memory_mib, PvOptions()), memory_mib=memory_mib, options=PvOptions(), console=console, disks=disks)
    console.attach(vm)
    vm.load(str(kernel))
    stop = vm.run(TIMEOUT)
    assert stop.reason == FINISHED, f"{stop}: {console.text}"
    return vm, console.text


@pytest.mark.parametrize("memory_mib", (64, 128, 900))
def test_mach_boots(memory_mib: int) -> None:
    """To the line in which the native flavour, too, asks for its bootstrap modules; it found the memory that it has; nothing was refused."""
    vm, log = talk(mach(), [Step(LAST_LINE)], memory_mib)
    assert log.replace("\r", "").startswith(MACH_LOG.format(memory=memory_mib << 20))
    assert int(re.findall(r"page table size: (\d+) entries", log)[0]) <= memory_mib * 256
    assert not vm.stats.refused
    assert vm.stats.hypercalls["mmu_update"] > 400
    assert vm.stats.architectural["page-table store"] == 2, "its two stores into a directory that is in use"


def test_strictly_as_xen() -> None:
    """With the strict policy those two stores are page faults, as they would be on Xen, and this kernel does not boot."""
    console = Dialogue([Step(LAST_LINE)])
    vm = Vm(machine_for(128, PvOptions()), memory_mib=128, options=PvOptions(strict=True), console=console)
    console.attach(vm)
    vm.load(str(mach()))
    assert vm.run(TIMEOUT).why is End.DIED
    assert vm.stats.architectural["page-table store"] == 0


def test_grub_at_its_prompt() -> None:
    """GRUB's shell: its memory map, an echo, and the reboot that ends the run."""
    vm, _ = talk(grub(), [Step("grub> ", "lsmmap\n"), Step("available RAM", "echo one two\n"), Step("one two")])
    assert not [why for why in vm.stats.refused if why != "an unknown command"]
    console = Dialogue([Step("grub> ", "reboot\n"), Step("never")])
    vm = Vm(machine_for(128, PvOptions()), memory_mib=128, options=PvOptions(), console=console)
    console.attach(vm)
    vm.load(str(grub()))
    assert vm.run(TIMEOUT).why is End.RESET


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Disk]:
    """A disk that is a tar archive with one file of some pages."""
    path = tmp_path / "disk"
    with tarfile.open(path, "w") as tar:
        entry = tarfile.TarInfo("greeting.txt")
        text = b"from the disk\n" + b"." * 70000 + b"\nand its end\n"
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    disk = Disk(str(path))
    yield disk
    disk.close()


def test_grub_reads_a_disk(archive: Disk) -> None:
    """The block device by grants: found through the store, connected, and read, in requests of several frames."""
    steps = [Step("grub> ", "ls\n"), Step("(xen/xvda)", "cat (xen/xvda)/greeting.txt\n"), Step("from the disk"), Step("and its end")]
    vm, _ = talk(grub(), steps, disks=[archive])
    assert vm.stats.hypercalls["event_channel_op"] > 20


def test_mach_finds_a_disk(archive: Disk) -> None:
    """GNU Mach's own driver for the block device connects to it."""
    _, log = talk(mach(), [Step("xvd0: dom0's VBD 51712 (disk0,w)"), Step(LAST_LINE)], disks=[archive])
    assert "No block device" not in log
