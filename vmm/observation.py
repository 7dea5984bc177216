"""Watching a VM from outside: a callback for every exit that the monitor handles.

Knows the monitor's one door, `handle`. Changes nothing and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vmm.exits import Exit, Outcome
from vmm.vcpu import Vcpu

if TYPE_CHECKING:
    from vmm.vm import Vm

Observer = Callable[[Exit, Vcpu], object]


def observe(vm: Vm, callback: Observer) -> Callable[[], None]:
    """Calls `callback(exit, vcpu)` before each exit of `vm` is handled; the result ends that when it is called.

    The vCPU is exact then: EIP, CPL, CS, SS, general registers, flags, and `vm.linear` reads the guest's memory. Hidden faults, chains,
    CPUID in guest mode and port accesses of the guest's kernel never come to the monitor; they are counted in `vm.stats`, and a device sees its own
    ports. Several observers are called in the order latest first. What a callback raises comes out of `vm.run`.
    """
    monitor = vm.monitor
    before = monitor.handle
    watching = True
    monitor.observers += 1

    def handle(exit_: Exit) -> Outcome:
        if watching:
            callback(exit_, vm.vcpu)
        return before(exit_)

    def end() -> None:
        # The door stays as it is, only silent: observers added later stand before it.
        nonlocal watching
        monitor.observers -= watching
        watching = False

    name = "handle"  # the instance's own name goes before the class's
    setattr(monitor, name, handle)
    return end
