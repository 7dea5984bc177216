"""How often and in which order cells are run: warm-up, the right amount of work, and rounds in which all ways of a row take turns.

Knows samples and time. A round measures every way of a row one after the other, so that a ratio of two of them is taken under the same
circumstances; rows are spread over processes, or over a cluster's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from tools.compare.cell import Wanted
from tools.compare.model import WAYS, Cell, Sample
from tools.compare.worker import Worker

_ENOUGH_NS: Final = {True: 40_000_000, False: 250_000_000}
"""CPU time that a measurement is to take, for ways of ours and for others, whose clock is read from outside."""
_LONGEST_NS: Final = 600_000_000
"""Wall time that it is to take at most: rows that wait use little CPU time."""
_LOOK: Final = 0.2
"""Seconds between looks at signals."""
_STEADY_NS: Final = 3_000_000_000
"""CPU time from which on a run says enough by itself: it is not repeated."""
_MOST: Final = 20_000_000
_TRIES: Final = 4


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


class Pace:
    """How much time there is for a comparison, and how much of it is spent; asked by the threads that measure."""

    def __init__(self, jobs: int = 1, at_a_time: int = 1, limit: float | None = None) -> None:
        """limit: seconds for all jobs; None where nobody waits."""
        self._began = time.monotonic()
        self._jobs, self._at_a_time, self._limit, self._ended, self._reason = jobs, at_a_time, limit, 0, ""

    def stop(self, reason: str) -> None:
        """Nothing more is to be run, for this reason."""
        self._reason = self._reason or reason

    def ended(self) -> None:
        """A job has come to its end."""
        self._ended += 1

    def over(self) -> str:
        """Why nothing more is to be run; empty while there is time."""
        if not self._reason and self._limit is not None and self._spent() > self._limit:
            self._reason = f"left out: the comparison's {self._limit:g} s are over (--limit)"
        return self._reason

    def behind(self) -> bool:
        """Whether so much time is spent that the jobs that are left need what further rounds of this one would take."""
        return self._limit is not None and self._spent() > self._limit * (self._ended + self._at_a_time) / (self._jobs + self._at_a_time)

    def _spent(self) -> float:
        return time.monotonic() - self._began


def jobs_of(cells: Iterable[Cell], rounds: int, timeout: float, icount: bool) -> list[RowJob]:
    """The jobs for cells of which those of a row follow one another."""
    grouped = groupby(cells, key=lambda cell: (cell.kernel, cell.row))
    return [RowJob(kernel, row, tuple(cell.way for cell in group), rounds, timeout, icount) for (kernel, row), group in grouped]


def measure_row(job: RowJob, done: Callable[[], object] = lambda: None, pace: Pace | None = None) -> RowSamples:
    """Carries a job out. `done` is called for each way's warm-up and for each of its measurements, left out or not.

    Behind its pace a row is measured once. Once all is over nothing more is run: what has been measured counts, and what has not has that as
    its reason.
    """
    pace = pace or Pace()
    samples: dict[str, list[Sample]] = {}
    wanted: dict[str, Wanted] = {}
    with Worker(pace.over) as worker:
        for way in job.ways:
            found = _right_amount(worker, Wanted(Cell(job.kernel, job.row, way), None, job.timeout, job.icount))
            done()
            if isinstance(found, Sample):
                samples[way] = [found]
                for _ in range(job.rounds):
                    done()
            else:
                wanted[way], samples[way] = found, []
        for turn in range(job.rounds):
            left_out = turn > 0 and pace.behind()
            for way, again in wanted.items():
                if not left_out and _again(samples[way]):
                    samples[way].append(worker.run(again))
                done()
    pace.ended()
    return RowSamples(job, {way: _sound(samples[way], pace.over()) for way in job.ways})


def measure_all(jobs: list[RowJob], processes: int, done: Callable[[], object], pace: Pace) -> Iterator[RowSamples]:
    """Carries all jobs out, so many at a time, boots first, which are long; yields what became of each as it ends."""
    with ThreadPoolExecutor(processes) as pool:
        left = {pool.submit(measure_row, job, done, pace) for job in sorted(jobs, key=lambda job: job.kernel != job.row)}
        while left:
            ended, left = wait(left, _LOOK, FIRST_COMPLETED)  # not for ever: a signal that comes just before one waits would wait as well
            yield from (future.result() for future in ended)


def _again(samples: Sequence[Sample]) -> bool:
    """Whether one more would tell more."""
    return not samples or not samples[-1].reason and samples[-1].cpu_ns < _STEADY_NS


def _sound(samples: list[Sample], over: str) -> list[Sample]:
    """The samples; or the one that says why not all are there, unless only time was wanting for more."""
    failed = [sample for sample in samples if sample.reason]
    if failed and failed[0].reason == over:
        return samples[:-1] or failed
    return failed[:1] or samples


def _right_amount(worker: Worker, wanted: Wanted) -> Wanted | Sample:
    """The same with a count that takes long enough to be measured; or the sample that says why there is none. This is the warm-up too.

    Counted instructions need no long time: there the kernel's own count stands, so that runs are the same. A boot
    has no count, and warms nothing up.
    """
    if not _counted(wanted):
        return wanted
    ours = WAYS[wanted.cell.way].words is not None
    enough = _ENOUGH_NS[ours]
    for _ in range(_TRIES):
        sample = worker.run(wanted)
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
