"""The ticker: a thread that stops the engine when something is due, so that devices and the user get their turn.

It asks for a stop at a block boundary and repeats until the run loop answers, since some requests are lost (erratum 3). Knows
only when the next turn is due.
"""

from __future__ import annotations

import math
import threading
import time

from vmm.machine import Machine

_REPEAT = 0.0005  # seconds between requests while none was answered
LONGEST = 0.010  # seconds without a turn: input is looked for that often


class Ticker:
    """Use as a context manager around a run. The run loop calls `due_in` before each entry into the engine, and `rest` before it sleeps itself."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._due = 0.0
        self._done = False
        self._resting = False  # the thread is about to wait until it is called
        self._called = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="ticker", daemon=True)

    def __enter__(self) -> Ticker:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done = True
        self._called.set()
        self._thread.join()

    def due_in(self, seconds: float) -> None:
        """The next turn is due so many seconds from now."""
        self._due = time.monotonic() + min(seconds, LONGEST)
        if self._resting:
            self._called.set()

    def rest(self) -> None:
        """Nothing runs until `due_in` is called again: an idle VM is not to cost a thread that counts the time."""
        self._due = math.inf

    def _tick(self) -> None:
        pause = 0.0
        while not self._done:
            if self._due == math.inf:
                self._resting = True  # before the second look: either it sees what `due_in` says, or `due_in` sees this
                if self._due == math.inf:
                    self._called.wait()
                self._resting = False
            else:
                self._called.wait(pause)
            self._called.clear()
            pause = min(self._due - time.monotonic(), LONGEST)
            if pause <= 0:
                self.machine.kick()
                pause = _REPEAT
