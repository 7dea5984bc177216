"""What a comparison found: medians over rounds, for one time of a row's work; plain data with a JSON form.

Three readings stand side by side and are never mixed: time, exits (architectural ones, and engine assists apart), modelled cycles. The JSON form's
keys are documented in docs/COMPARISON.md and stay as they are.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

from tools.compare.costs import costs
from tools.compare.model import WAYS, Sample
from tools.compare.runner import RowSamples
from vmm.errors import InputError

SCHEMA: Final = 1
REFERENCE: Final = "native"


@dataclass(frozen=True, slots=True)
class CellResult:
    """One row under one way, for one time of its work. reason: why there is nothing; the rest is then empty.

    count: times in each measurement. rounds: measurements. time_ns: CPU time; wall_ns: wall time; medians. spread: half of what lies between the
    extremes, as a share of the median. ratio: the median of the ratios to the reference in the same round; None where that did not run.
    architectural, engine: exits by reason. cycles: modelled, by machine.
    """

    reason: str = ""
    count: int = 0
    rounds: int = 0
    time_ns: float = 0.0
    wall_ns: float = 0.0
    spread: float = 0.0
    ratio: float | None = None
    architectural: dict[str, float] = field(default_factory=dict)
    engine: dict[str, float] = field(default_factory=dict)
    callouts: dict[str, float] = field(default_factory=dict)
    hypercalls: dict[str, float] = field(default_factory=dict)
    cycles: dict[str, float] = field(default_factory=dict)
    retired: float | None = None

    @property
    def exits(self) -> float:
        """Architectural exits of all reasons."""
        return sum(self.architectural.values())


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row: its cells by way."""

    kernel: str
    row: str
    cells: dict[str, CellResult]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that was found. machine: what it was measured on."""

    machine: str
    rounds: int
    icount: bool
    rows: list[RowResult]

    def as_dict(self) -> dict[str, object]:
        """The JSON form."""
        return {"schema": SCHEMA, **asdict(self)}


def comparison(found: Iterable[RowSamples], rounds: int, icount: bool) -> Comparison:
    """The results of all rows, in the order given."""
    rows = [RowResult(each.job.kernel, each.job.row, _cells(each.samples)) for each in found]
    cores = len(os.sched_getaffinity(0))
    return Comparison(f"{_cpu_name()}, {cores} cores, Linux {platform.release()}, Python {platform.python_version()}", rounds, icount, rows)


def from_dict(name: str, value: object) -> Comparison:
    """A comparison from its JSON form. Raises InputError when it is none; `name` says whose it is."""
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise InputError(f"{name}: no results of vmm compare, or of another version of it")
    try:
        rows = [
            RowResult(str(row["kernel"]), str(row["row"]), {str(way): CellResult(**cell) for way, cell in row["cells"].items()})
            for row in value["rows"]
        ]
        return Comparison(str(value["machine"]), int(value["rounds"]), bool(value["icount"]), rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{name}: damaged results of vmm compare ({type(error).__name__}: {error})") from None


def _cells(samples: Mapping[str, Sequence[Sample]]) -> dict[str, CellResult]:
    reference = samples.get(REFERENCE, ())
    return {way: _cell(way, each, reference) for way, each in samples.items()}


def _cell(way: str, samples: Sequence[Sample], reference: Sequence[Sample]) -> CellResult:
    if not samples or samples[0].reason:
        return CellResult(samples[0].reason if samples else "not measured")
    times = [sample.cpu_ns / sample.count for sample in samples]
    middle = statistics.median(times)
    # Under real time a timer's tick more or less may be among the exits: the median run says what is usual.
    usual = sorted(samples, key=lambda sample: sum(sample.architectural.values()) / sample.count)[(len(samples) - 1) // 2]
    each = [_each(counts, usual.count) for counts in (usual.architectural, usual.engine, usual.callouts, usual.hypercalls)]
    ratio = None
    if reference and not reference[0].reason:
        ratio = statistics.median(time / (other.cpu_ns / other.count) for time, other in zip(times, reference))
    return CellResult(
        count=usual.count,
        rounds=len(samples),
        time_ns=middle,
        wall_ns=statistics.median(sample.wall_ns / sample.count for sample in samples),
        spread=(max(times) - min(times)) / 2 / middle,
        ratio=ratio,
        architectural=each[0],
        engine=each[1],
        callouts=each[2],
        hypercalls=each[3],
        cycles=costs().cycles(way, each[0]),
        retired=None if usual.retired is None else usual.retired / usual.count,
    )


def _each(counts: Mapping[str, int], count: int) -> dict[str, float]:
    return {name: times / count for name, times in sorted(counts.items(), key=lambda item: -item[1])}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), platform.machine())
    except OSError:
        return platform.machine()


OURS: Final = tuple(name for name, way in WAYS.items() if way.words is not None)
