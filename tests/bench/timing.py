"""How two things are compared on a machine that other people use too: in turns, in one process run, by medians.

Knows clocks and processes. Knows nothing of what is measured.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
VMM = (sys.executable, "-c", "from tools.cli import main; main()")
"""The `vmm` command, as the console script runs it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Medians of two measurements taken in turns, in the same unit."""

    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        """How many times theirs ours is."""
        return self.ours / self.theirs


def in_turns(ours: Callable[[], float], theirs: Callable[[], float], rounds: int = 5) -> Pair:
    """Measures both `rounds` times, alternately, after one round that does not count."""
    pairs = [(ours(), theirs()) for _ in range(rounds + 1)][1:]
    return Pair(statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs))


def cpu_seconds(action: Callable[[], object]) -> float:
    """User and system seconds of this process that `action` takes."""
    before = time.process_time()
    action()
    return time.process_time() - before


def wall_seconds(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Seconds from the start of a process to its end, which must be a success."""
    before = time.perf_counter()
    subprocess.run(command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - before


def compiled_environment(folder: Path) -> dict[str, str]:
    """An environment in which Python keeps its compiled modules in `folder`, as an installed program's are kept."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return environment | {"PYTHONPYCACHEPREFIX": str(folder)}
