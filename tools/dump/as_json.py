"""A dump as JSON: the schema of docs/DUMP.md, which the page of `--format html` reads as well.

Knows the schema's keys. What is empty, zero or the usual is left out, since most instructions have nothing to say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TextIO

from tools.dump.as_text import is_copy
from tools.dump.model import VERSION, Block, Code, Dump, Line


def write(dump: Dump, file: TextIO, blocks: Iterable[Block]) -> None:
    """Writes the dump, with `blocks` as they come."""
    for chunk in chunks(dump, blocks):
        file.write(chunk)


def chunks(dump: Dump, blocks: Iterable[Block]) -> Iterator[str]:
    """The JSON text in pieces, a block a line: a dump may be larger than what one likes to hold twice."""
    head = {
        "version": VERSION,
        "kernel": dump.kernel,
        "how": dump.how,
        "end": dump.end,
        "hot": dump.hot,
        "totals": {key: value for key, value in asdict(dump.totals).items() if value is not None},
        "run": dict(dump.run),
    }
    yield json.dumps(head)[:-1] + ', "blocks": [\n'
    between = ""
    for block in blocks:
        yield between + json.dumps(_block(block), separators=(",", ":"))
        between = ",\n"
    yield "\n]}\n"


def _block(block: Block) -> dict[str, object]:
    return _present(
        {
            "number": block.number,
            "cache": block.cache,
            "entry": block.entry,
            "name": block.name,
            "address": block.address,
            "state": block.state,
            "bases": list(block.bases) if block.bases != (0, 0) else None,
            "guest_bytes": block.guest_bytes,
            "code_bytes": block.code_bytes,
            "count": block.count,
            "exits": block.exits,
            "lines": [_line(line) for line in block.lines],
            "stubs": [_code(code) for code in block.stubs],
            "links": [_present(asdict(link)) | {"slot": link.slot, "target": link.target} for link in block.links],
        }
    ) | {"number": block.number, "entry": block.entry}


def _line(line: Line) -> dict[str, object]:
    return _present(
        {
            "bytes": line.raw.hex(),
            "text": line.text,
            "class": line.kind,
            "row": line.row,
            "at": line.code[0].address if line.code else None,
            "code": None if is_copy(line) else [_code(code) for code in line.code],
            "count": line.count,
            "exits": line.exits,
        }
    ) | {"address": line.address}


def _code(code: Code) -> dict[str, object]:
    return _present({"at": code.address, "bytes": code.raw.hex(), "text": code.text, "words": code.words, "recovery": code.recovery})


def _present(values: dict[str, object]) -> dict[str, object]:
    """Without what is None, empty, zero or false; a count of 0 stays, since it says that there was counting."""
    return {key: value for key, value in values.items() if value or (key in ("count", "block") and value == 0)}
