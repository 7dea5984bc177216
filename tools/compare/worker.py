"""A process that runs one cell once: a job as JSON on standard input, its sample as JSON on standard output.

    python -m tools.compare.worker <job.json

Knows which of the three runners a way belongs to. A cell of its own process cannot take another one with it, whatever its guest does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Final

from tools.compare.cell import Wanted, measure
from tools.compare.model import Cell, Sample

_GRACE: Final = 20.0
"""Seconds beyond the time limit until a process that does not end is ended."""


def run_cell(wanted: Wanted) -> Sample:
    """Runs a cell in a process of its own. Whatever goes wrong there is the sample's reason."""
    command = [sys.executable, "-P", "-m", "tools.compare.worker"]  # -P: a folder "tools" where the user stands is none of ours
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            command, input=json.dumps(asdict(wanted)), env=environment, capture_output=True, text=True, timeout=wanted.timeout + _GRACE, check=False
        )
    except subprocess.TimeoutExpired:
        return Sample(f"no answer within {wanted.timeout + _GRACE:g} s")
    if done.returncode:
        return Sample(f"its process failed with status {done.returncode}: {done.stderr.strip().rpartition(chr(10))[2]}")
    values = json.loads(done.stdout)
    assert isinstance(values, dict)
    return Sample(**values)


def run_here(wanted: Wanted) -> Sample:
    """Runs a cell in this process."""
    if wanted.cell.way == "qemu":
        from tools.compare.outside import on_qemu

        return on_qemu(wanted)
    if wanted.cell.way == "unicorn":
        from tools.compare.bare import on_unicorn

        return on_unicorn(wanted)
    return measure(wanted)


def main() -> None:
    """The process."""
    job = json.load(sys.stdin)
    wanted = Wanted(Cell(**job.pop("cell")), **job)
    json.dump(asdict(run_here(wanted)), sys.stdout)


if __name__ == "__main__":
    main()
