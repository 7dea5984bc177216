"""The monitor: the one place where an exit is handled.

`handle` takes what a back-end reports, with the exact state of the vCPU, and decides: emulate, inject, wait or stop. It alone
moves EIP past an emulated instruction. Knows no back-end, no translation and no engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, assert_never

from vmm.emulate import ROUTINES, undefined
from vmm.exits import (
    RESUME,
    DeviceMemory,
    Exit,
    External,
    Hypercall,
    NonMaskable,
    Outcome,
    PageFault,
    PortAccess,
    Privileged,
    Raised,
    Sensitive,
    SoftwareInterrupt,
    Stopped,
)
from vmm.faults import GuestFault, GuestPageFault
from vmm.mmio import access_device_memory
from vmm.ports import user_port_access
from vmm.x86.bits import Dr6, Vector
from vmm.xen.privileged import emulate_privileged

if TYPE_CHECKING:
    from vmm.vm import Vm
    from vmm.xen.domain import XenDomain


_INSTRUCTIONS: Final = frozenset((Sensitive, SoftwareInterrupt, Privileged))  # exits that are about one which the VMM carries out


class Monitor:
    """Handles the exits of one VM. completed: the instruction that the last one was about is done: emulated, and raised nothing.

    observers: how many watch what comes here: a back-end that has a shorter way for an exit does not take it then.
    inject(vector): has the CPU deliver an external interrupt at its next entry into the guest, where it can; False: it is to be done by the VMM.
    """

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.observers = 0
        self.inject: Callable[[int], bool] = lambda vector: False
        self.completed = False

    def handle(self, exit_: Exit) -> Outcome:
        """Handles one exit. Afterwards the vCPU is where it goes on, unless the outcome is a stop."""
        vm = self.vm
        self.completed = False
        try:
            try:
                outcome = self._dispatch(exit_)
                self.completed = type(exit_) in _INSTRUCTIONS
                return outcome
            except GuestFault as fault:
                self._inject(fault)
                return RESUME
        except Stopped as stopped:
            vm.stats.last.append((stopped.stop.reason, vm.vcpu.eip))
            return stopped.stop

    def _dispatch(self, exit_: Exit) -> Outcome:
        vm = self.vm
        vcpu = vm.vcpu
        match exit_:
            case Hypercall(number):  # first: under pv nearly all exits are hypercalls
                return self._domain().hypercall(number)
            case External():
                vector = vm.board.interrupts.acknowledge()
                if (page := vm.lapic_page) is not None:
                    page.refresh()
                vm.stats.injected[vector] += 1
                if not self.inject(vector):
                    vm.events.interrupt(vector, vcpu.eip, software=False)
                return RESUME
            case Sensitive(instruction, row):
                vm.stats.callouts[row.name] += 1
                was_inhibited, vcpu.inhibited = vcpu.inhibited, False
                try:
                    outcome = ROUTINES.get(row.name, undefined)(vm, instruction)
                except GuestFault:
                    vcpu.inhibited = was_inhibited
                    raise
                if outcome is None:
                    vcpu.eip = instruction.next
                    return RESUME
                if vcpu.halted:
                    vcpu.eip = instruction.next
                return outcome
            case Raised(vector, error):
                if vector == Vector.DB:
                    vcpu.debug[6] |= Dr6.BS
                raise GuestFault(vector, error)
            case PageFault(gva, error):
                raise GuestPageFault(gva, error)
            case SoftwareInterrupt(vector, behind):
                vm.stats.injected[vector] += 1
                vm.events.interrupt(vector, behind, software=True)
                return RESUME
            case NonMaskable():
                vm.stats.injected[Vector.NMI] += 1
                vm.events.interrupt(Vector.NMI, vcpu.eip, software=False)
                return RESUME
            case DeviceMemory(gpa, gva, write):
                return access_device_memory(vm, gpa, gva, write)
            case PortAccess(port, size):
                return user_port_access(vm, port, size)
            case Privileged(error, code):
                emulate_privileged(self._domain(), error, code())
                return RESUME
            case _:
                assert_never(exit_)

    def upcall(self) -> Outcome:
        """A paravirtual guest's events are pending and not masked: enters its handler."""
        try:
            self._domain().traps.upcall()
        except Stopped as stopped:
            return stopped.stop
        return RESUME

    def _domain(self) -> XenDomain:
        assert self.vm.domain is not None, "an exit of a paravirtual guest"
        return self.vm.domain

    def _inject(self, fault: GuestFault) -> None:
        vm = self.vm
        if isinstance(fault, GuestPageFault):
            vm.vcpu.cr2 = fault.gva
        vm.stats.injected[fault.vector] += 1
        vm.events.raise_exception(fault.vector, fault.error)
