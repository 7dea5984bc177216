"""How cells are run: in processes of their own, as often as there is time for, and what has been measured counts whatever comes then."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tools.compare.cell import Wanted
from tools.compare.model import Cell
from tools.compare.runner import Pace, RowJob, measure_row
from tools.compare.worker import Worker

LONG = Wanted(Cell("work", "stream", "step"), 1_000_000, 100.0)
SHORT = Wanted(Cell("nano", "null", "native"), 100, 60.0)
PATIENCE = 60.0


def children(pid: int) -> list[int]:
    """The processes that a process has started, all of its threads together."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            found += [int(child) for child in task.joinpath("children").read_text().split()]
    return found


def started(of: Callable[[], list[int]]) -> int:
    """The first process of those asked for, as soon as there is one."""
    end = time.monotonic() + PATIENCE
    while not (found := of()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found[0]


@pytest.mark.parametrize(("server", "reason"), [(False, "its process ended by signal 9"), (True, "its process failed: ")])
def test_a_cell_that_dies_takes_no_other_with_it(server: bool, reason: str) -> None:
    """Neither the end of its process nor that of the worker: the next cell runs."""
    before = set(children(os.getpid()))
    with ThreadPoolExecutor(1) as thread, Worker() as worker:
        long = thread.submit(worker.run, LONG)
        victim = started(lambda: [child for child in children(os.getpid()) if child not in before])
        cell = started(lambda: children(victim))
        os.kill(victim if server else cell, signal.SIGKILL)
        if server:
            os.kill(cell, signal.SIGKILL)  # it holds the worker's standard output as well
        assert long.result().reason == reason
        assert worker.run(SHORT).count == 100
    assert set(children(os.getpid())) == before


def test_a_fault_of_ours_is_a_reason() -> None:
    """In one cell alone."""
    with Worker() as worker:
        assert worker.run(Wanted(Cell("nono", "null", "native"), 1, 60.0)).reason == "its process failed: KeyError: 'nono'"
        assert not worker.run(SHORT).reason


def test_what_has_been_measured_counts() -> None:
    """An interruption in the fourth of a thousand rounds: there are results of the rounds before, and none of a way that was not reached."""
    pace, steps = Pace(), 0

    def done() -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            pace.stop("interrupted")

    found = measure_row(RowJob("nano", "null", ("native", "hw"), 1000, 60.0, icount=True), done, pace)
    assert [sample.reason for sample in found.samples["native"]] == ["", ""]
    assert [sample.reason for sample in found.samples["hw"]] == [""]
    late = measure_row(RowJob("nano", "null", ("bt",), 3, 60.0), pace=pace)
    assert [sample.reason for sample in late.samples["bt"]] == ["interrupted"]


def test_a_row_is_measured_once_when_time_is_short() -> None:
    """Behind its pace one round must do; once the limit has come nothing is run, and a row in time has all its rounds."""
    job = RowJob("nano", "null", ("native",), 3, 60.0, icount=True)
    assert len(measure_row(job, pace=Pace(10**12, 1, 1e6)).samples["native"]) == 1
    assert len(measure_row(job, pace=Pace(1, 1, 1e6)).samples["native"]) == 3
    (over,) = measure_row(job, pace=Pace(1, 1, 1e-9)).samples["native"]
    assert over.reason == "left out: the comparison's 1e-09 s are over (--limit)"


def test_a_cell_ends_when_all_is_over() -> None:
    """However long it would have run."""
    pace = Pace()
    with ThreadPoolExecutor(1) as thread, Worker(pace.over) as worker:
        before = set(children(os.getpid()))
        long = thread.submit(worker.run, LONG)
        started(lambda: [child for child in children(os.getpid()) if child not in before])
        pace.stop("interrupted")
        assert long.result(timeout=PATIENCE).reason == "interrupted"
