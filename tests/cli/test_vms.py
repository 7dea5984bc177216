"""VMs as files and processes: made, started, talked to, snapshot, restored, stopped; and what is refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli import talker
from tests.cli.vms import LONG, Talk, home, started
from tools.cli import status
from tools.vms.commands import request
from tools.vms.sockets import connect
from vmm.store.directory import Directory

__all__ = ["home"]

@pytest.mark.parametrize("backend", ["bt", "hw", "native"])
def test_a_life(home: Path, capfd: pytest.CaptureFixture[str], backend: str) -> None:
    """Snapshots of a running VM, each the changes since the one before; back to the first in the same process, to the second in another."""
    talk = started(home, "one", "--backend", backend)
    talk.say("ab", talker.answers(2))
    assert status(["snapshot", "one"]) == 0
    talk.say("cd", talker.answers(2, 2))
    assert status(["snapshot", "one", "second"]) == 0
    talk.say("e", talker.answers(1, 4))
    out = capfd.readouterr().out
    assert "s1: whole, " in out and "second: changes since s1, " in out
    assert status(["restore", "one", "s1"]) == 0
    talk.say("f", talker.answers(1, 2))
    assert status(["snapshot", "one", "third"]) == 0
    assert "third: changes since s1, " in capfd.readouterr().out
    assert status(["stop", "one"]) == 0
    assert Directory("one").holder() is None and talk.console.recv(4096) == b""
    assert status(["restore", "one", "second"]) == 0
    talk = Talk("one")
    talk.say("gh", talker.answers(2, 4))
    assert status(["snapshot", "one", "--full"]) == 0
    assert "whole" in capfd.readouterr().out
    assert status(["stop", "one"]) == 0
    assert status(["start", "one", "--restore", "third"]) == 0
    talk = Talk("one")
    talk.say("i", talker.answers(1, 3))
    assert status(["ls"]) == 0
    assert "s1 second third s2" in capfd.readouterr().out


def test_a_process_says_what_it_is(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In ps and by stats; it needs little beside the guest's memory; a second VM is another process, and outlives a crash of the first."""
    started(home, "one")
    other = started(home, "two")
    pids = {name: Directory(name).holder() for name in ("one", "two")}
    for name, pid in pids.items():
        shown = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()  # what ps shows
        assert shown == f"vmm: {name} (talker.bin)"
    told = request("two", {"do": "stats"})
    assert (told["name"], told["pid"], told["memory"], told["backend"]) == ("two", pids["two"], 16, "bt")
    assert int(str(told["resident_mib"])) < 16 + 60
    assert status(["stats", "two"]) == 0 and "resident_mib" in capfd.readouterr().out
    assert pids["one"] is not None
    os.kill(pids["one"], signal.SIGKILL)
    Directory("one").wait_until_free()
    other.say("x", talker.answers(1))
    assert status(["stop", "one"]) == 2
    assert "one: is not running" in capfd.readouterr().err
    assert status(["start", "one"]) == 0


def test_the_terminal_of_a_vm(home: Path) -> None:
    """Its pty; and the console goes on where somebody else was before."""
    talk = started(home)
    talk.say("a", talker.answers(1))
    terminal = os.open(str(request("one", {"do": "stats"})["console"]), os.O_RDWR | os.O_NOCTTY)
    os.write(terminal, b"b")
    talk.until("b" + talker.answers(1, 1)[0])
    heard = b""
    while talker.answers(1, 1)[0].encode() not in heard:
        heard += os.read(terminal, 4096)
    os.close(terminal)
    later = Talk("one")
    later.until(">a" + talker.answers(1)[0])


def test_attach_by_pipe(home: Path) -> None:
    """What is piped in is typed, what the guest says comes out, and the end of the input detaches."""
    started(home)
    command = [sys.executable, "-c", "from tools.cli import main; main()", "attach", "one"]
    done = subprocess.run(command, input=b"xy", capture_output=True, timeout=LONG, check=True)
    first, second = talker.answers(2)
    assert done.stdout == f">x{first}y{second}".encode()


def test_disks_come_back_with_snapshots(home: Path) -> None:
    """A VM with an empty disk of its own and an image that is only read, on which another VM lies too."""
    (home / "shared.img").write_bytes(b"s" * 1024)
    for name in ("one", "two"):
        talk = started(home, name, "--disk-size", "1M", "--disk", str(home / "shared.img"))
        talk.say("a", talker.answers(1))
        assert status(["snapshot", name]) == 0
    assert status(["restore", "one", "s1"]) == 0
    names = os.listdir(Directory("one").path)
    assert "disk0.2.overlay" in names and "disk1.2.overlay" in names
    assert (home / "shared.img").read_bytes() == b"s" * 1024


