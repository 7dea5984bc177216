"""The count of instructions retired where code runs as it is, out of the engine's own count of those begun, and the end of a run at an exact count.

The engine counts an instruction when it begins it, so that a fault is given back, and ends a run only between two instructions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from vmm.cpu_state import Cpu, LayoutError, find_instruction_counter
from vmm.machine import Machine

_P = ParamSpec("_P")
_R = TypeVar("_R")
_MAGIC = 0x5A17_0C0D_E001  # a limit that stands nowhere else
_TRIAL = bytes((0x90, 0x90, 0x90, 0xCD, 0x20))  # nop; nop; nop; int 20h: in any mode
_TRIAL_COUNT, _TRIAL_VECTOR = 4, 0x20


class Counter:
    """Counts the instructions of one guest; `left` says how many there are until something is due. Made before anything has run."""

    def __init__(self, machine: Machine, left: Callable[[], int]) -> None:
        self.machine, self.left = machine, left
        self._before = 0  # the present run
        machine.count_instructions()
        self._begun, self._limit = self._find()

    @property
    def retired(self) -> int:
        """Instructions completed so far."""
        return self._before + self._begun.value

    def run(self) -> None:
        """Runs the machine until something is due, or it is stopped."""
        try:
            self.machine.run(max(1, self.left()))
        finally:
            # An instruction that the limit kept from beginning has been counted all the same.
            self._before += min(self._begun.value, self._limit.value)
            self._begun.value = 0

    def uncount(self) -> None:
        """The instruction that was begun is not done, or will not be."""
        self._begun.value -= 1

    def count(self) -> None:
        """An instruction is done."""
        self._begun.value += 1

    def go_back(self, retired: int) -> None:
        """What came behind so many instructions did not happen."""
        self._begun.value = retired - self._before if self.machine.running else 0
        if not self.machine.running:
            self._before = retired

    def within(self, handler: Callable[_P, _R]) -> Callable[_P, _R]:
        """A handler of an access that an instruction makes: it sees those before the instruction, and a run ends behind it."""
        machine = self.machine

        def counted(*arguments: _P.args, **names: _P.kwargs) -> _R:
            self.uncount()
            machine.stop_behind = self._end_behind
            try:
                return handler(*arguments, **names)
            finally:
                machine.stop_behind = None
                self.look_ahead()
                self.count()

        return counted

    def exhausted(self) -> bool:
        """No other instruction can have begun."""
        return self._begun.value >= self._limit.value

    def look_ahead(self) -> None:
        """Something may be due earlier than before."""
        self._limit.value = min(self._limit.value, self._begun.value + max(1, self.left()))

    def _end_behind(self) -> None:
        self._limit.value = min(self._limit.value, self._begun.value + 1)

    def _find(self) -> tuple[ctypes.c_uint64, ctypes.c_uint64]:
        """Runs a few instructions to find and try the engine's count."""
        machine = self.machine
        found: list[tuple[ctypes.c_uint64, ctypes.c_uint64]] = []

        def handle(vector: int) -> None:
            machine.stop()
            machine.clear_event()
            if vector == _TRIAL_VECTOR:
                found.append(find_instruction_counter(machine.engine, _TRIAL_COUNT, _MAGIC))

        before, machine.on_interrupt = machine.on_interrupt, handle
        memory, machine.memory[: len(_TRIAL)] = bytes(machine.memory[: len(_TRIAL)]), _TRIAL
        machine.state[Cpu.EIP] = 0
        machine.run(_MAGIC)
        machine.memory[: len(_TRIAL)], machine.on_interrupt = memory, before
        machine.drop_frame_code(0)
        if not found:
            raise LayoutError("the engine's count of instructions: the trial did not end")
        found[0][0].value = 0
        return found[0]
