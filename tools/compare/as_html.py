"""A comparison as a page: one file that needs no other and no script. Published figures stand beside ours, each marked as what it is.

Knows which readings there are and how they are shown. Everything from outside is escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Final, TextIO

from tools.compare.answers import APPROACHES, answer
from tools.compare.as_table import MODELLED_ON, duration, short
from tools.compare.charts import Bar, Parts, broken_down, logarithmic
from tools.compare.costs import costs
from tools.compare.model import WAYS, kernels
from tools.compare.results import OURS, CellResult, Comparison, RowResult

_REASON_COLOURS: Final = 8
_LONGEST_REASON: Final = 48


def write(found: Comparison, file: TextIO) -> None:
    """Writes the page."""
    style = (files("tools.compare") / "page.css").read_text("utf-8")
    file.write(
        '<!doctype html>\n<html lang="en" data-ready="true">\n<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>vmm compare</title><style>\n{style}</style></head>\n<body>\n"
    )
    for part in (_head(found), *(_kernel(name, found) for name in dict.fromkeys(row.kernel for row in found.rows)), _published(found), _prices()):
        file.write(part + "\n")
    file.write("</body></html>\n")


def _head(found: Comparison) -> str:
    ways = list(dict.fromkeys(way for row in found.rows for way in row.cells))
    items = "".join(f"<dt>{way}</dt><dd>{html.escape(WAYS[way].description)}</dd>" for way in ways if way in WAYS)
    counted = " Virtual time counts instructions." if found.icount else ""
    return (
        f'<h1>The same guests in every way</h1><p class="faint">{html.escape(found.machine)}; medians of {found.rounds} rounds.{counted}</p>'
        "<p>Three readings, never mixed: <b>time</b> is CPU time for one time of a row's work, on a logarithmic scale; <b>exits</b> are architectural"
        " ones by reason, those that a real CPU would take under the same technique, with this CPU's engine assists in grey behind them;"
        f" <b>modelled cycles</b> price those exits as real CPUs do.</p><dl>{items}</dl>"
    )


def _kernel(name: str, found: Comparison) -> str:
    rows = [row for row in found.rows if row.kernel == name]
    times = [cell.time_ns for row in rows for cell in row.cells.values() if not cell.reason] or [1.0]
    low, high = 10 ** math.floor(math.log10(max(min(times), 0.1))), 10 ** math.ceil(math.log10(max(times)) + 1e-9)
    ticks = [(10.0**power, duration(10.0**power)) for power in range(round(math.log10(low)), round(math.log10(high)) + 1)]
    step = -(-len(ticks) // 5)
    known = kernels().get(name)
    cards = "".join(_row(row, low, max(high, low * 10), ticks[::step]) for row in rows)
    return f'<h2 id="{html.escape(name)}">{html.escape(name)}: {html.escape(known.description if known else "")}</h2><div class="cards">{cards}</div>'


def _row(row: RowResult, low: float, high: float, ticks: Sequence[tuple[float, str]]) -> str:
    said = answer(row)
    bars = [_bar(way, cell) for way, cell in row.cells.items()]
    counted = {way: cell for way, cell in row.cells.items() if way in OURS and not cell.reason}
    reasons = list(dict.fromkeys(reason for cell in counted.values() for reason in cell.architectural if cell.architectural[reason] >= 0.005))
    colours = {reason: f"r{index % _REASON_COLOURS}" for index, reason in enumerate(reasons)}
    broken = [_parts(way, cell, colours) for way, cell in counted.items() if way != "step"]
    most = max((sum(amount for _, amount, _ in bar.parts) for bar in broken), default=0.0)
    keys = "".join(
        f'<span class="key"><i style="background: var(--{colour})"></i>{html.escape(reason)}</span>' for reason, colour in colours.items()
    )
    winners = "".join(
        f"<dt>{reading}</dt><dd>{html.escape(', '.join(names) or '–')}</dd>"
        for reading, names in (("fewest exits", said.exits), ("least time", said.time), ("fewest cycles", said.cycles[MODELLED_ON]))
    )
    how = "".join(f"<dt>{way}</dt><dd>{html.escape(said.mechanisms[way])}</dd>" for way in APPROACHES if way in said.mechanisms)
    modelled = ", ".join(f"{way} {cell.cycles.get(MODELLED_ON, 0.0):,.0f}" for way, cell in counted.items() if way in APPROACHES)
    return (
        f'<section class="card" data-row="{html.escape(row.row)}"><h3>{html.escape(row.row)}</h3>'
        f"<h4>CPU time for one</h4>{logarithmic(bars, low, high, ticks)}<h4>exits for one, by reason</h4>{broken_down(broken, most)}<div>{keys}</div>"
        f"<h4>who wins, and how</h4><dl>{winners}<dt>cycles</dt><dd>{modelled or '–'}</dd>{how}</dl></section>"
    )


def _bar(way: str, cell: CellResult) -> Bar:
    if cell.reason:
        why = cell.reason[:_LONGEST_REASON] + ("…" if len(cell.reason) > _LONGEST_REASON else "")
        return Bar(way, None, why, _colour(way), f"{way}: {cell.reason}")
    ratio = "" if cell.ratio is None else f" ({short(cell.ratio)}×)"
    tip = f"{way}: {duration(cell.time_ns)}{ratio}, ±{cell.spread:.0%}, {cell.rounds} rounds of {cell.count}"
    return Bar(way, cell.time_ns, f"{duration(cell.time_ns)}{ratio}", _colour(way), tip)


def _parts(way: str, cell: CellResult, colours: dict[str, str]) -> Parts:
    parts = [(reason, amount, colours[reason]) for reason, amount in cell.architectural.items() if reason in colours]
    assists = sum(cell.engine.values())
    if assists >= 0.005:
        parts.append(("engine assists", assists, "assist"))
    return Parts(way, parts, short(cell.exits) + (f" +{short(assists)}" if assists >= 0.005 else ""))


def _colour(way: str) -> str:
    words = WAYS[way].words if way in WAYS else None
    if words is None:
        return "outside"
    backend = words["backend"]
    return backend if backend in ("native", "bt", "pv", "hw") else "other"


def _published(found: Comparison) -> str:
    """Their table and ours for the same rows, each marked."""
    theirs = costs().published
    shown = {row.row: row for row in found.rows if row.kernel == "nano"}
    head = "".join(f"<th>{html.escape(column)}</th>" for column in theirs["columns"])
    body = "".join(f"<tr><td>{row}</td>{''.join(f'<td>{value:,}</td>' for value in values)}</tr>" for row, values in theirs["rows"].items())
    ways = [way for way in ("native", "bt", "pv", "hw", "hw-shadow") if any(way in row.cells for row in shown.values())]
    our_head = "".join(f"<th>{way}</th>" for way in ways)
    our_body = "".join(
        f"<tr><td>{row}</td>{''.join(f'<td>{_cycles(shown[row].cells.get(way))}</td>' for way in ways)}</tr>"
        for row in theirs["rows"]
        if row in shown
    )
    exits = costs().exit_costs
    bare_head = "".join(f"<th>{html.escape(column)}</th>" for column in exits["columns"])
    bare = "".join(f"<td>{value:,}</td>" for value in exits["cycles"])
    return (
        f'<h2 id="published">Beside published results</h2><div class="cards"><section class="card published scroll"><h3>published</h3>'
        f'<p class="faint">Cycles for one. {html.escape(theirs["source"])}.</p><table><tr><th></th>{head}</tr>{body}</table></section>'
        f'<section class="card ours scroll"><h3>ours</h3><p class="faint">Modelled cycles of exits for one, as on an'
        f' {html.escape(costs().machines[MODELLED_ON]["name"])}; what the guest does itself is not in them.</p>'
        f"<table><tr><th></th>{our_head}</tr>{our_body}</table></section>"
        f'<section class="card published scroll"><h3>published</h3><p class="faint">{html.escape(exits["source"])}.</p>'
        f"<table><tr><th></th>{bare_head}</tr><tr><td>exit and entry</td>{bare}</tr></table></section></div>"
    )


def _cycles(cell: CellResult | None) -> str:
    return "–" if cell is None or cell.reason else f"{cell.cycles.get(MODELLED_ON, 0.0):,.0f}"


def _prices() -> str:
    """The price list, with where each figure is from."""
    rows = "".join(
        f"<tr><td>{html.escape(machine['name'])}</td><td>{kind}</td><td>{price['cycles']:,}</td><td>{price['standing']}</td>"
        f"<td>{html.escape(price['source'])}</td></tr>"
        for machine in costs().machines.values()
        for kind, price in (("hardware exit", machine["vm_exit"]), ("change of rings", machine["ring_crossing"]), ("callout", machine["callout"]))
    )
    work = ", ".join(f"{html.escape(reason)} {cycles:,}" for reason, cycles in costs().work.items())
    return (
        '<h2 id="prices">What an exit costs in the model</h2><div class="scroll"><table><tr><th>machine</th><th>transition</th><th>cycles</th>'
        f"<th>standing</th><th>source</th></tr>{rows}</table></div><p>To each comes the VMM's own work, assumed, in cycles: {work}.</p>"
    )
