"""`vmm demo linux`: the VMM, and then a module in the guest, writes all over a Linux; a second one beside it has its file unharmed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.layers import ROOT
from tests.require import require_file
from tools.cli import status
from tools.demo_linux import KERNEL
from tools.fetch_guests import guest

_SAYS = ("snapshot  the victim at work", "victim    round 1: 1 random bytes", "noticed   ", "healthy   ", "restored  it works on, with the checksum")


@pytest.fixture
def kernel() -> Path:
    """Debian's kernel."""
    require_file(guest("busybox"), "BusyBox (python -m tools.fetch_guests)")
    return require_file(guest(KERNEL), "Linux (python -m tools.fetch_guests)")


def _demonstrate(capfd: pytest.CaptureFixture[str], *more: str) -> str:
    """What the demonstration prints; all of it as it should be."""
    ended = status(["demo", "linux", "--every", "1", *more])
    out, err = capfd.readouterr()
    assert (ended, err) == (0, ""), out
    at = iter(out.splitlines())
    for part in _SAYS:
        assert any(part in line for line in at), out
    assert re.search(r"restored  memory [0-9a-f]{16}: as in the snapshot", out)
    assert re.search(r"healthy   \d+ checksums, all the same", out)
    assert "noticed   nothing" not in out
    return out


@pytest.mark.slow
@pytest.mark.timeout(450)
def test_damage_by_the_vmm(kernel: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The guest does not know what has hit it."""
    _demonstrate(capfd, "--seed", "2")


@pytest.mark.slow
@pytest.mark.timeout(450)
def test_damage_by_a_module(kernel: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """scribble.ko, built against the headers of the guest's kernel, does it from within."""
    version = kernel.name.removeprefix("vmlinuz-")
    if not Path(f"/lib/modules/{version}/build").exists() or shutil.which("gcc-12") is None:
        pytest.skip(f"no headers of the guest's kernel or no compiler for it (apt-get install linux-headers-{version}:i386 gcc-12)")
    make = ["make", "-C", str(ROOT / "guest_kernels/linux"), f"KERNEL={version}", f"OUT={tmp_path}"]
    built = subprocess.run(make, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert built.returncode == 0, built.stdout
    _demonstrate(capfd, "--module", str(tmp_path / "scribble.ko"))


@pytest.mark.parametrize(("arguments", "says"), (
    (["--module", "nowhere.ko"], "vmm: nowhere.ko: no such file or directory\n"),
    (["--trials", "3"], "vmm: --trials: goes with scribble\n"),
    (["--backend", "step"], "vmm: --backend step: must be hw or bt"),
))  # fmt: skip
def test_bad_usage(kernel: Path, arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    """One line, and status 2."""
    assert status(["demo", "linux", *arguments]) == 2
    assert capfd.readouterr().err.startswith(says)


def test_without_the_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Where it was not downloaded it says how it is."""
    monkeypatch.setenv("VMM_GUESTS", str(tmp_path))
    assert status(["demo", "linux"]) == 2
    assert capfd.readouterr().err == "vmm: linux-pae: not there (python -m tools.fetch_guests)\n"
