"""`vmm run` from its arguments to its status, in this process: what is printed where, and what the files say that it writes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest_kernels import kernels, missing_line
from tests.cli import flat
from tests.layers import ROOT
from tools.cli import status


@contextmanager
def standard_input(data: bytes) -> Iterator[None]:
    """Descriptor 0 is a pipe that holds `data`, at its end after that."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    saved = os.dup(0)
    os.dup2(reader, 0)
    os.close(reader)
    try:
        yield
    finally:
        os.dup2(saved, 0)
        os.close(saved)


def test_hello(capfd: pytest.CaptureFixture[str]) -> None:
    """The serial line is standard output and nothing else is; a guest that ends well is not commented."""
    assert status(["run", "hello"]) == 0
    assert capfd.readouterr() == ("Hello, students!\r\n", "")


def test_command_line_and_memory(capfd: pytest.CaptureFixture[str]) -> None:
    """What is given goes before what the bundled kernel has."""
    assert status(["run", "hello", "--append", "who=all", "-m", "8M", "--ring", "3", "--stubs", "trap"]) == 0
    assert capfd.readouterr().out == "Hello, all!\r\n"


def test_a_reported_value(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Anything but 0 is status 1, with the value on standard error and in the record."""
    record = tmp_path / "record.json"
    assert status(["run", *flat.write(tmp_path, flat.REPORT_5), "--json", str(record)]) == 1
    assert capfd.readouterr().err.startswith("vmm: the guest reported 5 ")
    written = json.loads(record.read_text())
    assert (written["status"], written["value"], written["end"]) == (1, 5, "reported")
    assert list(tmp_path.iterdir()).count(record) == 1 and len(list(tmp_path.iterdir())) == 2


def test_qemu_exit(tmp_path: Path) -> None:
    """--qemu-exit gives what QEMU's isa-debug-exit would."""
    assert status(["run", *flat.write(tmp_path, flat.REPORT_5), "--qemu-exit"]) == 11
    assert status(["run", "hello", "--qemu-exit"]) == 1


def test_a_death_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    """A triple fault is status 3, with state, a back-trace with names, and the last exits and blocks."""
    assert status(["run", "faults-triple"]) == 3
    report = capfd.readouterr().err
    assert report.startswith("vmm: died: triple fault")
    frames = (r"#0 .* triple_fault\+", r"#1 .* main\+", r"#3 .* start\+")
    for part in (r"^EAX=[0-9a-f]{8} EBX=", r"^CR0=", r"^CS =0008", r"^IDT=     00000000 00000000", *frames):
        assert re.search(part, report, re.MULTILINE), part
    assert "last exits" in report and "last blocks" in report


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (flat.STOP_FOR_GOOD, "halted for good"),
        (flat.CALL_NOWHERE, "executes at 0xf0000000"),
    ],
)
def test_other_deaths(tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, reason: str) -> None:
    """`cli; hlt` and running out of the world end the run with their reason; a call to nowhere still shows its caller."""
    assert status(["run", *flat.write(tmp_path, text), "--timeout", "5"]) == 3
    report = capfd.readouterr().err
    assert reason in report.splitlines()[0]
    if text == flat.CALL_NOWHERE:
        assert "#0  f0000000" in report and "#1  001000" in report


def test_time_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A guest without an end is ended, and it is said where it was."""
    assert status(["run", *flat.write(tmp_path, flat.LOOP), "--timeout", "0.2"]) == 124
    assert re.fullmatch(r"vmm: time-out after 0\.2 s, at 0008:00100000\n", capfd.readouterr().err)


def test_reset(tmp_path: Path) -> None:
    """A reset starts the guest again, on the same clock of --timeout; --no-reboot ends the run with 0."""
    record = tmp_path / "record.json"
    guest = flat.write(tmp_path, flat.RESET)
    assert status(["run", *guest, "--no-reboot", "--json", str(record)]) == 0
    assert json.loads(record.read_text())["end"] == "reset"
    assert status(["run", *guest, "--timeout", "0.3", "--json", str(record)]) == 124
    assert json.loads(record.read_text())["restarts"] >= 1


def test_a_disk_of_ones_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A given image is used and stays: the second run finds what the first one wrote."""
    guest, image = kernels()["disk"], tmp_path / "disk.img"
    image.touch()
    os.truncate(image, guest.disk_bytes or 0)
    for expected in guest.runs():
        assert status(["run", "disk", "--disk", str(image)]) == 0
        assert missing_line(capfd.readouterr().out, expected) is None


def test_the_record_is_as_documented(tmp_path: Path) -> None:
    """The record has exactly the keys of docs/JSON.md."""
    record = tmp_path / "record.json"
    assert status(["run", "hello", "--json", str(record)]) == 0
    rows = re.findall(r"^\| (`[^|]+) \|", (ROOT / "docs/JSON.md").read_text(), re.MULTILINE)
    documented = [key for row in rows for key in re.findall(r"`(\w+)`", row)]
    written = json.loads(record.read_text())
    assert sorted(documented) == sorted(written)
    assert written["audit"]["checked"] > 0 and written["audit"]["outside"] == 0


