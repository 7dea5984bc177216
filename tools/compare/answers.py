"""Answers: which approach wins a row, in each reading for itself, and by what mechanism, said from the counts.

Knows what the counts of each way mean. Measures nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tools.compare.costs import costs
from tools.compare.model import WAYS
from tools.compare.results import CellResult, RowResult

APPROACHES: Final = ("bt", "pv", "hw", "hw-shadow")
"""The ways among which a winner is sought: one for each technique in its usual form, and hardware assist with both kinds of paging."""
_EQUAL: Final = 0.05
_NOTHING: Final = 0.005  # what a row does once and not each time


@dataclass(frozen=True, slots=True)
class Answer:
    """Who wins a row: by exits, by time, by modelled cycles (on each machine); all names of a tie. mechanisms: a phrase for each way."""

    exits: tuple[str, ...]
    time: tuple[str, ...]
    cycles: dict[str, tuple[str, ...]]
    mechanisms: dict[str, str]


def answer(row: RowResult) -> Answer:
    """The answer to a row."""
    cells = {way: row.cells[way] for way in APPROACHES if way in row.cells and not row.cells[way].reason}
    return Answer(
        exits=_least({way: cell.exits if cell.exits > _NOTHING else 0.0 for way, cell in cells.items()}),
        time=_least({way: cell.time_ns for way, cell in cells.items()}),
        cycles={name: _least({way: cell.cycles.get(name, 0.0) for way, cell in cells.items()}) for name in costs().machines},
        mechanisms={way: mechanism(way, cell) for way, cell in row.cells.items()},
    )


def _least(values: dict[str, float]) -> tuple[str, ...]:
    """The ways with the least value, and those that are within a twentieth of it."""
    if not values:
        return ()
    least = min(values.values())
    return tuple(way for way, value in values.items() if value <= least * (1 + _EQUAL) + 1e-9)


def mechanism(way: str, cell: CellResult) -> str:
    """How the way did it: "0 exits, emulated in the cache", "1 exit: control register"."""
    if cell.reason:
        return cell.reason
    words = WAYS[way].words
    if words is None:
        return "not counted"
    parts = {name: times for name, times in cell.architectural.items() if times > _NOTHING}
    if not parts:
        return _without_exits(words["backend"], cell)
    total = sum(parts.values())
    named = ", ".join(f"{_number(times)} {name}" if len(parts) > 1 else name for name, times in parts.items())
    calls = ", ".join(f"{_number(times)} {name}" for name, times in cell.hypercalls.items() if times > _NOTHING)
    emulated = ", ".join(name for name, times in cell.callouts.items() if times > _NOTHING)
    behind = f" ({calls})" if calls else f" ({emulated})" if emulated else ""
    return f"{_number(total)} exit{'' if total == 1 else 's'}: {named}{behind}"


def _without_exits(backend: str, cell: CellResult) -> str:
    assists = sum(times for times in cell.engine.values() if times > _NOTHING)
    aside = f"; {_number(assists)} engine assist{'' if assists == 1 else 's'}, which silicon does without" if assists else ""
    if backend == "native":
        return f"no VMM{aside}"
    how = {
        "bt": "0 exits, as it is or emulated in the cache",
        "pv": "0 exits, in memory that is shared with the VMM or the kernel's own",
        "hw": "0 exits, in guest mode",
    }.get(backend, "0 exits")
    return f"{how}{aside}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"