def test_the_ways_in_which_a_start_goes_wrong(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One line and status 2 for each; the VM, if it runs, goes on."""
    talk = started(home)
    directory = Directory("one")
    for arguments, said in (
        (["start", "one"], "one: is running already"),
        (["start", "none"], "none: no such VM (see vmm ls)"),
        (["create", "one", "hello"], "one: there is a VM of that name already"),
        (["create", "../x", "hello"], "'../x': no name for a VM"),
        (["create", "x", "nothing"], "nothing: neither a bundled kernel nor a file"),
        (["create", "x", "hello", "--disk", "/nowhere"], "/nowhere: no such file or directory"),
        (["create", "x", "hello", "--disk-size", "7"], "--disk-size 7: "),
        (["restore", "one", "s1"], f"{directory.snapshot('s1')}: no such file or directory"),
        (["restore", "one"], "one: there is no snapshot"),
        (["snapshot", "one", "a/b"], "'a/b': no name for a snapshot"),
        (["stop", "none"], "none: no such VM"),
        (["attach", "none"], "none: no such VM"),
    ):
        assert status(arguments) == 2, arguments
        assert capfd.readouterr().err.startswith(f"vmm: {said}"), arguments
    assert status(["snapshot", "one", "s1"]) == 0
    assert status(["snapshot", "one", "s1"]) == 2
    path = Path(directory.snapshot("s1"))
    path.write_bytes(path.read_bytes()[:-20])
    assert status(["restore", "one", "s1"]) == 2
    assert "cut off" in capfd.readouterr().err
    talk.say("a", talker.answers(1))
    assert status(["stop", "one"]) == 0
    assert status(["start", "one", "--restore", "s1"]) == 2
    assert "cut off" in capfd.readouterr().err
    Path(directory.file("vm.toml")).write_text('kernel = "hello"\ncolour = 3\n')
    assert status(["start", "one"]) == 2
    assert capfd.readouterr().err.startswith(f"vmm: {directory.file('vm.toml')}:2: colour: no such key")


def test_a_snapshot_that_could_not_be_written(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Is no parent: the next one is whole, and right."""
    talk = started(home)
    assert status(["snapshot", "one"]) == 0
    folder = Path(Directory("one").file("snapshots"))
    folder.rename(home / "away")
    talk.say("a", talker.answers(1))
    assert status(["snapshot", "one"]) == 2
    assert "no such file or directory" in capfd.readouterr().err
    (home / "away").rename(folder)
    assert status(["snapshot", "one"]) == 0
    assert "s2: whole" in capfd.readouterr().out
    assert status(["restore", "one", "s2"]) == 0
    talk.say("b", talker.answers(1, 1))


def test_bad_requests_do_no_harm(home: Path) -> None:
    """Whoever says nonsense to the control socket is told so or hung up on; the VM goes on."""
    talk = started(home)
    for nonsense in (b"\n", b"[]\n", b"{\n", b'{"do": "dance"}\n', b'{"do": "snapshot", "name": "../x"}\n', b"x" * 100_000):
        with connect(Directory("one").path, "control", "one") as connection:
            connection.settimeout(LONG)
            try:
                connection.sendall(nonsense)
                assert b"error" in connection.recv(4096)
            except OSError:
                pass
    with connect(Directory("one").path, "control", "one"):
        talk.say("a", talker.answers(1))


def test_an_idle_vm_costs_little(home: Path) -> None:
    """Less than a twentieth of a core in a second of nothing."""
    started(home)
    before = float(str(request("one", {"do": "stats"})["cpu_seconds"]))
    time.sleep(1.5)
    assert float(str(request("one", {"do": "stats"})["cpu_seconds"])) - before < 0.15


def test_poke(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Damage to a running guest, asked for from outside: what was changed where is said, and the VM can go back to its snapshot."""
    started(home)
    assert status(["snapshot", "one"]) == 0
    capfd.readouterr()
    assert status(["poke", "one", "--bytes", "3", "--seed", "9"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert len(out) == 4
    assert out[-1].startswith("one: 3 bytes written")
    assert status(["poke", "one", "--bytes", "9999999"]) == 2
    assert status(["poke", "one", "--seed", "-1"]) == 2
    assert status(["restore", "one", "s1"]) == 0
    assert status(["stop", "one"]) == 0
