"""`vmm run --restore`: a guest goes on from a snapshot's file; and what is refused."""

from pathlib import Path

import pytest

from guest_kernels import kernels
from tools.cli import status
from vmm.backends.bt import BtOptions
from vmm.console import Recorder
from vmm.devices.disk import Point
from vmm.devices.overlay import Overlay, lay
from vmm.exits import End, Stop
from vmm.snapshot.file import write
from vmm.vm import Vm, machine_for


def begun(name: str, path: Path, until: str, disk: Overlay | None = None) -> str:
    """Runs a bundled kernel until it has printed a text, and writes a snapshot of it; returns what it has printed."""
    guest, console = kernels()[name], Recorder()
    vm = Vm(machine_for(guest.memory_mib, BtOptions()), memory_mib=guest.memory_mib, console=console, disks=[disk] if disk else [], icount=True)
    vm.load(str(guest.file), append=guest.command_line)
    written = vm.board.serial._console

    def look(data: bytes) -> None:
        written(data)
        if until in console.text:
            vm.stop(Stop(End.QUIT, "here"))

    vm.board.serial._console = look
    assert vm.run(60).reason == "here"
    write(str(path), vm.snapshot())
    return console.text


def test_a_guest_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What was printed before and after is the whole; on another back-end too."""
    path = tmp_path / "one"
    before = begun("faults", path, "PASS: #GP: iret beyond the GDT")
    assert status(["run", "faults", "--icount"]) == 0
    whole = capfd.readouterr().out
    for backend in ("auto", "native", "hw"):
        assert status(["run", "--restore", str(path), "--backend", backend]) == 0
        assert before + capfd.readouterr().out == whole


def test_disks_are_as_they_were(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A guest in the middle of a disk's test, twice from one snapshot; the disk's own files stay as they are."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4194304))
    lay(str(tmp_path / "disk.1"), Point(str(image), 0))
    disk = Overlay(str(tmp_path / "disk.1"))
    path = tmp_path / "one"
    begun("disk", path, "PASS: 6 interrupts: LBA28", disk)
    disk.close()
    before = (tmp_path / "disk.1").read_bytes()
    for _ in range(2):
        assert status(["run", "--restore", str(path)]) == 0
        assert "40 passed, 0 failed" in capfd.readouterr().out
    assert (tmp_path / "disk.1").read_bytes() == before and image.read_bytes() == bytes(4194304)
    (tmp_path / "disk.1").unlink()
    assert status(["run", "--restore", str(path)]) == 2
    assert capfd.readouterr().err == f"vmm: {tmp_path}/disk.1: no such file or directory\n"


@pytest.mark.parametrize("more, said", [(["hello"], "KERNEL"), (["-m", "64"], "-m"), (["--disk", "x"], "--disk"), (["--backend", "pv"], "--restore")])
def test_what_does_not_go_with_it(tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str], said: str) -> None:
    """One line and status 2."""
    path = tmp_path / "one"
    begun("hello", path, "Hello")
    assert status(["run", "--restore", str(path), *more]) == 2
    assert capfd.readouterr().err.startswith(f"vmm: {said}: ")


def test_what_is_no_snapshot(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One line and status 2."""
    (tmp_path / "one").write_bytes(b"no")
    assert status(["run", "--restore", str(tmp_path / "one")]) == 2
    assert capfd.readouterr().err == f"vmm: {tmp_path}/one: not a snapshot\n"
