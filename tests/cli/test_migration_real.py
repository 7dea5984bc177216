"""Real kernels migrate: Linux and xv6 (XV6=DIR) in the midst of a loop of checksums, GRUB for Xen at its prompt."""

import hashlib
import random
import re
from pathlib import Path

import pytest

from tests.cli.vms import Talk, home
from tests.guests.linux import OLD_PC
from tests.require import require_file, require_xv6
from tools.cli import status
from tools.fetch_guests import guest
from tools.initrd import READY, make_initrd
from vmm.store.directory import Directory

__all__ = ["home"]

TIMES = 300


def moves(capfd: pytest.CaptureFixture[str], source: Talk) -> Talk:
    """Migrates "one" to "two", which is started for it."""
    capfd.readouterr()
    assert status(["start", "two", "--incoming", "tcp:127.0.0.1:0"]) == 0
    port = re.search(r"waits at port (\d+)", capfd.readouterr().out)
    assert port
    there = Talk("two")
    assert status(["migrate", "one", f"tcp:127.0.0.1:{port[1]}"]) == 0
    said = capfd.readouterr().out
    assert "round 1: " in said and "it stood still for " in said
    assert Directory("one").holder() is None
    return there


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("backend", ("hw", "bt"))
def test_linux(home: Path, capfd: pytest.CaptureFixture[str], backend: str) -> None:
    """Each checksum of the loop is right, before and after, and the shell answers at the target."""
    noise = random.Random(1).randbytes(100_000)
    image = require_file(guest("linux-pae"), "Linux (python -m tools.fetch_guests)")
    busybox = require_file(guest("busybox"), "BusyBox (python -m tools.fetch_guests)")
    (home / "initrd.cpio").write_bytes(make_initrd(busybox.read_bytes(), {"noise": noise}))
    for name in ("one", "two"):
        assert status(["create", name, str(image), "-m", "128", "--backend", backend, "--append", OLD_PC, "--initrd", str(home / "initrd.cpio")]) == 0
    assert status(["start", "one"]) == 0
    here = Talk("one")
    here.console.settimeout(300)
    here.until(READY)
    here.console.sendall(f"i=0; while [ $i -lt {TIMES} ]; do md5sum /noise; i=$((i+1)); done | sort | uniq -c; echo d''one\n".encode())
    there = moves(capfd, here)
    there.console.settimeout(300)
    there.until("\ndone")
    assert f"{TIMES} {hashlib.md5(noise).hexdigest()}  /noise" in there.heard.decode()
    there.console.sendall(b"echo sti''ll\n")
    there.until("\nstill")


def test_grub_for_xen(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A paravirtual guest at its prompt, which knows its machine frames: it answers at the target as before."""
    kernel = require_file(guest("grub-xen"), "GRUB for Xen (python -m tools.fetch_guests)")
    for name in ("one", "two"):
        assert status(["create", name, str(kernel), "-m", "64"]) == 0
    assert status(["start", "one"]) == 0
    here = Talk("one")
    here.until("grub> ")
    there = moves(capfd, here)
    there.console.sendall(b"echo there\n")
    there.until("there")
    there.console.sendall(b"lsmmap\n")
    there.until("available RAM")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("source, target", (("bt", "hw"), ("hw", "bt")))
def test_xv6(home: Path, capfd: pytest.CaptureFixture[str], source: str, target: str) -> None:
    """In the midst of its own tests, which compute, write and read back: all of them pass."""
    kernel = require_xv6("kernelmemfs")
    for name, backend in (("one", source), ("two", target)):
        assert status(["create", name, str(kernel), "-m", "256", "--backend", backend]) == 0
    assert status(["start", "one"]) == 0
    here = Talk("one")
    here.until("$ ")
    here.console.sendall(b"usertests\n")
    here.until("usertests starting")
    there = moves(capfd, here)
    there.console.settimeout(500)
    there.until("ALL TESTS PASSED")
