"""What a person waits for who looks at a small kernel's translation: the whole process of `vmm dump`."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from tests.bench.conftest import Keep
from tests.bench.timing import VMM, compiled_environment, wall_seconds
from tests.cli import flat

pytestmark = pytest.mark.bench

INSTRUCTIONS = 5000


def test_dump(keep: Keep, tmp_path: Path) -> None:
    """Text of a guest that carries out 5,000 different instructions, from the start of the process to its end."""
    environment = compiled_environment(tmp_path / "compiled")
    body = "; ".join(f"add eax, {number}" for number in range(INSTRUCTIONS))
    guest = flat.write(tmp_path, f"{body}; mov al, 0; out 0xf4, al; hang: jmp hang")
    seconds = [wall_seconds([*VMM, "dump", *guest], environment) for _ in range(6)][1:]
    keep("dump", statistics.median(seconds), f"{statistics.median(seconds):.2f} s, {max(seconds):.2f} s at worst")
