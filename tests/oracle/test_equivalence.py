"""Generated guests run on the bare machine and under binary translation: both must leave the same events, memory and registers.

Every way of binary translation takes its turn, and every tenth program is run on QEMU as well, which shares no code with us. What
the programs must have covered is counted and required. Longer: make fuzz.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bt.sensitive import TABLE
from tests.oracle.generated import Generated, generated
from tests.oracle.guest import MOST_STEPS
from tests.oracle.harness import EXEMPT_ROWS, LEVELS, SAVED, VECTORS, WAYS, Coverage, Disagreement, check
from tests.oracle.on_qemu import disagreements_with_qemu
from tests.require import require

EXAMPLES = 200
QEMU = "qemu-system-i386"


@pytest.mark.slow
def test_generated_programs_agree() -> None:
    """200 programs of Hypothesis's, and some by number, agree; between them they do everything that can go wrong."""
    coverage, seen = Coverage(), Counter[str]()
    programs: list[Generated] = []

    def agree(program: Generated, way: str) -> None:
        seen[way] += 1
        coverage.add(program, check(program, way))
        programs.append(program)

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.booleans().flatmap(lambda timer: generated(timer=timer)), st.sampled_from(sorted(WAYS)))
    def drawn(program: Generated, way: str) -> None:
        agree(program, way)

    drawn()
    for number in range(EXAMPLES):
        agree(Generated.of_seed(number, timer=number % 3 == 0), sorted(WAYS)[number % len(WAYS)])
    for first in range(0, 4 * len(TABLE), MOST_STEPS - 1):
        agree(Generated.of_table(first), sorted(WAYS)[first % len(WAYS)])
    assert set(seen) == set(WAYS)
    missed = {row.name for row in TABLE} - EXEMPT_ROWS - coverage.rows
    assert not missed
    assert not VECTORS - coverage.vectors.keys(), coverage.vectors
    assert not LEVELS - coverage.levels, coverage.levels
    compared, found = disagreements_with_qemu(require(QEMU), programs[::2] + programs[1::2], len(programs) // 8)
    assert not found, "\n".join(found)
    assert compared >= len(programs) // 10, compared


@pytest.mark.parametrize("path", sorted(SAVED.glob("*.json")), ids=lambda path: path.stem)
def test_programs_that_failed_once(path: Path) -> None:
    """What a fuzz run found stays a test."""
    program = Generated.from_json(path.read_text())
    for way in WAYS:
        check(program, way)


def test_a_disagreement_is_reported_readably() -> None:
    """The exception names the program, step by step, and what differed."""
    program = Generated("off", (("faults", (0,) * 14),))
    text = str(Disagreement(program, "ring1", ["event 0: ..."]))
    assert "0 faults" in text and "event 0" in text and program.to_json() in text
