"""xv6 against QEMU: CPU time to the shell's prompt and of forktest, and the memory that it takes. Needs XV6=DIR, a tree that you have built."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.bench.conftest import Keep
from tests.bench.timing import VMM, compiled_environment
from tests.guests.dialogue import Step, talk_to_process
from tests.guests.footprint import MEMORY_MIB, measure
from tests.guests.test_qemu import QEMU
from tests.require import require, require_xv6
from vmm.machine import MIB

pytestmark = pytest.mark.bench

FORKTESTS = 8  # a process's CPU time is told in hundredths of a second
STEPS = (Step("init: starting sh\n$ ", "forktest\n"), *[Step("fork test OK\n$ ", "forktest\n")] * FORKTESTS)
ROUNDS = 5


def boot_and_forktest(command: Sequence[str]) -> tuple[float, float]:
    """CPU seconds of a process to the prompt, and of one forktest."""
    _, progress = talk_to_process(command, STEPS, 120)
    return progress.cpu[0], (progress.cpu[-1] - progress.cpu[0]) / FORKTESTS


def test_boot_and_forktest(keep: Keep, tmp_path: Path) -> None:
    """Both systems run the same kernel file with the same memory, in turns."""
    kernel, memory = str(require_xv6("kernelmemfs")), str(MEMORY_MIB)
    environment = compiled_environment(tmp_path)
    ours = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *VMM, "run", kernel, "-m", memory]
    theirs = [require(QEMU), "-kernel", kernel, "-m", memory, "-display", "none", "-serial", "stdio", "-no-reboot"]
    boot_and_forktest(ours)  # compiles the modules
    pairs = [(boot_and_forktest(ours), boot_and_forktest(theirs)) for _ in range(ROUNDS)]
    (boot, forktest), (their_boot, their_forktest) = (
        tuple(statistics.median(pair[side][n] for pair in pairs) for n in range(2)) for side in range(2)
    )
    try:
        keep("boot", boot / their_boot, f"{boot:.2f} s against {their_boot:.2f} s")
    finally:
        keep("forktest", forktest / their_forktest, f"{forktest:.3f} s against {their_forktest:.3f} s")


@pytest.mark.parametrize(("row", "option"), (("icount", "--icount"), ("translate_user", "--user=translate")))
def test_option(row: str, option: str, keep: Keep, tmp_path: Path) -> None:
    """What an option costs: forktest with it and without it, in turns."""
    kernel, memory = str(require_xv6("kernelmemfs")), str(MEMORY_MIB)
    environment = compiled_environment(tmp_path)
    plain = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *VMM, "run", kernel, "-m", memory]
    pairs = [(boot_and_forktest([*plain, option])[1], boot_and_forktest(plain)[1]) for _ in range(ROUNDS)]
    ours, theirs = (statistics.median(pair[side] for pair in pairs) for side in range(2))
    keep(row, ours / theirs, f"{ours:.3f} s against {theirs:.3f} s")


def test_memory(keep: Keep) -> None:
    """Resident memory of the process after 100 rounds of forktest, when the engine's buffer for compiled code is full, and 200 rounds later."""
    after = measure(require_xv6("kernelmemfs"), (100, 300), 1200)
    sizes = f"{after[0].beside / MIB:.1f} MiB after 100 rounds, {after[-1].beside / MIB:.1f} MiB after 300"
    try:
        keep("memory", after[-1].beside / MIB, sizes)
    finally:
        keep("growth", (after[-1].resident - after[0].resident) / MIB, sizes)
