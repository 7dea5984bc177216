"""`vmm compare` from what was asked for to the tables and files.

Knows the order of things: what can be refused is refused before anything runs, and a run that was interrupted shows what it has.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tools.compare import as_table
from tools.compare.model import chosen_cells, chosen_ways
from tools.compare.results import Comparison, comparison
from tools.compare.runner import Pace, RowJob, RowSamples, jobs_of, measure_all
from tools.compare.saved import changes, path_of, read, save
from tools.report import write_file

_WIDTH: Final = 150
"""Columns where there is no terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be compared, as typed where it names something. timeout, limit: seconds for one run of one cell, and for everything."""

    kernels: tuple[str, ...]
    ways: str | None
    rows: str | None
    short: bool
    rounds: int
    timeout: float
    limit: float
    processes: int
    icount: bool
    json: str | None = None
    html: str | None = None
    save: str | None = None
    against: str | None = None
    cluster: str | None = None


def compare(request: Request) -> int:
    """Compares; returns the exit status: 0, 1 when something is worse than `against`, or that of an interruption.

    Raises InputError before anything runs.
    """
    before = None if request.against is None else read(request.against)
    if request.save is not None:
        path_of("--save", request.save)
    cells = chosen_cells(request.kernels, request.rows, chosen_ways(request.ways, request.short), request.short)
    jobs = jobs_of(cells, request.rounds, request.timeout, request.icount)
    pace = Pace(len(jobs), request.processes, request.limit)
    with _progress(jobs) as done, _signals(pace) as came:
        found = sorted(_measured(jobs, request, done, pace), key=lambda row: jobs.index(row.job))
    worse = _hand_out(comparison(found, request.rounds, request.icount), request, before)
    return 128 + came[0] if came else int(worse)


def explain_row(kernels: tuple[str, ...], row: str, ways: str | None) -> None:
    """Shows the mechanism of one row. Raises InputError for what is not there."""
    from tools.compare.explain import explain

    chosen = tuple(way for way in chosen_ways(ways, ways is None) if way.words is not None)
    found = dict.fromkeys((cell.kernel, cell.row) for cell in chosen_cells(kernels, row, chosen, False))
    for kernel, name in found:
        explain(kernel, name, chosen)


def _measured(jobs: list[RowJob], request: Request, done: Callable[[], object], pace: Pace) -> Iterator[RowSamples]:
    if request.cluster is None:
        return measure_all(jobs, request.processes, done, pace)
    from tools.compare.cluster import measure_on_cluster

    return measure_on_cluster(jobs, request.cluster, done, pace)


@contextmanager
def _signals(pace: Pace) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM end what is measured, not the command; the list has what came."""
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        pace.stop("interrupted")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hand_out(result: Comparison, request: Request, before: Comparison | None) -> bool:
    """Shows and writes everything; whether something is worse than before."""
    if request.json is not None:
        write_file(request.json, lambda file: file.write(json.dumps(result.as_dict(), indent=1) + "\n"))
    if request.html is not None:
        from tools.compare import as_html

        write_file(request.html, lambda file: as_html.write(result, file))
    if request.save is not None:
        save(request.save, result)
    console = Console()
    console = console if console.is_terminal else Console(width=max(console.width, _WIDTH))
    as_table.show(result, console)
    found = changes(before, result) if before is not None else []
    if before is not None:
        as_table.show_changes(found, request.against or "", console)
    return any(change.worse for change in found)


@contextmanager
def _progress(jobs: list[RowJob]) -> Iterator[Callable[[], object]]:
    """A bar on standard error, where that is a terminal, that moves a step for each cell's run."""
    columns = (TextColumn("comparing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("", total=sum(len(job.ways) * (1 + job.rounds) for job in jobs))
        yield lambda: bar.advance(task)
