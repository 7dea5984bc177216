"""`vmm compare` as a user has it: tables, JSON, cells that do not run, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.layers import ROOT
from tests.require import require_file
from tools.cli import status
from tools.compare.model import NANO
from tools.fetch_guests import guest


def compare(*words: str) -> int:
    """The command's exit status, with no more rounds than needed."""
    return status(["compare", *words, "--rounds", "1"])


def test_three_readings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Time, exits and modelled cycles have a table each, the answers stand below, and JSON has all of it."""
    path = tmp_path / "found.json"
    assert compare("nano", "--rows", "cr3wr", "--backends", "native,bt,hw", "--json", str(path)) == 0
    shown = capfd.readouterr().out
    for heading in ("CPU time for one", "architectural exits for one", "modelled cycles of exits", "answers, among"):
        assert heading in shown
    assert "bt: 1 exit: callout (mov cr3,r)" in shown and "hw: 0 exits, in guest mode" in shown
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["kernel"], row["row"], list(row["cells"])) == ("nano", "cr3wr", ["native", "bt", "hw"])
    assert row["cells"]["bt"]["architectural"] == {"callout": 1.0}
    assert row["cells"]["bt"]["cycles"]["prescott"] == 1454
    assert row["cells"]["native"]["ratio"] == 1 and row["cells"]["bt"]["time_ns"] > 0


def test_a_guest_that_hangs_marks_its_own_cell(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A time limit that single-stepping cannot keep: that cell says so, and the others have their results."""
    path = tmp_path / "found.json"
    assert compare("work", "--rows", "stream", "--backends", "native,step", "--timeout", "1", "--json", str(path)) == 0
    cells = json.loads(path.read_text())["rows"][0]["cells"]
    assert cells["step"]["reason"].startswith("time-out after 1 s") and cells["step"]["count"] == 0
    assert not cells["native"]["reason"] and cells["native"]["count"] > 1
    assert "step: stream: time-out" in capfd.readouterr().out


def test_the_same_real_kernel_three_ways(tmp_path: Path) -> None:
    """GNU Mach by translation and in guest mode, and GNU Mach for Xen: each boots, and only the latter calls."""
    require_file(guest("gnumach"), "GNU Mach (python -m tools.fetch_guests)")
    require_file(guest("gnumach-xen"), "GNU Mach for Xen (python -m tools.fetch_guests)")
    path = tmp_path / "mach.json"
    assert compare("mach", "--backends", "bt,hw,pv", "--json", str(path)) == 0
    cells = json.loads(path.read_text())["rows"][0]["cells"]
    assert not [cell["reason"] for cell in cells.values() if cell["reason"]]
    assert cells["pv"]["hypercalls"] and not cells["bt"]["hypercalls"]
    assert cells["bt"]["architectural"]["callout"] > 0 and "callout" not in cells["hw"]["architectural"]


def test_what_is_absent_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A real kernel that is not here is no error."""
    monkeypatch.setenv("VMM_GUESTS", str(tmp_path))
    monkeypatch.delenv("XV6", raising=False)
    assert compare("mach", "xv6", "--backends", "bt,pv") == 0
    shown = capfd.readouterr().out
    assert "bt: mach: absent: python -m tools.fetch_guests gets it" in shown
    assert "bt: xv6: absent: XV6=DIR" in shown and "pv: xv6: there is no xv6 for this way" in shown


def test_against_earlier_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Results that are kept are compared with: the same row takes no more exits; one that took fewer before is worse now, status 1."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    words = ("nano", "--rows", "iret", "--backends", "bt-trap")
    assert compare(*words, "--save", "before") == 0
    kept = tmp_path / "vmm/compare/before.json"
    values = json.loads(kept.read_text())
    values["rows"][0]["cells"]["bt-trap"]["architectural"] = {"callout": 1.0}
    kept.write_text(json.dumps(values))
    assert compare(*words, "--against", "before") == 1
    assert "against before: 1 cells, 1 worse" in capfd.readouterr().out


def test_what_slips_is_a_reason(capfd: pytest.CaptureFixture[str]) -> None:
    """A wrong result is no result."""
    assert compare("nano", "--rows", "cli_sti", "--backends", "trap") == 0
    assert "trap: cli_sti: wrong result: the guest says 'FAIL: cli_sti:" in capfd.readouterr().out


def test_counted_instructions(tmp_path: Path) -> None:
    """Under --icount what does not count says so, and exits of two comparisons are equal."""
    found = []
    for name in ("one.json", "two.json"):
        path = tmp_path / name
        assert compare("nano", "--rows", "iret", "--backends", "bt,bt-trap,pv", "--icount", "--json", str(path)) == 0
        found.append(json.loads(path.read_text())["rows"][0]["cells"])
    assert found[0]["bt-trap"]["architectural"] == found[1]["bt-trap"]["architectural"] == {"callout": 2.0}
    assert found[0]["bt"]["retired"] == found[1]["bt"]["retired"] > 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nono"], "vmm: nono: no such kernel to compare (there are nano, work, mach, xv6, linux)"),
        (["--rows", "nothing"], "vmm: --rows nothing: must be of null, syscall, in, out,"),
        (["--backends", "bt,kvm"], "vmm: --backends kvm: must be of native, bt, bt-trap,"),
        (["--jobs", "0"], "vmm: --jobs 0: must be a number above 0"),
        (["--limit", "0"], "vmm: --limit 0: must be a number of seconds above 0"),
        (["--timeout", "x"], "vmm: --timeout x: must be a number of seconds above 0"),
        (["--json", "/no/such/folder/x"], "vmm: /no/such/folder/x: no such directory: /no/such/folder"),
    ],
)
def test_bad_input(words: list[str], complaint: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Status 2, one line with what is valid, and nothing runs."""
    assert compare(*words) == 2
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err.startswith(complaint) and shown.err.count("\n") == 1


@pytest.mark.parametrize(("number", "reach"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)])
def test_an_interruption_shows_what_there_is(tmp_path: Path, number: signal.Signals, reach: Callable[[int, int], None]) -> None:
    """Ctrl-C, which a terminal sends to all, and SIGTERM: nothing more is run, results are written, and what is missing says so. Status 130, 143."""
    path = tmp_path / "found.json"
    command = [sys.executable, "-c", "from tools.cli import main; main()", "compare", "nano", "--jobs", "1", "--rounds", "50", "--json", str(path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def listen() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background ignores it, and so do its children

    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, preexec_fn=listen, **pipes) as process:  # type: ignore[call-overload]
        children = Path(f"/proc/{process.pid}/task")
        end = time.monotonic() + 60
        while not any(task.joinpath("children").read_text() for task in children.iterdir()):
            assert process.poll() is None and time.monotonic() < end
        reach(process.pid, number)
        shown, errors = process.communicate(timeout=90)
    assert process.returncode == 128 + number and "Traceback" not in errors, errors
    rows = json.loads(path.read_text())["rows"]
    assert [row["row"] for row in rows] == list(NANO)
    assert {cell["reason"] for cell in rows[-1]["cells"].values()} == {"interrupted"} and "hlt_wake: interrupted" in shown