def test_statistics(capfd: pytest.CaptureFixture[str]) -> None:
    """The tables are on standard error and have exits with times, callouts and counts."""
    assert status(["run", "hello", "--stats"]) == 0
    out, err = capfd.readouterr()
    assert out == "Hello, students!\r\n"
    for part in (r"architectural +port +\d+ +\d+\.\d +\d+\.\d", "engine +all +0", r"blocks translated +\d+", r"the cache +\d+, 0"):
        assert re.search(part, err), part


def test_logs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """-d logs the chosen kinds and no others, to the file of -D when there is one."""
    log = tmp_path / "log"
    assert status(["run", "faults-triple", "-d", "int,exec,mmu,io", "-D", str(log)]) == 3
    text = log.read_text()
    for part in (
        r"^int: +\d+: v=0d .* IP=0008:[0-9a-f]{8} .* triple_fault\+",
        r"^int: +\d+: v=08 e=0000 ",
        r"^exec: [0-9a-f]{8} \d+ instructions, \d+ bytes -> .* start$",
        r"^mmu: [0-9a-f]{8} kernel (read|write): filled$",
        r"^io: port 03fd b -> 60$",
        r"^io: port 03f8 b <- 6c$",
    ):
        assert re.search(part, text, re.MULTILINE), part
    assert status(["run", "hello", "-d", "io"]) == 0
    assert {line.split(":")[0] for line in capfd.readouterr().err.splitlines() if not line.startswith(("vmm", " ", "E", "C"))} >= {"io"}


def test_input_from_a_pipe(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The bytes of a pipe come to the serial line as they are, Ctrl-A too."""
    with standard_input(b"one\x01x\ntwoq"):
        assert status(["run", *flat.write(tmp_path, flat.ECHO), "--timeout", "10"]) == 0
    assert capfd.readouterr().out == ">one\x01x\ntwoq"


def test_input_ends(tmp_path: Path) -> None:
    """At the end of a pipe there is no more input; the guest goes on."""
    with standard_input(b"one"):
        assert status(["run", *flat.write(tmp_path, flat.ECHO), "--timeout", "0.3"]) == 124


def test_the_screen_of_a_silent_guest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without a byte on the serial line, the VGA text is what the guest has printed, and input goes to its keyboard."""
    with standard_input(b"xq"):
        assert status(["run", *flat.write(tmp_path, flat.SCREEN_AND_KEYBOARD), "--timeout", "10"]) == 0
    assert capfd.readouterr().out == "Hi\n23\n"


def test_vga_at_the_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """--vga shows the screen on standard error."""
    assert status(["run", *flat.write(tmp_path, flat.SCREEN), "--vga"]) == 0
    assert capfd.readouterr() == ("", "Hi\n")


def test_kernels(capfd: pytest.CaptureFixture[str]) -> None:
    """A line for each bundled guest."""
    assert status(["kernels"]) == 0
    assert [line.split()[0] for line in capfd.readouterr().out.splitlines()] == list(kernels("any"))


def test_our_own_faults(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """An exception of ours is status 70 and one line, a traceback only with VMM_DEBUG=1."""

    def fail(*_: object) -> None:
        raise RuntimeError("no\nway")

    monkeypatch.setattr("tools.run.run", fail)
    assert status(["run", "hello"]) == 70
    assert capfd.readouterr().err == "vmm: internal error: RuntimeError: no way (VMM_DEBUG=1 shows where)\n"
    monkeypatch.setenv("VMM_DEBUG", "1")
    assert status(["run", "hello"]) == 70
    assert "Traceback" in capfd.readouterr().err


def test_more_memory_than_there_is(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A host that has not the memory makes -m bad input."""

    def refuse(memory_mib: int, options: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("tools.session.machine_for", refuse)
    assert status(["run", "hello", "-m", "2G"]) == 2
    assert capfd.readouterr().err == "vmm: -m 2048: the host cannot give so much memory: cannot allocate memory\n"


def test_nobody_reads_the_output(tmp_path: Path) -> None:
    """A standard output that is closed ends the run, as SIGPIPE would."""
    reader, writer = os.pipe()
    os.close(reader)
    saved = os.dup(1)
    os.dup2(writer, 1)
    os.close(writer)
    try:
        assert status(["run", *flat.write(tmp_path, flat.ECHO), "--timeout", "10"]) == 141
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@pytest.mark.slow
def test_start_up_time(tmp_path: Path) -> None:
    """The whole of `vmm run hello` takes at most four times what it takes to import unicorn and capstone; the best of several counts."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPYCACHEPREFIX": str(tmp_path)}

    def seconds(code: str, *arguments: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    best = [min(seconds(*call) for _ in range(5)) for call in (("import unicorn, capstone",), ("from tools.cli import main; main()", "run", "hello"))]
    assert best[1] <= 4 * best[0], best
