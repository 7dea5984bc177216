"""Snapshots of machines that began in a BIOS: ROM, the RAM behind it and what firmware talks to go along."""

import struct
from pathlib import Path

import pytest

from tests.cli.test_migration_real import moves
from tests.cli.vms import Talk, home
from tests.guests.test_linux_snapshot import Typist
from tests.guests.test_seabios import BOOTED, SEABIOS, boot_disk, grub_disk
from tests.guests.test_snapshot import run_until
from tests.require import require_file
from tools.cli import status
from tools.session import make
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions
from vmm.boot.bios import Bios, read_bios
from vmm.console import Console, Recorder
from vmm.devices.disk import Point
from vmm.devices.overlay import Overlay, lay
from vmm.errors import InputError
from vmm.exits import End
from vmm.snapshot import Snapshot
from vmm.snapshot.file import read, write
from vmm.vm import Vm

__all__ = ["home"]

MEMORY_MIB = 64


def seabios(image: str = "bios-256k.bin") -> Bios:
    return read_bios(str(require_file(SEABIOS / image, "SeaBIOS (Debian's package seabios)")))


def overlay(path: Path, below: Point) -> Overlay:
    lay(str(path), below)
    return Overlay(str(path))


def begun(disk: Overlay, console: Console, image: str = "bios-256k.bin", *, icount: bool = False) -> Vm:
    vm = make(MEMORY_MIB, HwOptions(mmu="nested"), [disk], console, icount, bios=seabios(image))
    vm.reset()
    return vm


def goes_on(snapshot: Snapshot, path: Path, disk: Overlay, console: Console) -> tuple[Vm, Overlay]:
    """In another VM, by a file; a BIOS that was in the snapshot is all that it needs."""
    write(str(path), snapshot)
    disk.close()
    snapshot = read(str(path))
    disk = overlay(path.with_suffix(".overlay"), snapshot.disks[0])
    vm = make(MEMORY_MIB, HwOptions(), [disk], console, snapshot.counted, snapshot=snapshot)
    vm.restore(snapshot)
    return vm, disk


@pytest.mark.timeout(280)
@pytest.mark.parametrize("image", ("bios.bin", "bios-256k.bin"))
def test_a_boot_that_is_handed_on(image: str, tmp_path: Path) -> None:
    """From the first instructions, where all of the ROM is read, to the boot sector: the same console and number of instructions as without."""
    boot_disk(tmp_path / "disk")
    expected, console = Recorder(), Recorder()
    whole = begun(overlay(tmp_path / "a", Point(str(tmp_path / "disk"), 0)), expected, image, icount=True)
    end = whole.run(120)
    assert end.why is End.REPORTED and BOOTED[1] in expected.text and whole.icount is not None
    disk = overlay(tmp_path / "b", Point(str(tmp_path / "disk"), 0))
    vm = begun(disk, console, image, icount=True)
    for n in range(10):
        run_until(vm, whole.icount.total() * (2 * n + 1) // 22 if n else 1000)
        vm, disk = goes_on(vm.snapshot(), tmp_path / str(n), disk, console)
    assert (vm.run(120), console.text) == (end, expected.text)
    assert vm.icount is not None and vm.icount.total() == whole.icount.total()
    disk.close()


@pytest.mark.timeout(180)
def test_grub_by_the_bios(tmp_path: Path) -> None:
    """At its prompt, it goes on to use the BIOS's keyboard, screen and disk; a second snapshot tells the changes only."""
    console = Typist()
    disk = overlay(tmp_path / "a", Point(str(grub_disk(tmp_path, "serial")), 0))
    vm = begun(disk, console)
    console.until(vm, "grub> ")
    vm.stopped = None
    parent = vm.snapshot()
    assert len(vm.snapshot(parent).frames) < 50 < len(parent.frames)
    vm, disk = goes_on(parent, tmp_path / "one", disk, console)
    console.until(vm, "(hd0,msdos1)", "ls\r")
    console.until(vm, "still", "echo sti''ll\r")
    disk.close()


def test_what_does_not_go(tmp_path: Path) -> None:
    """A BIOS takes guest mode; a file whose BIOS is none; a VM without one."""
    vm = begun(overlay(tmp_path / "a", Point(str(boot_disk(tmp_path / "disk")), 0)), Recorder())
    vm.run(0.05)
    snapshot = vm.snapshot()
    with pytest.raises(InputError, match="takes --backend hw with --mmu nested"):
        make(MEMORY_MIB, BtOptions(), (), Recorder(), False, snapshot=snapshot)
    with pytest.raises(InputError, match="goes on beside it"):
        make(MEMORY_MIB, HwOptions(), vm.disks, Recorder(), False).restore(snapshot)
    for wrong in (b"", b"\1", struct.pack("<I", 0x10000) + bytes(0xFFFF), struct.pack("<I", 5) + bytes(5)):
        path = str(tmp_path / "wrong")
        object.__setattr__(snapshot, "bios", Bios("", wrong[4:], b""))
        write(path, snapshot)
        with pytest.raises(InputError, match="a BIOS that is none"):
            read(path)


@pytest.mark.timeout(180)
def test_a_vm_that_is_a_process(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """GRUB's disk under a BIOS: snapshot, migrated, and gone back to."""
    disk = grub_disk(home, "serial")
    image = str(require_file(SEABIOS / "bios-256k.bin", "SeaBIOS (Debian's package seabios)"))
    for name in ("one", "two"):
        assert status(["create", name, image, "--bios", "--disk", str(disk), "-m", "64"]) == 0
    assert status(["start", "one"]) == 0
    here = Talk("one")
    here.until("grub> ")
    assert status(["snapshot", "one"]) == 0
    there = moves(capfd, here)
    there.console.sendall(b"echo th''ere\r")
    there.until("there")
    assert status(["restore", "one"]) == 0
    here = Talk("one")
    here.console.sendall(b"echo ag''ain\r")
    here.until("again")
    (home / "none").write_bytes(b"no BIOS")
    assert status(["create", "three", str(home / "none"), "--bios"]) == 2
    assert "a BIOS image is of whole units of 64 KiB" in capfd.readouterr().err
