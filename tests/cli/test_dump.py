"""`vmm dump` from its arguments to its output, in this process: both modes, all blocks or some, text and JSON, and what is refused."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli import flat
from tests.layers import ROOT
from tools.cli import status

VMM = [sys.executable, "-c", "from tools.cli import main; main()"]


def dumped(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Standard output of a dump that succeeds."""
    assert status(["dump", *arguments]) == 0
    return capfd.readouterr().out


def as_json(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    """The JSON of a dump that succeeds."""
    found = json.loads(dumped(capfd, *arguments, "--format", "json"))
    assert isinstance(found, dict)
    return found


def test_after_a_run(capfd: pytest.CaptureFixture[str]) -> None:
    """The guest's console is silent, standard error says how the run ended, and a block has its instructions and words."""
    assert status(["dump", "hello"]) == 0
    out, err = capfd.readouterr()
    assert re.fullmatch(r"vmm: hello: ran [\d.]+ s: debug exit .*\(0\)\n", err)
    assert out.startswith("hello: ran ") and "students" not in out
    assert re.search(r"^block \d+ .*<debug_exit>  kernel, \d+ instructions", out, re.MULTILINE)
    assert re.search(r"call 0x\w+ +control flow +\w+ .* push the return address", out)
    assert re.search(r"jump through slot \d+ to [0-9a-f]{8} <\w+> \(chained\)", out)


def test_static(capfd: pytest.CaptureFixture[str]) -> None:
    """Without a run there are all functions, though nothing was executed; a run has no more blocks than were run."""
    static, run = as_json(capfd, "rings", "--static"), as_json(capfd, "rings")
    assert (static["how"], static["end"], static["run"]) == ("static", "", {})
    names = [{block.get("name", "") for block in found["blocks"]} for found in (static, run)]  # type: ignore[attr-defined]
    assert {"tick", "main", "memcmp"} <= names[0] and len(names[0]) > 50
    assert "tick" in names[0] & names[1]


def test_totals_are_those_of_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    """The totals equal the record's counters, and what the blocks themselves add up to."""
    found = as_json(capfd, "rings", "--hot")
    totals, run, blocks = found["totals"], found["run"], found["blocks"]
    assert isinstance(totals, dict) and isinstance(run, dict) and isinstance(blocks, list)
    assert {key: totals[key] for key in run["translated"]} == run["translated"]
    assert (totals["blocks"], totals["instructions"], totals["cache_bytes"]) == (run["blocks"], run["instructions"], run["cache_bytes"])
    assert totals["callout_exits"] == sum(run["callouts"].values())
    lines = [line for block in blocks if block["state"] != "single step" for line in block["lines"]]
    assert len(lines) == totals["instructions"]
    for kind, key in (("identity", "identity"), ("in-cache", "in_cache"), ("callout", "callouts"), ("control flow", "flow")):
        assert sum(line["class"] == kind for line in lines) == totals[key] > 0
    assert sum(block["code_bytes"] for block in blocks) == totals["code_bytes"]
    assert 0 < totals["saved"] <= sum(line["count"] for line in lines if line["class"] == "in-cache")


@pytest.mark.parametrize("kernel", ("rings", "smc"))
def test_exits_per_site(kernel: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Without --hot those of trapping stubs: together they are the callouts and, with those of lone stubs, the chains of the run."""
    found = as_json(capfd, kernel)
    exits, blocks = found["run"]["exits"]["architectural"], found["blocks"]  # type: ignore[index]
    assert sum(line.get("exits", 0) for block in blocks for line in block["lines"]) == exits["callout"]  # type: ignore[attr-defined]
    chains = sum(link.get("exits", 0) for block in blocks for link in block.get("links", ()))  # type: ignore[attr-defined]
    stubs = found["totals"]["stub_exits"]  # type: ignore[index]
    assert chains + stubs == exits["chain"] and bool(stubs) is (kernel == "smc")  # where code changes under the stubs that lead to it


def test_hot_counts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A loop of a known number of rounds is counted so often, and stands first."""
    guest = flat.write(tmp_path, "mov ecx, 123456; again: dec ecx; jnz again; mov al, 0; out 0xf4, al; hang: jmp hang")
    text = dumped(capfd, *guest, "--hot")
    assert len(re.findall(r"^ +123,456 .*(?:dec ecx|jne) ", text, re.MULTILINE)) >= 1
    (first, *_) = re.findall(r"^block .* entered ([\d,]+) time", text, re.MULTILINE)
    assert first == "1"  # the loop is part of the block before it
    found = as_json(capfd, *guest, "--hot", "--blocks", "1")
    (block,) = found["blocks"]  # type: ignore[misc]
    assert block["count"] == 1 and max(line["count"] for line in block["lines"]) == 123456


def test_at(capfd: pytest.CaptureFixture[str]) -> None:
    """A symbol, a place in a function and an address choose the blocks that hold it; with --blocks those that it leads to come along."""
    for wanted in ("tick", "tick+0x21", "0x100131"):
        (line, *_) = re.findall(r"^block .*", dumped(capfd, "rings", "--at", wanted), re.MULTILINE)
        assert "00100110 <tick>" in line
    (one,) = as_json(capfd, "rings", "--at", "tick", "--static")["blocks"]  # type: ignore[misc]
    three = as_json(capfd, "rings", "--at", "tick", "--static", "--blocks", "3")["blocks"]
    assert isinstance(three, list) and three[0] == one and len(three) == 3
    assert {block["number"] for block in three[1:]} <= {link.get("block") for block in three for link in block.get("links", ())}


def test_undecodable_bytes_end_a_block(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """They are shown as what they become: a stub that raises #UD."""
    path = tmp_path / "guest.bin"
    path.write_bytes(bytes.fromhex("40") + b"\xff" * 64)
    found = as_json(capfd, str(path), "--address", "0x1000", "-m", "1", "--static")
    (block,) = found["blocks"]  # type: ignore[misc]
    assert [line["class"] for line in block["lines"]] == ["identity", "no instruction"]
    assert block["lines"][1]["code"][0]["words"] == "trap: #UD, these bytes are no instruction"
    assert found["totals"]["undefined"] == 1  # type: ignore[index]


def test_every_way_of_a_run_is_dumped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A guest that dies, resets or never ends is dumped all the same, with status 0."""
    for text, reason in ((flat.STOP_FOR_GOOD, "halted for good"), (flat.RESET, "reset"), (flat.LOOP, "time-out"), (flat.REPORT_5, r"\(5\)")):
        assert status(["dump", *flat.write(tmp_path, text), "--timeout", "0.3"]) == 0
        out, err = capfd.readouterr()
        assert re.search(reason, err) and re.search(reason, out.splitlines()[0]), (out, err)


def test_options_of_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    """The kind of stub and the ring are those of the run."""
    found = as_json(capfd, "hello", "--stubs", "trap", "--ring", "3", "--append", "who=all")
    assert found["run"]["ring"] == 3 and found["totals"]["in_cache"] == 0  # type: ignore[index]


def test_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """-o leaves standard output alone; what was there before is replaced."""
    path = tmp_path / "dump.txt"
    path.write_text("before")
    assert dumped(capfd, "hello", "--static", "-o", str(path)) == ""
    assert path.read_text().startswith("hello: static") and list(tmp_path.iterdir()) == [path]


def on_a_terminal(environment: dict[str, str]) -> str:
    """What a dump writes to a terminal."""
    master, slave = pty.openpty()
    with subprocess.Popen([*VMM, "dump", "hello", "--static"], cwd=ROOT, stdout=slave, env=os.environ | environment) as process:
        os.close(slave)
        found = b""
        while True:
            try:
                part = os.read(master, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            found += part
        assert process.wait(60) == 0
    os.close(master)
    return found.decode()


def test_colours() -> None:
    """A terminal gets them, unless NO_COLOR is set."""
    assert "\x1b[34m" in on_a_terminal({"TERM": "xterm", "NO_COLOR": ""})
    assert not re.search(r"\x1b\[[\d;]*3[0-7]m", on_a_terminal({"TERM": "xterm", "NO_COLOR": "1"}))


def test_a_reader_that_leaves() -> None:
    """`vmm dump ... | head` ends without a complaint."""
    command = " ".join([f"'{VMM[0]}' -c '{VMM[2]}'", "dump hello --static | head -1; exit ${PIPESTATUS[0]}"])
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) in ((141, ""), (0, ""))
    assert result.stdout == "hello: static, nothing was run\n"


def test_5000_instructions_take_less_than_2_seconds(tmp_path: Path) -> None:
    """The whole process, for a guest that runs 5,000 different instructions; four times as much is allowed on a machine with others."""
    body = "; ".join(f"add eax, {number}" for number in range(4990))
    guest = flat.write(tmp_path, f"{body}; mov al, 0; out 0xf4, al; hang: jmp hang")
    began = time.monotonic()
    result = subprocess.run([*VMM, "dump", *guest, "--format", "json"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 8
    assert json.loads(result.stdout)["totals"]["instructions"] >= 4990


REFUSED = [
    ("--at ticc", "--at ticc: no such symbol", "did you mean tick"),
    ("--at 0x5 --static", "--at 0x5: outside the image, which has 0x100000 to ", "nearest: "),
    ("--at 0x5", "--at 0x5: outside the image, which has 0x100000 to ", "nearest: "),
    ("--at kernel_end_address", "--at kernel_end_address: outside the image", ""),
    ("--at memcmp", "--at memcmp: not translated in this run", "--static translates"),
    ("--at main+x", "--at main+x: must be an address", ""),
    ("--at 0x100000000", "--at 0x100000000: not an address of 32 bits", ""),
    ("--blocks 0", "--blocks 0: must be a number above 0", ""),
    ("--format pdf", "--format pdf: must be text or json or html", ""),
    ("--backend native", "--backend native: translates nothing", "nothing to dump"),
    ("--hot --static", "--hot: nothing is run with --static", ""),
    ("-o gone/file", "gone/file: no such directory", ""),
    ("-o .", ".: is a directory", ""),
    ("--timeout 0", "--timeout 0: ", "above 0"),
    ("--stubs some", "--stubs some: ", "must be cache or trap"),
]


@pytest.mark.parametrize(("arguments", "name", "reason"), REFUSED, ids=[case[0] for case in REFUSED])
def test_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: str, name: str, reason: str
) -> None:
    """What is refused is one line that says what and why; nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert status(["dump", "rings", *arguments.split()]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"vmm: {name}") and reason in err, err
    assert not list(tmp_path.iterdir())


def test_a_kernel_that_is_none(capfd: pytest.CaptureFixture[str]) -> None:
    """As with `vmm run`, in both modes."""
    for mode in ("--run", "--static"):
        assert status(["dump", "helo", mode]) == 2
        assert capfd.readouterr().err == "vmm: helo: neither a bundled kernel nor a file (did you mean hello?)\n"


def test_adapted_moves(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A store that kept faulting on a device is a callout, which --hot shows with its count; --no-adapt has it fault each time."""
    file = tmp_path / "store"
    file.write_bytes(flat.assemble("mov ecx,100; l: mov dword ptr [0xfee00080],0x30; dec ecx; jnz l; mov al,0; out 0xf4,al", flat.ADDRESS))
    arguments = (str(file), "--address", hex(flat.ADDRESS), "--hot")
    adapted = dumped(capfd, *arguments)
    (count,) = re.findall(r"(\d+) exits .* callout .*trap: the VMM makes this access, which kept faulting", adapted, re.MULTILINE)
    assert 80 < int(count) < 100
    assert "kept faulting" not in dumped(capfd, *arguments, "--no-adapt")
