"""How often and in which order cells are run: warm-up, the right amount of work, and rounds in which all ways of a row take turns.

Knows samples and time. A round measures every way of a row one after the other, so that a ratio of two of them is taken under the same
circumstances; rows are spread over processes, or over a cluster's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import groupby
from threading import Event
from typing import Final

from tools.compare.cell import Wanted
from tools.compare.model import WAYS, Cell, Sample
from tools.compare.worker import run_cell

_ENOUGH_NS: Final = {True: 40_000_000, False: 250_000_000}
"""CPU time that a measurement is to take, for ways of ours and for others, whose clock is read from outside."""
_LONGEST_NS: Final = 600_000_000
"""Wall time that it is to take at most: rows that wait use little CPU time."""
_MOST: Final = 20_000_000
_TRIES: Final = 4
_STOPPED: Final = Sample("interrupted")


@dataclass(frozen=True, slots=True)
class RowJob:
    """One row under all its ways. rounds: how often each is measured, beside the warm-up. timeout: seconds for one run of one cell."""

    kernel: str
    row: str
    ways: tuple[str, ...]
    rounds: int
    timeout: float
    icount: bool = False


@dataclass(frozen=True, slots=True)
class RowSamples:
    """What became of a job: for each way its samples, one for each round; a single one with a reason where it did not run."""

    job: RowJob
    samples: dict[str, list[Sample]]


def jobs_of(cells: Iterable[Cell], rounds: int, timeout: float, icount: bool) -> list[RowJob]:
    """The jobs for cells of which those of a row follow one another."""
    grouped = groupby(cells, key=lambda cell: (cell.kernel, cell.row))
    return [RowJob(kernel, row, tuple(cell.way for cell in group), rounds, timeout, icount) for (kernel, row), group in grouped]


def measure_row(job: RowJob, done: Callable[[], object] = lambda: None, stopped: Callable[[], bool] = lambda: False) -> RowSamples:
    """Carries a job out. `done` is called for each way's warm-up and for each of its measurements, left out or not.

    Once `stopped` says so nothing more is run, and what is left has that as its reason.
    """
    samples: dict[str, list[Sample]] = {}
    wanted: dict[str, Wanted] = {}
    for way in job.ways:
        first = Wanted(Cell(job.kernel, job.row, way), None, job.timeout, job.icount)
        found = _STOPPED if stopped() else _right_amount(first)
        done()
        if isinstance(found, Sample):
            samples[way] = [found]
            for _ in range(job.rounds):
                done()
        else:
            wanted[way], samples[way] = found, []
    for _ in range(job.rounds):
        for way, again in wanted.items():
            if not (samples[way] and samples[way][-1].reason):
                samples[way].append(_STOPPED if stopped() else run_cell(again))
            done()
    return RowSamples(job, {way: _sound(samples[way]) for way in job.ways})


def measure_all(jobs: list[RowJob], processes: int, done: Callable[[], object]) -> Iterator[RowSamples]:
    """Carries all jobs out, so many at a time; yields what became of each as it ends."""
    pool, stop = ThreadPoolExecutor(processes), Event()
    try:
        for future in as_completed([pool.submit(measure_row, job, done, stop.is_set) for job in jobs]):
            yield future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _sound(samples: list[Sample]) -> list[Sample]:
    """The samples, or the one that says why not all are there."""
    failed = [sample for sample in samples if sample.reason]
    return failed[:1] or samples


def _right_amount(wanted: Wanted) -> Wanted | Sample:
    """The same with a count that takes long enough to be measured; or the sample that says why there is none. This is the warm-up too.

    Counted instructions need no long time: there the kernel's own count stands, so that runs are the same. A boot
    has no count, and warms nothing up.
    """
    if not _counted(wanted):
        return wanted
    ours = WAYS[wanted.cell.way].words is not None
    enough = _ENOUGH_NS[ours]
    for _ in range(_TRIES):
        sample = run_cell(wanted)
        if sample.reason:
            return sample
        if wanted.icount or sample.cpu_ns >= enough // 2 or sample.wall_ns >= _LONGEST_NS // 2 or sample.count >= _MOST:
            return replace(wanted, count=sample.count)
        factor = min(enough / max(sample.cpu_ns, enough / 500), _LONGEST_NS / sample.wall_ns)
        wanted = replace(wanted, count=min(_MOST, max(sample.count + 1, int(sample.count * factor))))
    return wanted


def _counted(wanted: Wanted) -> bool:
    """Whether the row's work can be done more than once in a run."""
    return wanted.cell.kernel != wanted.cell.row
