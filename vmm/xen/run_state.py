"""How long the virtual CPU ran and waited, as the guest may ask for it or have it shown in its memory.

Layout: Xen's public headers, vcpu.h. There is nobody to wait for but events, so it runs or is blocked.
"""

from __future__ import annotations

import struct
from typing import Final

_RUNNING, _BLOCKED = 0, 2
_IMAGE: Final = struct.Struct("<I5Q")


class RunState:
    """The account of one virtual CPU, in nanoseconds of virtual time. area: the linear address where the guest wants to see it, if any.

    state, since: what it does, and from when on. spent: how long it was in each of the four states before.
    """

    def __init__(self) -> None:
        self.area: int | None = None
        self.state, self.since = _RUNNING, 0
        self.spent = [0, 0, 0, 0]

    def block(self, now: int) -> None:
        """It waits from now on."""
        self._change(_BLOCKED, now)

    def run(self, now: int) -> None:
        """It runs, maybe as before."""
        if self.state != _RUNNING:
            self._change(_RUNNING, now)

    def _change(self, state: int, now: int) -> None:
        self.spent[self.state] += now - self.since
        self.state, self.since = state, now

    def image(self, now: int) -> bytes:
        """{state, since when, time spent in each state}."""
        spent = list(self.spent)
        spent[self.state] += now - self.since
        return _IMAGE.pack(self.state, self.since, *spent)
