"""The endless form of the equivalence test: python -m tests.oracle.fuzz [--programs N] [--jobs N] [--seed N] (make fuzz).

Runs programs in processes of their own, so that one that kills its process is found and kept as well. Each failure is shrunk and saved
under tests/oracle/saved, where test_equivalence.py runs it from then on. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from hashlib import sha1
from multiprocessing.connection import wait
from pathlib import Path
from typing import Final

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from tests.oracle.generated import Generated, generated
from tests.oracle.harness import SAVED, WAYS, Disagreement, check

_BATCH: Final = 200  # programs from one seed


def main() -> int:
    """Fuzzes as asked; the exit status is 1 when anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracle.fuzz", description="Compare generated guests on the bare machine and under bt.")
    parser.add_argument("--programs", type=int, default=0, help="end after so many (0: never)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="where to begin")
    wanted = parser.parse_args()
    began, done, found, seed = time.monotonic(), 0, 0, wanted.seed
    print(f"from seed {wanted.seed}", flush=True)
    running: dict[multiprocessing.process.BaseProcess, tuple[int, Path]] = {}
    context = multiprocessing.get_context("spawn")
    try:
        while running or not wanted.programs or done < wanted.programs:
            while len(running) < wanted.jobs and (not wanted.programs or done + len(running) * _BATCH < wanted.programs):
                current = Path(tempfile.gettempdir(), f"vmm-fuzz-{os.getpid()}-{seed}")
                process = context.Process(target=_batch, args=(seed, str(current)))
                process.start()
                running[process] = seed, current
                seed += 1
            wait([process.sentinel for process in running])
            for process in [process for process in running if process.exitcode is not None]:
                number, current = running.pop(process)
                done += _BATCH
                found += process.exitcode != 0
                if process.exitcode not in (0, 1):
                    print(f"seed {number}: the process died ({process.exitcode})", flush=True)
                    save(Generated.from_json(current.read_text()))
                current.unlink(missing_ok=True)
                print(f"{done} programs, {found} batches with a failure, {time.monotonic() - began:.0f} s", flush=True)
    except KeyboardInterrupt:
        pass
    return int(found > 0)


def _batch(seed: int, current: str) -> None:
    """The programs of one seed, in a process of its own."""

    @seeded(seed)
    @settings(
        max_examples=_BATCH,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.booleans().flatmap(lambda timer: generated(timer=timer)), st.sampled_from(sorted(WAYS)))
    def agree(program: Generated, way: str) -> None:
        Path(current).write_text(program.to_json())
        check(program, way)

    try:
        agree()
    except Disagreement as failure:
        print(f"seed {seed}: {failure}", flush=True)
        save(failure.program)
        sys.exit(1)


def save(program: Generated) -> None:
    """Keeps a program as a test."""
    SAVED.mkdir(exist_ok=True)
    text = program.to_json()
    path = SAVED / f"{sha1(text.encode()).hexdigest()[:10]}.json"
    path.write_text(text + "\n")
    print(f"saved as {path.name}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
