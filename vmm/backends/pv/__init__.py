"""The pv back-end: a guest that knows that it is one runs directly, and asks the VMM by hypercalls for what it may not do itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.backends.pv.engine import Paravirtual
from vmm.backends.pv.options import PvOptions
from vmm.backends.pv.vcpu import PvVcpu
from vmm.backends.shadowed import machine, room
from vmm.memory import GuestMemory
from vmm.mmu.host import HostSpace
from vmm.mmu.linear import LinearMemory
from vmm.mmu.walk import GuestPaging
from vmm.xen.domain import XenDomain
from vmm.xen.shared_info import SharedInfo

if TYPE_CHECKING:
    from vmm.vm import Vm

__all__ = ["Paravirtual", "PvOptions", "build", "machine", "room"]


def build(vm: Vm, options: PvOptions) -> Paravirtual:
    """The back-end of a VM, with its parts under it."""
    shared = SharedInfo(vm.machine)
    vm.memory = GuestMemory(vm.machine, vm.memory_size)
    vm.vcpu = PvVcpu(vm.machine, shared)
    whole = GuestMemory(vm.machine, vm.machine.size, identical=True)  # a guest's tables hold machine frames
    vm.paging = GuestPaging(whole)
    vm.linear = LinearMemory(whole, vm.paging)
    vm.domain = domain = XenDomain(vm, HostSpace(vm.machine), shared)
    vm.mmu, vm.descriptors = domain.mmu, domain.descriptors
    domain.mmu.lenient = not options.strict
    return Paravirtual(vm, options, domain)
