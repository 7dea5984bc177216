"""The bt back-end: guest kernel code runs only from the translation cache, guest user code directly, or translated too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.backends.bt.engine import BinaryTranslation
from vmm.backends.bt.neighbour import make_neighbour
from vmm.backends.bt.options import BtOptions
from vmm.backends.shadowed import Shadowed, machine, room

if TYPE_CHECKING:
    from vmm.vm import Vm

__all__ = ["BinaryTranslation", "BtOptions", "build", "machine", "room"]


def build(vm: Vm, options: BtOptions) -> BinaryTranslation:
    """The back-end of a VM, with its parts under it."""
    parts = Shadowed(vm.machine, vm.memory_size, options.ring, broken=options.broken)
    backend = BinaryTranslation(vm, options, parts)
    parts.mmu.goes_out_of_sync = options.adapt
    parts.put_under(vm, backend.words)
    if "raw-ptp" in options.broken:
        make_neighbour(vm.machine)
    return backend
