"""A writer of disks and snapshots that is killed at moments of chance: a few of what `make torture` does a thousand times."""

import subprocess
import sys

from tests.layers import ROOT


def test_nothing_durable_is_lost() -> None:
    """In a process of its own, which forks."""
    command = [sys.executable, "-m", "tests.machine.torture", "--moments", "40", "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("40 moments, ")
