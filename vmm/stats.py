"""What is counted while a VM runs: exits by reason, architectural ones and engine assists apart, and the last of them.

Plain counters that back-ends and the monitor increase; `report` makes them a plain dictionary for JSON.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Statistics:
    """Counters of one run.

    architectural: exits that a real CPU would have taken too under the same technique. engine: assists that only this CPU
    needs. callouts: emulated instructions by name. hypercalls by name; refused: what a guest asked for by them and was not
    given. audited, outside: exits in virtual kernel mode at which EIP was checked, and those at which it lay outside the
    translation cache (must be 0). last: the last exits, as (name, EIP), oldest first.
    """

    architectural: Counter[str] = field(default_factory=Counter)
    engine: Counter[str] = field(default_factory=Counter)
    callouts: Counter[str] = field(default_factory=Counter)
    injected: Counter[int] = field(default_factory=Counter)
    hypercalls: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    audited: int = 0
    outside: int = 0
    last: deque[tuple[str, int]] = field(default_factory=lambda: deque(maxlen=16))
    seconds: float = 0.0
    cpu_seconds: float = 0.0
