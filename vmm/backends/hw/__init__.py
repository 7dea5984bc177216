"""The hw back-end: the guest runs at its own privilege levels in the CPU's guest mode, and exits for what its VMCS asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.backends.hw.engine import Hardware
from vmm.backends.hw.options import HwOptions
from vmm.machine import MIB, Machine

if TYPE_CHECKING:
    from vmm.vm import Vm

__all__ = ["Hardware", "HwOptions", "build", "machine", "room"]

_RUNS = MIB  # host-physical memory for the control structures
_TABLES = 40 * MIB  # and for nested or shadow tables


def machine(memory_size: int) -> Machine:
    """A physical machine large enough for one VM of so much memory."""
    scattered, runs = room(memory_size)
    return Machine(scattered + runs, runs, bus=True)


def room(memory_size: int) -> tuple[int, int]:
    """Bytes that such a VM takes of a machine: in scattered frames, and in runs of consecutive ones."""
    return memory_size + _TABLES, _RUNS


def build(vm: Vm, options: HwOptions) -> Hardware:
    """The back-end of a VM, with its parts under it."""
    return Hardware(vm, options)
