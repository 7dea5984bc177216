"""`vmm run A B ...`: several guests at one terminal, from the arguments to the status, and what each line says of whose it is."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guest_kernels import kernels
from tests.cli import flat
from tests.cli.test_terminal import seat
from tests.layers import ROOT
from tools.cli import status

PATIENCE = 60.0


def test_lines_are_labelled(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Under three back-ends side by side each guest's lines are whole, in order, and behind its name."""
    record = tmp_path / "record.json"
    assert status(["run", "rings", "faults", "hello-pv", "rings", "--backend", "bt,hw,,bt", "--share", "2,1,1,1", "--json", str(record)]) == 0
    lines = capfd.readouterr().out.replace("\r", "").splitlines()
    for name in ("rings", "rings-2", "faults", "hello-pv"):
        own = [line.removeprefix(f"{name}: ") for line in lines if line.startswith(f"{name}: ")]
        for expected in kernels("any")[name.removesuffix("-2")].console:
            assert expected in own
    assert all(re.match(r"(rings|rings-2|faults|hello-pv): ", line) for line in lines)
    written = json.loads(record.read_text())
    assert [(vm["name"], vm["backend"], vm["share"], vm["status"]) for vm in written["vms"]] == [
        ("rings", "bt", 2, 0), ("faults", "hw", 1, 0), ("hello-pv", "pv", 1, 0), ("rings-2", "bt", 1, 0),
    ]  # fmt: skip
    assert written["world_switches"] > 3


def test_options_for_one_of_them(capfd: pytest.CaptureFixture[str]) -> None:
    """A number in front says which kernel an option is for; lists go by the kernels' order."""
    assert status(["run", "hello", "hello", "--append", "2:who=you", "--append", "1:who=them", "-m", "8,16", "--stats"]) == 0
    out, err = capfd.readouterr()
    assert sorted(out.replace("\r", "").splitlines()) == ["hello-2: Hello, you!", "hello: Hello, them!"]
    assert "world switches" in err


@pytest.mark.parametrize(("arguments", "says"), (
    (["--append", "who=x"], "--append who=x: of several kernels, say which: --append 1:who=x"),
    (["--disk", "3:x.img"], "--disk 3:x.img: of several kernels, say which"),
    (["--backend", "bt,hw,bt"], "--backend bt,hw,bt: 3 values for 2 kernels"),
    (["--backend", "native"], "--backend native: the guest has the whole machine: it cannot share one"),
    (["--share", "1,none"], "--share none: must be a number"),
    (["--share", "-1"], "--share -1: must be a number"),
    (["-m", "3000"], "give them less memory"),
    (["-d", "int"], "-d: goes with one kernel"),
    (["--console", "tape"], "--console tape: must be"),
))  # fmt: skip
def test_bad_usage(arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    """One line that names the option, status 2, and nothing has run."""
    assert status(["run", "hello", "hello", *arguments]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


def test_shares_want_company(capfd: pytest.CaptureFixture[str]) -> None:
    """With one kernel there is nothing to share."""
    assert status(["run", "hello", "--share", "2"]) == 2
    assert "go with several kernels" in capfd.readouterr().err


def test_the_first_bad_end_is_the_status(capfd: pytest.CaptureFixture[str]) -> None:
    """One guest's death or report is said with its name; the others' runs are not cut short."""
    assert status(["run", "hello", "faults-triple", "rings", "--timeout", "60"]) == 3
    out, err = capfd.readouterr()
    assert "vmm: faults-triple: died: triple fault" in err
    assert "rings: 35 passed, 0 failed" in out


def _expect(terminal: int, text: bytes) -> None:
    """Reads from a terminal until `text` has come."""
    seen, end = b"", time.monotonic() + PATIENCE
    while text not in seen:
        assert time.monotonic() < end, seen
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 4096)


def test_consoles_on_terminals_of_their_own(tmp_path: Path) -> None:
    """--console pty: each guest's line is a pseudo-terminal, whose name is said beforehand; what is typed there is that guest's."""
    image, *rest = flat.write(tmp_path, flat.ECHO)
    command = [sys.executable, "-c", "from tools.cli import main; main()", "run", image, image, *rest, "--console", "pty", "--timeout", "60"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = [process.stderr.readline() for _ in range(2)]
        terminals = [os.open(line.split()[-1], os.O_RDWR | os.O_NOCTTY) for line in said]
        for terminal, key in zip(terminals, (b"a", b"b"), strict=True):
            _expect(terminal, b">")
            os.write(terminal, key)
            _expect(terminal, key)
        for terminal in terminals:
            os.write(terminal, b"q")
        assert process.wait(PATIENCE) == 0
        for terminal in terminals:
            os.close(terminal)
    assert [line.split()[:-1] for line in said] == [f"vmm: the console of {name} is".split() for name in ("guest.bin", "guest.bin-2")]


def test_keys_go_to_one_at_a_time(tmp_path: Path) -> None:
    """What is typed goes to the first guest, behind Ctrl-A n to the next, and back when that one has ended; the last end is the run's."""
    image, *rest = flat.write(tmp_path, flat.ECHO)
    with seat([image, image, *rest]) as at:
        at.expect(b"guest.bin: >")
        at.type(b"a")
        at.expect(b"guest.bin: >a")
        at.type(b"\x01n")
        at.expect(b"guest.bin-2: >")
        at.type(b"b")
        at.expect(b"guest.bin-2: >b")
        at.type(b"q")
        at.expect(b"guest.bin-2: >bq")
        at.type(b"q")
        assert at.end() == 0


def test_ctrl_a_x_ends_them_all(tmp_path: Path) -> None:
    """With status 0, and with what was on the way shown."""
    image, *rest = flat.write(tmp_path, flat.ECHO)
    with seat([image, image, *rest]) as at:
        at.expect(b"guest.bin: >")
        at.type(b"\x01x")
        assert at.end() == 0
