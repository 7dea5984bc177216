"""The harness can fail: it notices each of a list of mistakes that are put into our own code."""

from __future__ import annotations

import pytest

from tests.oracle.generated import Generated
from tests.oracle.harness import WAYS, on_bare_machine
from tests.oracle.mutants import MUTANTS, Mutant
from tests.oracle.outcome import differences, run_on
from vmm.exits import End

MOST = 120  # programs until a mutant must have been noticed


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mutant_is_noticed(mutant: Mutant) -> None:
    """Some program of the first ones ends differently under the mutant, and does not without it."""
    ways = [way for way in WAYS.values() if way.adapt]  # without that no table goes out of sync, which hides a mistake about it
    for seed in range(MOST):
        program, way = Generated.of_seed(seed), ways[seed % len(ways)]
        expected = on_bare_machine(program)
        if expected.end is not End.REPORTED:
            continue
        with mutant():
            found = differences(expected, run_on(program, way), program.paging)
        if found:
            assert not differences(expected, run_on(program, way), program.paging)
            return
    pytest.fail(f"{mutant.__doc__}: not noticed by {MOST} programs")
