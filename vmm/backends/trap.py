"""The trap back-end: classical trap and emulate, the guest deprivileged and untranslated: it shows what x86 lets slip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.backends.direct import DirectExecution
from vmm.backends.shadowed import Shadowed, machine, room

if TYPE_CHECKING:
    from vmm.vm import Vm


__all__ = ["DirectExecution", "TrapOptions", "build", "machine", "room"]


@dataclass(frozen=True, slots=True)
class TrapOptions:
    """ring: CPL of the guest's kernel, 1 or 3."""

    ring: int = 1

    @property
    def backend(self) -> str:
        """The back-end's name."""
        return "trap"


def build(vm: Vm, options: TrapOptions) -> DirectExecution:
    """The back-end of a VM, with its parts under it."""
    parts = Shadowed(vm.machine, vm.memory_size, options.ring, kernel_executes=True)
    backend = DirectExecution(vm, parts, stepping=False)
    parts.put_under(vm, backend.words)
    return backend
