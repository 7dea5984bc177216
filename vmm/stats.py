"""What is counted while a VM runs: exits by reason, architectural ones and engine assists apart, and the last of them.

Plain counters that back-ends and the monitor increase; `report` makes them a plain dictionary for JSON.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TypeVar

_K = TypeVar("_K")


class Tally(dict[_K, int]):
    """Counts by name, 0 where nothing was counted. `collections.Counter` takes three times as long to add one."""

    def __missing__(self, key: _K) -> int:
        return 0

    def most_common(self) -> list[tuple[_K, int]]:
        """The counts, the largest first."""
        return sorted(self.items(), key=lambda item: item[1], reverse=True)

    def total(self) -> int:
        """All counts together."""
        return sum(self.values())


@dataclass(slots=True)
class Statistics:
    """Counters of one run.

    architectural: exits that a real CPU would have taken too under the same technique. engine: assists that only this CPU
    needs. callouts: emulated instructions by name. hypercalls by name; refused: what a guest asked for by them and was not
    given. audited, outside: exits in virtual kernel mode at which EIP was checked, and those at which it lay outside the
    translation cache (must be 0). last: the last exits, as (name, EIP), oldest first.
    """

    architectural: Tally[str] = field(default_factory=Tally)
    engine: Tally[str] = field(default_factory=Tally)
    callouts: Tally[str] = field(default_factory=Tally)
    injected: Tally[int] = field(default_factory=Tally)
    hypercalls: Tally[str] = field(default_factory=Tally)
    refused: Tally[str] = field(default_factory=Tally)
    audited: int = 0
    outside: int = 0
    last: deque[tuple[str, int]] = field(default_factory=lambda: deque(maxlen=16))
    seconds: float = 0.0
    cpu_seconds: float = 0.0
