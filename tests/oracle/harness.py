"""The comparison of one generated program: on the bare machine and under binary translation; and what programs have covered.

Knows the ways of binary translation. The bare machine is the definition.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

from tests.oracle.generated import Generated
from tests.oracle.guest import PAGINGS, SYSTEM_CALL, TIMER, TRAP_GATE
from tests.oracle.outcome import Outcome, differences, run_on
from vmm.backends.bt import BtOptions
from vmm.backends.native import NativeOptions
from vmm.exits import End

WAYS: Final = {
    "ring1": BtOptions(translate_user=True),
    "ring3": BtOptions(ring=3, translate_user=True),
    "ring1-trap": BtOptions(stubs_in_cache=False, translate_user=True),
    "ring3-trap": BtOptions(ring=3, stubs_in_cache=False, translate_user=True),
    "ring1-no-adapt": BtOptions(adapt=False, translate_user=True),
}
SAVED: Final = Path(__file__).parent / "saved"
VECTORS: Final = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, TIMER, SYSTEM_CALL, TRAP_GATE))
LEVELS: Final = frozenset((paging, level) for paging in ("legacy", "pae") for level in ("table", "directory"))
EXEMPT_ROWS: Final = frozenset(("0f 01 /5",))  # what is left of it is no instruction to the decoder


class Disagreement(AssertionError):
    """A program that ended differently on the bare machine and under a way of binary translation."""

    def __init__(self, program: Generated, way: str, found: list[str]) -> None:
        super().__init__("\n".join([f"native / {way}:", *found, program.text(), program.to_json()]))
        self.program, self.way = program, way


@lru_cache(64)
def on_bare_machine(program: Generated) -> Outcome:
    """What a program leaves on the bare machine."""
    return run_on(program, NativeOptions())


def check(program: Generated, way: str) -> Outcome:
    """Runs a program both ways; returns what it left on the bare machine. Raises Disagreement. One that does not end is not compared, nor
    one that left protected mode, where IRET takes its frame from elsewhere on the bare machine (quirk 36)."""
    expected = on_bare_machine(program)
    if expected.end is End.TIMEOUT or not expected.protected:
        return expected
    found = differences(expected, run_on(program, WAYS[way]), program.paging)
    if found:
        raise Disagreement(program, way, found)
    return expected


@dataclass(slots=True)
class Coverage:
    """rows: of the table, by name. vectors: delivered. levels: (paging, level of the tables) at which an edit led to a page fault."""

    rows: set[str] = field(default_factory=set)
    vectors: Counter[int] = field(default_factory=Counter)
    levels: set[tuple[str, str]] = field(default_factory=set)

    def add(self, program: Generated, outcome: Outcome) -> None:
        """Counts what a program had in it and what came of it."""
        self.rows |= program.rows()
        test = PAGINGS[program.paging].test
        for event in outcome.events:
            self.vectors[event["vector"]] += 1
            if event["vector"] == 14 and test <= event["cr2"] < test + 0x400000:
                names = {name for name, _ in program.steps}
                self.levels |= {(program.paging, level) for level, kind in (("table", "page_edit"), ("directory", "directory_edit")) if kind in names}
