"""Results that are kept under a name, and what has changed since: `vmm compare --save NAME`, `--against NAME`.

Knows the folder of a user's own data. Says what became worse: more exits, or more time in relation to the reference than chance explains.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.compare.results import CellResult, Comparison, from_dict
from tools.report import write_file
from vmm.errors import InputError

TOLERANCE: Final = 0.1
_EXITS_EQUAL: Final = 0.01


def folder() -> Path:
    """Where results are kept: $XDG_DATA_HOME/vmm/compare."""
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(data) / "vmm" / "compare"


def path_of(option: str, name: str) -> Path:
    """The file of that name. Raises InputError for what is no name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise InputError(f"{option} {name or repr(name)}: a name is letters, digits, dots, dashes and underscores")
    return folder() / f"{name}.json"


def save(name: str, found: Comparison) -> None:
    """Keeps results under a name. Raises InputError when that cannot be done."""
    path = path_of("--save", name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--save {name}: {path.parent}: {(error.strerror or str(error)).lower()}") from None
    write_file(str(path), lambda file: file.write(json.dumps(found.as_dict(), indent=1) + "\n"))


def read(name: str) -> Comparison:
    """The results kept under a name. Raises InputError, with the names that there are."""
    path = path_of("--against", name)
    try:
        return from_dict(str(path), json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        names = sorted(each.stem for each in folder().glob("*.json"))
        raise InputError(f"--against {name}: nothing was saved under that name (there are {', '.join(names) or 'none'})") from None
    except (OSError, ValueError) as error:
        raise InputError(f"--against {name}: {path}: {error}") from None


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one cell. time: how many times what it took before, by the ratio to the reference where both have one.
    worse: more exits, or more time than tolerance and spread allow."""

    row: str
    way: str
    time: float | None
    exits_before: float
    exits_now: float
    worse: bool
    note: str = ""


def changes(before: Comparison, now: Comparison) -> list[Change]:
    """A change for each cell that both have."""
    old = {(row.kernel, row.row, way): cell for row in before.rows for way, cell in row.cells.items()}
    found = []
    for row in now.rows:
        for way, cell in row.cells.items():
            earlier = old.get((row.kernel, row.row, way))
            if earlier is not None:
                found.append(_change(row.row, way, earlier, cell))
    return found


def _change(row: str, way: str, before: CellResult, now: CellResult) -> Change:
    if before.reason or now.reason:
        worse = bool(now.reason) and not before.reason
        note = f"did not run: {now.reason}" if worse else "runs now" if not now.reason else "did not run, now as before"
        return Change(row, way, None, before.exits, now.exits, worse, note)
    by_ratio = before.ratio is not None and now.ratio is not None and not before.ratio == now.ratio == 1
    time = now.ratio / before.ratio if by_ratio and now.ratio and before.ratio else now.time_ns / before.time_ns
    slower = time > 1 + TOLERANCE + before.spread + now.spread
    more = now.exits > before.exits * (1 + _EXITS_EQUAL) + _EXITS_EQUAL
    return Change(row, way, time, before.exits, now.exits, slower or more)
