"""IN and OUT without permission on a bare machine: erratum 12, an access to a port cannot be aborted by the one who is told of it.

The CPU is sent under page tables that map nothing, so that it gets no further than its next memory access, and then put back to where it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.cpu_state import Cpu
from vmm.exits import PortAccess
from vmm.faults import GuestFault
from vmm.machine import Machine
from vmm.ports import port_allowed
from vmm.x86.bits import Cr0

if TYPE_CHECKING:
    from vmm.vm import Vm

_EMPTY_ROOT = 0xFFFF_F000  # no RAM is there, and whatever is read there meanwhile is 0: tables that map nothing


class PortFault:
    """At most one access that is being aborted. pending: there is one, and whatever the CPU reports now comes of it."""

    def __init__(self, machine: Machine, empty_root: int = _EMPTY_ROOT) -> None:
        self.machine, self.empty_root = machine, empty_root
        self.pending = False
        self._state = b""
        self._access = PortAccess(0, 0)
        self._cr0 = self._cr3 = 0

    def allowed(self, vm: Vm, port: int, size: int) -> bool:
        """Whether the access may go on; otherwise it is being aborted."""
        if self.pending:
            return False
        try:
            if port_allowed(vm, port, size):
                return True
        except GuestFault:
            pass
        machine = self.machine
        self.pending, self._access = True, PortAccess(port, size)
        self._state, self._cr0, self._cr3 = bytes(machine.state), machine.state[Cpu.CR0], machine.wide[Cpu.CR3 >> 1]
        machine.set_cr3(self.empty_root)
        machine.set_cr0(self._cr0 | Cr0.PG)
        machine.stop()
        return False

    def end(self) -> PortAccess:
        """Puts the state before back; returns the exit that comes of it."""
        machine = self.machine
        self.pending = False
        machine.set_cr0(self._cr0)
        machine.set_cr3(self._cr3)
        machine.state.cast("B")[:] = self._state
        if not machine.running:
            machine.set_flags(machine.flags())  # the state was saved in a run, where the flags are kept in another form
        return self._access
