"""Random hypercalls: any number with any arguments, at a domain whose memory holds what such arguments point at. Counts stay those of the
definition, frames of others stay as they are, and nothing is raised that is not the guest's end; with everything undone nothing is held."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.machine.hypercall_fuzz import CHOICES, LARGEST, MEMORY_NUMBERS, NUMBERS, Case, sequence, wild_guest

_NUMBER = st.one_of(st.sampled_from(MEMORY_NUMBERS), st.sampled_from(NUMBERS), st.integers(0, 60).filter(lambda number: number != 23))
_CALL = st.tuples(_NUMBER, st.lists(st.integers(0, LARGEST), min_size=CHOICES, max_size=CHOICES))


@settings(max_examples=40, deadline=None)
@given(st.lists(_CALL, max_size=25))
def test_random_hypercalls(calls: list[tuple[int, list[int]]]) -> None:
    """After each call everything holds; at the end nothing is left."""
    case = Case()
    for number, choices in calls:
        case.do(number, choices)
    case.end()


def test_more_of_them() -> None:
    """Some sequences of a generator, as `make fuzz-pv` goes on with for an hour. A good part is done, so that what must hold is put to a test."""
    done = sum((sequence(seed) for seed in range(20)), Counter[int]())
    assert all(done[number] > 4 for number in set(MEMORY_NUMBERS)), done


def test_wild_guests() -> None:
    """They make such calls themselves, beside another guest whose memory keeps its hash, until they end or the time does."""
    assert sum(wild_guest(seed, 1)[1] for seed in range(8)) > 100
