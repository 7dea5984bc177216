"""What a person waits for before a guest's first instruction: the whole process of `vmm run hello`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.bench.conftest import Keep
from tests.bench.timing import VMM, compiled_environment, in_turns, wall_seconds

pytestmark = pytest.mark.bench


def test_start(keep: Keep, tmp_path: Path) -> None:
    """The whole process, from start to end, against Python with the two libraries alone."""
    environment = compiled_environment(tmp_path)
    bare = (sys.executable, "-c", "import unicorn, capstone")
    pair = in_turns(lambda: wall_seconds([*VMM, "run", "hello"], environment), lambda: wall_seconds(bare, environment), rounds=9)
    keep("start", pair.ratio, f"{pair.ours:.2f} s against {pair.theirs:.2f} s")
