"""The step back-end: every instruction one at a time under the VMM, the naive approach: slow, obvious, and the reference for the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.backends.direct import DirectExecution
from vmm.backends.shadowed import Shadowed, machine, room

if TYPE_CHECKING:
    from vmm.vm import Vm


__all__ = ["DirectExecution", "StepOptions", "build", "machine", "room"]


@dataclass(frozen=True, slots=True)
class StepOptions:
    """There is nothing to choose. The guest's kernel runs at CPL 1: it never sees that, for all that could show it is emulated."""

    @property
    def backend(self) -> str:
        """The back-end's name."""
        return "step"


def build(vm: Vm, options: StepOptions) -> DirectExecution:
    """The back-end of a VM, with its parts under it."""
    parts = Shadowed(vm.machine, vm.memory_size, 1, kernel_executes=True)
    backend = DirectExecution(vm, parts, stepping=True)
    parts.put_under(vm, backend.words)
    return backend
