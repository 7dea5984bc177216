"""The ticker: a thread that stops the engine when something is due, so that devices and the user get their turn.

It asks for a stop at a block boundary and repeats until the run loop answers, since some requests are lost (erratum 3). Knows
only when the next turn is due.
"""

from __future__ import annotations

import threading
import time

from vmm.machine import Machine

_REPEAT = 0.0005  # seconds between requests while none was answered
LONGEST = 0.010  # seconds without a turn: input is looked for that often


class Ticker:
    """Use as a context manager around a run. The run loop calls `due_in` before each entry into the engine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._due = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="ticker", daemon=True)

    def __enter__(self) -> Ticker:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def due_in(self, seconds: float) -> None:
        """The next turn is due so many seconds from now."""
        self._due = time.monotonic() + min(seconds, LONGEST)

    def _tick(self) -> None:
        pause = 0.0
        while not self._done.wait(pause):
            pause = min(self._due - time.monotonic(), LONGEST)
            if pause <= 0:
                self.machine.kick()
                pause = _REPEAT
