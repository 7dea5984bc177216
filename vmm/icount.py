"""Virtual time by the number of instructions retired: the same guest sees the same time at the same instruction, run after run.

The count is the back-end's, and the rule the same for all: an instruction counts one when it completes, whoever carries it out; one that faults does
not count; a REP string instruction counts one for each iteration and one more when it completes; what a VMM does unseen counts nothing. An
instruction that asks for the time sees the number of those completed before it. Knows the scale, and the time skipped while the guest was halted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

NANOSECONDS: Final = 10
"""Of virtual time for each instruction. The time-stamp counter counts nanoseconds of virtual time."""
DATE: Final = 1_767_225_600
"""What the real-time clock starts at, in seconds since 1970, instead of the host's time: the start of 2026."""
MOST: Final = 200_000
"""Instructions between two turns of the run loop, which looks for input and time-outs then."""


class InstructionTime:
    """The time source of one VM. retired: instructions so far, exact whenever a device or the guest can ask."""

    def __init__(self, retired: Callable[[], int]) -> None:
        self.retired = retired
        self._skipped = self._before = 0

    def now(self) -> int:
        """Virtual time in nanoseconds."""
        return self.retired() * NANOSECONDS + self._skipped

    def left(self, deadline: int | None) -> int:
        """Instructions until `deadline`, at least 0, at most MOST."""
        return MOST if deadline is None else max(0, min(MOST, -((self.now() - deadline) // NANOSECONDS)))

    def total(self) -> int:
        """Instructions of the guest, those before `go_on_from` included."""
        return self.retired() + self._before

    def go_on_from(self, now: int, retired: int) -> None:
        """It is `now`, after so many instructions, whatever has been counted here."""
        self._before = retired - self.retired()
        self._skipped += now - self.now()

    def skip_to(self, deadline: int) -> None:
        """The guest is halted: it is `deadline` now, if it was earlier."""
        self._skipped += max(0, deadline - self.now())
