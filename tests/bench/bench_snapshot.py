"""Snapshots of an idle Linux guest of 128 MiB: how long it stands still, and how large they are; tools/fetch_guests.py must have been run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.conftest import Keep
from tests.guests.test_linux_snapshot import MEMORY_MIB, Typist, at_the_prompt, empty
from vmm.backends.hw import HwOptions
from vmm.snapshot.file import read, write

pytestmark = pytest.mark.bench

ROUNDS = 5


def seconds(act: Callable[[], object]) -> float:
    """Wall seconds: a file has to come to the medium."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def test_snapshots(keep: Keep, tmp_path: Path) -> None:
    """Whole and incremental, from a guest that runs to a durable file; and back, from the file to a guest about to run."""
    shell = at_the_prompt("linux-pae", tmp_path)
    vm, whole, changes = shell.vm, str(tmp_path / "whole"), str(tmp_path / "changes")
    times = [seconds(lambda: write(whole, vm.snapshot())) for _ in range(ROUNDS)]
    keep("snapshot", statistics.median(times), f"{statistics.median(times):.2f} s")
    size = Path(whole).stat().st_size / (1 << 20)
    keep("snapshot-size", size, f"{size:.1f} MiB of {MEMORY_MIB} MiB")
    last, later = vm.snapshot(), []
    write(whole, last)
    last = replace(last, frames={})
    for _ in range(ROUNDS):
        vm.stopped = None
        vm.run(0.5)
        later.append(seconds(lambda parent=last: write(changes, vm.snapshot(parent), whole)))
        last = replace(vm.snapshot(), frames={})
    keep("snapshot-changes", statistics.median(later), f"{statistics.median(later):.2f} s")

    def back() -> None:
        snapshot = read(whole)
        empty(Typist(), HwOptions()).restore(snapshot)

    times = [seconds(back) for _ in range(ROUNDS)]
    keep("restore", statistics.median(times), f"{statistics.median(times):.2f} s")
