"""IN and OUT that must fault: this CPU cannot abort them from its hook (erratum 12), so they are undone.

The state before is kept, an empty page table makes the next fetch fault, and then the state is put back. Knows no guest mode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.faults import GuestPageFault
from vmm.machine import Machine
from vmm.ports import port_allowed

if TYPE_CHECKING:
    from vmm.vm import Vm

_SAVED_STATE = 4 * 1400  # bytes of the CPU's state that an aborted IN or OUT may have changed


class PortFault:
    """At most one port access that is being aborted. empty_root: a page-table pointer that maps nothing."""

    def __init__(self, machine: Machine, empty_root: int) -> None:
        self.machine, self.empty_root = machine, empty_root
        self._pending: tuple[bytes, int, int] | None = None  # state before, port, size

    @property
    def pending(self) -> bool:
        """Whether an access is being aborted: the next exit, or the next run, must call `end`."""
        return self._pending is not None

    def allowed(self, vm: Vm, port: int, size: int) -> bool:
        """Whether code at the vCPU's CPL may access the port; if not, the access is being aborted from here on."""
        try:
            if port_allowed(vm, port, size):
                return True
        except GuestPageFault:
            pass
        if self._pending is None:
            self._pending = bytes(self.machine.state.cast("B")[:_SAVED_STATE]), port, size
            self.machine.set_cr3(self.empty_root)
            self.machine.stop()
        return False

    def end(self, cr3: int) -> tuple[int, int]:
        """Puts the state before the access back, with page tables at `cr3`; returns port and size."""
        assert self._pending is not None
        image, port, size = self._pending
        self._pending = None
        self.machine.state.cast("B")[: len(image)] = image
        self.machine.set_cr3(cr3)
        if not self.machine.running:
            self.machine.set_flags(self.machine.flags())  # the state was saved in a run, where the flags are kept in another form
        return port, size
