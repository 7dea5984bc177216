"""A host whose disk is full, as a limit on the size of files has it: one line for the user, and the VM is still whole."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import talker
from tests.cli.vms import Talk, home, started
from tests.layers import ROOT
from tools.cli import status
from vmm.store.directory import Directory

__all__ = ["home"]


def limited(limit: int, *command: str) -> tuple[int, str]:
    """`vmm` where no file may grow beyond so many bytes: status and what it says is wrong. A process that it starts has the same limit."""

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    command = (sys.executable, "-c", "from tools.cli import main; main()", *command)
    done = subprocess.run(command, cwd=ROOT, env=os.environ, preexec_fn=limit_files, capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stderr


def test_there_is_no_half_of_a_vm(home: Path) -> None:
    """A directory that could not be filled is taken away: the name is free. An overlay that could not be laid is not there."""
    kernel = str(home / "talker.bin")
    code, said = limited(100, "create", "one", kernel, "-m", "16", "--disk-size", "1M")
    assert (code, said.startswith("vmm: "), said.count("\n")) == (2, True, 1)
    assert not os.path.exists(Directory("one").path)
    assert status(["create", "one", kernel, "-m", "16", "--disk-size", "1M"]) == 0
    code, said = limited(5000, "start", "one")
    assert (code, "file too large" in said, said.count("\n")) == (2, True, 1)
    assert not [name for name in os.listdir(Directory("one").path) if "overlay" in name]
    assert status(["start", "one"]) == 0


def test_a_running_vm_goes_on(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without the snapshot that did not fit, of which nothing is left."""
    assert status(["create", "one", str(home / "talker.bin"), "-m", "16"]) == 0
    assert limited(2000, "start", "one")[0] == 0
    talk = Talk("one")
    talk.until(">")
    talk.say("ab", talker.answers(2))
    capfd.readouterr()
    assert status(["snapshot", "one"]) == 2
    assert capfd.readouterr().err.endswith("s1.snapshot: file too large\n")
    assert not os.listdir(Directory("one").file("snapshots"))
    talk.say("c", talker.answers(1, 2))


def test_a_vm_that_cannot_go_back_stays(home: Path) -> None:
    """No overlay fits for a snapshot's disk: the VM's own is still its newest, and later it goes back."""
    talk = started(home, "one", "--disk-size", "1M")
    assert status(["snapshot", "one"]) == 0
    talk.say("a", talker.answers(1))
    assert status(["stop", "one"]) == 0
    before = sorted(os.listdir(Directory("one").path))
    code, said = limited(5000, "restore", "one")
    assert (code, "file too large" in said) == (2, True)
    assert sorted(os.listdir(Directory("one").path)) == before
    assert status(["restore", "one"]) == 0
    Talk("one").say("a", talker.answers(1))
