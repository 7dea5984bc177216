"""A generated program as plain data: steps by name and numbers, under a paging mode; saved and read as JSON, drawn by Hypothesis.

Knows the kinds of step. Knows nothing of how a guest is run.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from hypothesis import strategies as st

from bt.decode import decode
from bt.sensitive import row_of
from tests.oracle.guest import MOST_STEPS, PAGINGS, PROGRAM, SLOT, USER_PAGES, Step, parts
from tests.oracle.steps import KINDS, ROW_NUMBER, Numbers, Place

_NUMBERS: Final = 14  # a step takes no more
_FEWEST: Final = 10  # steps: shorter programs would spend most of their time on being set up


@dataclass(frozen=True, slots=True)
class Generated:
    """steps: (name of the kind, its numbers). timer: whether the timer's interrupts come: only where time is counted in instructions."""

    paging: str
    steps: tuple[tuple[str, tuple[int, ...]], ...]
    timer: bool = False

    def built(self) -> tuple[Step, ...]:
        """The texts of its steps."""
        return tuple(_step(self.paging, number, name, numbers) for number, (name, numbers) in enumerate(self.steps))

    def parts(self, ending: str | None = None) -> dict[int, bytes]:
        """The guest: parts of memory by address. ending: what it does in the end, when not the debug exit."""
        return parts(self.built(), PAGINGS[self.paging], timer=self.timer, ending=ending)

    def rows(self) -> set[str]:
        """Names of the table's rows whose instructions it holds, decoded from the start of each step."""
        found: set[str] = set()
        for at, code in self.parts().items():
            if PROGRAM <= at < PROGRAM + SLOT * len(self.steps) or USER_PAGES <= at < USER_PAGES + SLOT * len(self.steps):
                rows = (row_of(instruction.opcode, instruction.modrm) for instruction in decode(code, at))
                found |= {row.name for row in rows if row is not None}
        return found

    @staticmethod
    def of_seed(seed: int, steps: int = 12, *, timer: bool = False) -> Generated:
        """The program of a number."""
        numbers, names = random.Random(seed), _names(timer)
        chosen = ((numbers.choice(names), tuple(numbers.getrandbits(32) for _ in range(_NUMBERS))) for _ in range(steps))
        return Generated(numbers.choice(sorted(PAGINGS)), tuple(chosen), timer)

    @staticmethod
    def of_table(first: int) -> Generated:
        """A program of the table's rows from `first` on, a step for each."""
        numbers = random.Random(first)
        steps = []
        for row in range(first, first + MOST_STEPS - 1):
            chosen = [numbers.getrandbits(32) for _ in range(_NUMBERS)]
            chosen[ROW_NUMBER] = row
            steps.append(("table_row", tuple(chosen)))
        return Generated(numbers.choice(sorted(PAGINGS)), tuple(steps))

    def to_json(self) -> str:
        """As text, one line."""
        return json.dumps({"paging": self.paging, "timer": self.timer, "steps": [[name, *numbers] for name, numbers in self.steps]})

    @staticmethod
    def from_json(text: str) -> Generated:
        """What `to_json` made."""
        found = json.loads(text)
        return Generated(found["paging"], tuple((step[0], tuple(step[1:])) for step in found["steps"]), found["timer"])

    def text(self) -> str:
        """As a person reads it."""
        lines = [f"paging {self.paging}, timer {'on' if self.timer else 'off'}"]
        for number, ((name, _), step) in enumerate(zip(self.steps, self.built(), strict=True)):
            lines += [f"{number} {name}", f"    kernel: {' '.join(step.kernel.split())}", f"    user: {' '.join(step.user.split())}"]
        return "\n".join(lines)


def _names(timer: bool) -> list[str]:
    """Kinds of step: with the timer none in which the bare machine counts otherwise, or loses AF or OF while it counts (docs/QUIRKS.md)."""
    return sorted(set(KINDS) - ({"self_modification", "single_step", "far"} if timer else {"timer"}))


@lru_cache(4096)
def _step(paging: str, number: int, name: str, numbers: tuple[int, ...]) -> Step:
    return KINDS[name](Numbers(numbers), Place(number, PAGINGS[paging]))


def generated(*, timer: bool) -> st.SearchStrategy[Generated]:
    """Programs; with `timer` interrupts come in some of their steps."""
    names = _names(timer)
    step = st.tuples(st.sampled_from(names), st.tuples(*[st.integers(0, (1 << 32) - 1)] * _NUMBERS))
    steps = st.lists(step, min_size=_FEWEST, max_size=MOST_STEPS - 1).map(tuple)
    return st.builds(Generated, st.sampled_from(sorted(PAGINGS)), steps, st.just(timer))
