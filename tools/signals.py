"""Ctrl-C and requests to terminate, turned into a clean end of the run.

Knows signals and `Vm.stop`. The first signal asks the VM to stop, so that state and counters are exact; without a VM, or when that
has not helped, it is raised as an exception.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import NoReturn, Protocol

from vmm.exits import End, Stop

_REASONS = {signal.SIGINT: "ended by Ctrl-C", signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "ended by SIGHUP"}


class Stoppable(Protocol):
    """What a signal can end: a VM, or several on a host."""

    def stop(self, stop: Stop) -> None: ...


class Interruption:
    """A context manager around a run. number: the signal that came, or None."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._vm: Stoppable | None = None
        self._before: dict[int, object] = {}

    def watch(self, vm: Stoppable) -> None:
        """From now on it is `vm` that a signal ends."""
        self._vm = vm

    def __enter__(self) -> Interruption:
        for number in _REASONS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and background jobs stay undisturbed
                self._before[number] = signal.signal(number, self._came)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave us

    def _came(self, number: int, frame: FrameType | None) -> None:
        first, self.number = self.number is None, number
        if first and self._vm is not None:
            self._vm.stop(Stop(End.QUIT, _REASONS[signal.Signals(number)]))
        else:
            surface(number)


def surface(number: int) -> NoReturn:
    """Raises what a signal that nobody takes means."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
