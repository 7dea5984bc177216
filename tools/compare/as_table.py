"""A comparison as tables for a terminal: one for each reading, and the answers.

Knows how numbers are made readable. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tools.compare.answers import APPROACHES, answer
from tools.compare.costs import costs
from tools.compare.results import OURS, CellResult, Comparison, RowResult
from tools.compare.saved import TOLERANCE, Change

_UNITS: Final = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))
_PADDING: Final = 3
"""Columns between two of a table, and at its edges."""
MODELLED_ON: Final = "prescott"


def show(found: Comparison, console: Console) -> None:
    """Prints all tables."""
    ways = list(dict.fromkeys(way for row in found.rows for way in row.cells))
    ours = [way for way in ways if way in OURS]
    _reading(console, found, ways, "CPU time for one (in brackets: how many times that of native)", _time)
    _reading(console, found, ours, "architectural exits for one (behind +: engine assists)", _exits)
    cycles = costs().machines[MODELLED_ON]["name"]
    _reading(console, found, [way for way in ours if way != "native"], f"modelled cycles of exits for one, on an {cycles}", _cycles)
    answers(found, console)
    _reasons(found, console)


def _reading(console: Console, found: Comparison, ways: Sequence[str], title: str, text: Callable[[CellResult], str]) -> None:
    console.print(Text(title, style="bold"))
    cells = {way: [_shown(row, way, text) for row in found.rows] for way in ways}
    names = [row.row for row in found.rows]
    for group in _side_by_side({way: _width(way, *column) for way, column in cells.items()}, console.width - _width("row", *names) - _PADDING):
        table = Table(box=SIMPLE_HEAD)
        table.add_column("row", no_wrap=True)
        for way in group:
            table.add_column(way, justify="right", no_wrap=True)
        for line in zip(names, *(cells[way] for way in group)):
            table.add_row(*line)
        console.print(table)


def _width(*texts: str) -> int:
    return max(map(len, texts)) + _PADDING


def _side_by_side(widths: Mapping[str, int], room: int) -> list[list[str]]:
    """The ways in groups of which each fits beside the names of rows; those that do not stand in a table below."""
    groups: list[list[str]] = [[]]
    left = room
    for way, width in widths.items():
        if width > left and groups[-1]:
            groups.append([])
            left = room
        groups[-1].append(way)
        left -= width
    return groups


def _shown(row: RowResult, way: str, text: Callable[[CellResult], str]) -> str:
    cell = row.cells.get(way)
    return "" if cell is None else "–" if cell.reason else text(cell)


def _time(cell: CellResult) -> str:
    ratio = "" if cell.ratio is None else f" ({short(cell.ratio)})"
    return f"{duration(cell.time_ns)}{ratio}"


def _exits(cell: CellResult) -> str:
    assists = sum(cell.engine.values())
    return f"{short(cell.exits)}{f' +{short(assists)}' if assists >= 0.005 else ''}"


def _cycles(cell: CellResult) -> str:
    return f"{cell.cycles.get(MODELLED_ON, 0.0):,.0f}"


def answers(found: Comparison, console: Console) -> None:
    """Prints who wins each row, and how."""
    console.print(Text(f"answers, among {', '.join(APPROACHES)}", style="bold"))
    table = Table(box=SIMPLE_HEAD)
    for heading in ("row", "fewest exits", "least time", "fewest cycles", "by what mechanism"):
        table.add_column(heading, overflow="fold")
    for row in found.rows:
        said = answer(row)
        how = "\n".join(f"{way}: {said.mechanisms[way]}" for way in APPROACHES if way in said.mechanisms and not row.cells[way].reason)
        table.add_row(row.row, ", ".join(said.exits), ", ".join(said.time), ", ".join(said.cycles[MODELLED_ON]), Text(how))
    console.print(table)


def show_changes(found: Sequence[Change], name: str, console: Console) -> None:
    """Prints what has changed since the results of that name: a line for each cell that became worse or much better."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("row", "way", "time", "exits before", "exits now", ""):
        table.add_column(heading)
    told = [change for change in found if change.worse or change.note or change.time is not None and change.time < 1 - TOLERANCE]
    for change in told:
        time = "" if change.time is None else f"× {short(change.time)}"
        exits = (short(change.exits_before), short(change.exits_now))
        table.add_row(change.row, change.way, time, *exits, change.note or ("worse" if change.worse else "better"))
    console.print(Text(f"against {name}: {len(found)} cells, {sum(change.worse for change in found)} worse", style="bold"))
    if told:
        console.print(table)


def _reasons(found: Comparison, console: Console) -> None:
    """Prints why cells are empty: a line for each reason."""
    why: dict[tuple[str, str], list[str]] = {}
    for row in found.rows:
        for way, cell in row.cells.items():
            if cell.reason:
                why.setdefault((way, cell.reason), []).append(row.row)
    if why:
        console.print("[bold]not run[/bold]")
    for (way, reason), rows in why.items():
        console.print(Text(f"  {way}: {', '.join(rows)}: {reason}"))


def duration(ns: float) -> str:
    """Nanoseconds in the unit that suits them."""
    unit, name = next(((unit, name) for unit, name in _UNITS if ns >= unit), _UNITS[-1])
    return f"{short(ns / unit)} {name}"


def short(value: float) -> str:
    """Three digits."""
    if value == 0:
        return "0"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}".rstrip("0").rstrip(".") if value < 10 else f"{value:.1f}".rstrip("0").rstrip(".")
