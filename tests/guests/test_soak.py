"""Linux under binary translation, busy for two minutes. `make soak` is the same for half an hour."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guests.soak import GROWTH, soak


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_two_minutes(tmp_path: Path) -> None:
    """Forks, pipes of programs, checksums and ftrace on and off have the right results, round after round, and memory does not grow."""
    rounds, memory, _ = soak(120, tmp_path)
    assert rounds >= 2 and memory
    assert memory[-1] <= GROWTH * memory[len(memory) // 2]
