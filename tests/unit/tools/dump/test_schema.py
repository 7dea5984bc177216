"""docs/DUMP.md lists the keys of the JSON form, all of them and no others."""

from __future__ import annotations

import io
import json
import re

import pytest

from tests.layers import ROOT
from tools.dump import as_json
from tools.dump.model import VERSION, Block, Code, Dump, Line, Link, Totals

CODE = Code(address=0xE8400000, raw=b"\xcd\xf0", text="int 0xf0", recovery="midway", words="trap: the VMM emulates hlt")
LINE = Line(address=0x1000, raw=b"\xf4", text="hlt", kind="callout", row="hlt", code=(CODE,), count=0, exits=2)
LINK = Link(slot=0, target=0x2000, name="there", block=0, chained=True, exits=1)
BLOCK = Block(
    number=0, cache="kernel", entry=0, name="main", address=0xE8400000, state="live", bases=(0, 4), guest_bytes=1, code_bytes=2,
    count=0, exits=3, lines=(LINE,), stubs=(CODE,), links=(LINK,),
)  # fmt: skip
TOTALS = Totals(
    blocks=1, instructions=1, guest_bytes=1, code_bytes=2, cache_bytes=3, counter_bytes=0, identity=0, rewritten=0, in_cache=0, callouts=1, flow=0,
    undefined=0, identity_share=0.0, growth=2.0, callout_exits=2, stub_exits=1, saved=0,
)  # fmt: skip


def written(dump: Dump, *blocks: Block) -> dict[str, object]:
    """The JSON form, read back."""
    file = io.StringIO()
    as_json.write(dump, file, blocks)
    found = json.loads(file.getvalue())
    assert isinstance(found, dict)
    return found


FULL = written(Dump("rings", "run", "ran 1 s", True, TOTALS, {"kernel": "rings"}), BLOCK)


def documented(heading: str) -> set[str]:
    """The keys in the first column of the table with this heading."""
    text = (ROOT / "docs/DUMP.md").read_text()
    (table,) = re.findall(rf"^\| {heading} \| what it is \|\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    return {key for row in table.splitlines() for key in re.findall(r"`(\w+)`", row.split("|")[1])}


@pytest.mark.parametrize(
    ("heading", "found"),
    [
        ("key", FULL),
        ("in `totals`", FULL["totals"]),
        ("in a block", FULL["blocks"][0]),  # type: ignore[index]
        ("in a line", FULL["blocks"][0]["lines"][0]),  # type: ignore[index]
        ("in an instruction of translated code", FULL["blocks"][0]["lines"][0]["code"][0]),  # type: ignore[index]
        ("in a link", FULL["blocks"][0]["links"][0]),  # type: ignore[index]
    ],
    ids=["dump", "totals", "block", "line", "code", "link"],
)
def test_keys(heading: str, found: dict[str, object]) -> None:
    """With nothing left out, the keys are those of the document."""
    assert set(found) == documented(heading)


def test_the_version_is_documented() -> None:
    """The number in the document is the one in the file."""
    assert FULL["version"] == VERSION
    assert f"`version` is {VERSION}," in (ROOT / "docs/DUMP.md").read_text()


def test_what_is_left_out() -> None:
    """An identity line has no code; nothing that says nothing is there; but a slot, a number or an address of 0 is."""
    copied = Line(address=0, raw=b"\x90", text="nop", kind="identity", row="", code=(Code(0xE8400000, b"\x90", "nop", "", ""),), count=None, exits=0)
    bare = Block(
        number=0, cache="kernel", entry=0, name="", address=0xE8400000, state="live", bases=(0, 0), guest_bytes=1, code_bytes=1, count=None, exits=0,
        lines=(copied,), stubs=(), links=(Link(slot=0, target=0, name="", block=None, chained=False, exits=0),),
    )  # fmt: skip
    (block,) = written(Dump("k", "static", "", False, TOTALS, {}), bare)["blocks"]  # type: ignore[misc]
    assert block == {
        "number": 0, "cache": "kernel", "entry": 0, "address": 0xE8400000, "state": "live", "guest_bytes": 1, "code_bytes": 1,
        "lines": [{"address": 0, "bytes": "90", "text": "nop", "class": "identity", "at": 0xE8400000}], "links": [{"slot": 0, "target": 0}],
    }  # fmt: skip


def test_no_blocks() -> None:
    """A dump without blocks is JSON too."""
    assert written(Dump("k", "static", "", False, TOTALS, {}))["blocks"] == []
