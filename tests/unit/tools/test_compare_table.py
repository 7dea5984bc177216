"""Tables of a comparison: every way has its column, however many there are, and every row its name."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tools.compare import as_table
from tools.compare.model import WAYS, WORK
from tools.compare.results import CellResult, Comparison, RowResult


@pytest.mark.parametrize("width", [60, 100, 150, 300])
def test_nothing_is_cut_off(width: int) -> None:
    """What does not fit side by side stands in a table below."""
    cell = CellResult(count=1, rounds=1, time_ns=12_340_000.0, ratio=123.0, architectural={"callout": 1234.0}, engine={"int": 12.0})
    found = Comparison("here", 1, False, [RowResult("work", row, dict.fromkeys(WAYS, cell)) for row in WORK])
    console = Console(file=io.StringIO(), width=width)
    as_table.show(found, console)
    assert isinstance(console.file, io.StringIO)
    times, exits = console.file.getvalue().split("architectural exits")[0:2]
    assert "…" not in times and all(f" {way} " in times for way in WAYS)
    assert times.count("12.3 ms (123)") == len(WORK) * len(WAYS) and exits.split("modelled")[0].count("1,234 +12") == len(WORK) * (len(WAYS) - 2)
    for row in WORK:
        assert f"\n  {row} " in times
