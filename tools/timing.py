"""Where the time of exits goes: measured only for `--stats`, at no cost otherwise.

Knows the four doors by which the machine reports exits, and the counters by which an exit says its reason. An exit belongs to
the first reason counted while it is handled; translation that it leads to is part of it.
"""

from __future__ import annotations

from collections import defaultdict
from time import perf_counter
from typing import TYPE_CHECKING

from vmm.stats import Tally

if TYPE_CHECKING:
    from vmm.vm import Vm

UNCOUNTED = "uncounted"
"""The reason of exits that are part of another one: single steps on the way to an instruction boundary."""


class Timing:
    """seconds: host time spent handling exits, by reason. `attach` once for each VM that is loaded and has not run."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.reason: str | None = None

    def attach(self, vm: Vm) -> None:
        """Measures `vm` from now on; what was measured before is forgotten."""
        self.seconds.clear()
        vm.stats.architectural, vm.stats.engine = _Telling(self), _Telling(self)
        machine = vm.machine
        interrupt, invalid, port, cpuid = machine.on_interrupt, machine.on_invalid, machine.on_port, machine.on_cpuid

        def on_interrupt(vector: int) -> None:
            began = self._begin()
            try:
                interrupt(vector)
            finally:
                self._end(began)

        def on_invalid() -> None:
            began = self._begin()
            try:
                invalid()
            finally:
                self._end(began)

        def on_port(number: int, size: int, value: int | None) -> int:
            began = self._begin()
            try:
                return port(number, size, value)
            finally:
                self._end(began)

        def on_cpuid() -> bool:
            began = self._begin()
            try:
                return cpuid()
            finally:
                self._end(began)

        machine.on_interrupt, machine.on_invalid, machine.on_port, machine.on_cpuid = on_interrupt, on_invalid, on_port, on_cpuid

    def _begin(self) -> float:
        self.reason = None
        return perf_counter()

    def _end(self, began: float) -> None:
        self.seconds[self.reason or UNCOUNTED] += perf_counter() - began


class _Telling(Tally[str]):
    """A counter that tells a `Timing` what is counted."""

    def __init__(self, timing: Timing) -> None:
        super().__init__()
        self._timing = timing

    def __setitem__(self, reason: str, count: int) -> None:
        if self._timing.reason is None:
            self._timing.reason = reason
        super().__setitem__(reason, count)
