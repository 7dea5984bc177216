"""The native back-end: the guest on the bare machine, with no VMM under it. The reference for equivalence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.backends.native.engine import Native
from vmm.backends.native.options import NativeOptions
from vmm.machine import BARE_PRIVATE, Machine

if TYPE_CHECKING:
    from vmm.vm import Vm

__all__ = ["Native", "NativeOptions", "build", "machine"]


def machine(memory_size: int) -> Machine:
    """A physical machine whose whole RAM is one guest's."""
    return Machine(memory_size + BARE_PRIVATE, bare=True)


def build(vm: Vm, options: NativeOptions) -> Native:
    """The back-end of a VM, with its parts under it."""
    return Native(vm)
