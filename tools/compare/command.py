"""`vmm compare` from what was asked for to the tables and files.

Knows the order of things: what can be refused is refused before anything runs, and a run that was interrupted shows what it has.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tools.compare import as_table
from tools.compare.model import chosen_cells, chosen_ways
from tools.compare.results import Comparison, comparison
from tools.compare.runner import RowJob, RowSamples, jobs_of, measure_all
from tools.report import write_file

INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be compared, as typed where it names something. timeout: seconds for one run of one cell."""

    kernels: tuple[str, ...]
    ways: str | None
    rows: str | None
    short: bool
    rounds: int
    timeout: float
    processes: int
    icount: bool
    json: str | None


def compare(request: Request) -> int:
    """Compares; returns the exit status: 0, or that of an interruption. Raises InputError before anything runs."""
    cells = chosen_cells(request.kernels, request.rows, chosen_ways(request.ways, request.short), request.short)
    jobs = jobs_of(cells, request.rounds, request.timeout, request.icount)
    found: list[RowSamples] = []
    interrupted = False
    with _progress(jobs) as done:
        try:
            found.extend(measure_all(jobs, request.processes, done))
        except KeyboardInterrupt:
            interrupted = True
    found.sort(key=lambda row: jobs.index(row.job))
    _hand_out(comparison(found, request.rounds, request.icount), request)
    return INTERRUPTED if interrupted else 0


def _hand_out(result: Comparison, request: Request) -> None:
    if request.json is not None:
        write_file(request.json, lambda file: file.write(json.dumps(result.as_dict(), indent=1) + "\n"))
    console = Console()
    as_table.show(result, Console(width=max(console.width, 150) if not console.is_terminal else None))


@contextmanager
def _progress(jobs: list[RowJob]) -> Iterator[Callable[[], object]]:
    """A bar on standard error, where that is a terminal, that moves a step for each cell's run."""
    columns = (TextColumn("comparing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("", total=sum(len(job.ways) * (1 + job.rounds) for job in jobs))
        yield lambda: bar.advance(task)
