"""Guest mode with instructions counted: the CPU counts those that begin, as on a bare machine; here those are taken off that exited undone.

Knows the engine that it belongs to, and which exits come between two instructions. Decides nothing about what an exit means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.backends.counter import Counter
from vmm.backends.hw.svm import EXIT, NESTED_FAULT
from vmm.backends.live import is_fetch
from vmm.x86.bits import Fault, Vector

if TYPE_CHECKING:
    from vmm.backends.hw.engine import Hardware
    from vmm.icount import InstructionTime

_INTR, _DEBUG, _PAGE_FAULT = EXIT + 0x60, EXIT + 0x40 + Vector.DB, EXIT + 0x40 + Vector.PF


class Counting:
    """The handlers of one engine with the instructions counted. The machine is the engine's alone; nothing has run on it yet."""

    def __init__(self, engine: Hardware, icount: InstructionTime) -> None:
        self.engine, self.vm, self.machine, self.state, self.vcpu = engine, engine.vm, engine.machine, engine.state, engine.vcpu
        clock = engine.vm.clock
        self.counter = Counter(engine.machine, lambda: icount.left(clock.next_deadline()))
        self.retired_before_port = 0  # the access that is being aborted

    def take_over(self) -> None:
        """Behind VM entry: puts the handlers in front of the engine's, and counts from here on.

        From here on all RAM has nested entries: a fault for want of one does not say whether the walk was for a fetch or for an operand.
        """
        self.counter.go_back(0)
        machine, within = self.machine, self.counter.within
        machine.on_interrupt, machine.on_invalid = self._on_interrupt, self._on_invalid
        machine.on_port, machine.on_memory = within(self._on_port), within(machine.on_memory)
        machine.on_fast_call = within(self._on_fast_call)

    def _on_interrupt(self, vector: int) -> None:
        """What comes between two instructions waits for what is due there; one that has begun is counted when it is done."""
        engine, counter, machine, state = self.engine, self.counter, self.machine, self.state
        software = bool(state[machine.is_int])
        if engine.port_fault.pending and vector != NESTED_FAULT or vector in (Vector.DB, _DEBUG) and not software:  # a single step is done
            engine.on_interrupt(vector)
        elif vector == _INTR or not software and self._is_fetch(vector):
            if counter.exhausted():
                machine.clear_event()
                if engine.svm.take_interrupt_shadow():
                    self.vcpu.inhibited = True
                machine.set_interrupt_pin(False)
                machine.stop()
            else:
                engine.on_interrupt(vector)
        else:
            counter.uncount()
            vcpu = self.vcpu
            delivered, eip = vcpu.delivered, vcpu.eip
            self.vm.monitor.completed = False
            engine.on_interrupt(vector)
            if self.vm.monitor.completed or vcpu.eip != eip and vcpu.delivered == delivered:  # by the monitor, or by the engine at once
                counter.count()

    def _is_fetch(self, vector: int) -> bool:
        error = self.state[self.machine.error_code]
        if vector == NESTED_FAULT or vector == _PAGE_FAULT and self.engine.shadow is not None:  # those errors tell
            return bool(error & Fault.I)
        if vector in (Vector.PF, _PAGE_FAULT):
            gva = self.vcpu.cr2 if vector == Vector.PF else self.engine.svm.fault_address
            return is_fetch(self.vm, gva, error)
        return False

    def _on_invalid(self) -> None:
        if self.engine.port_fault.pending:
            self.engine.on_invalid()
            return
        self.counter.uncount()
        self.engine.on_invalid()
        if self.vm.monitor.completed:
            self.counter.count()

    def _on_fast_call(self) -> int:
        self.vm.monitor.completed = False
        size = self.engine.on_fast_call()
        if not self.vm.monitor.completed:
            self.counter.uncount()
        return size

    def _on_port(self, port: int, size: int, value: int | None) -> int:
        pending = self.engine.port_fault.pending
        result = self.engine.on_port(port, size, value)
        if self.engine.port_fault.pending and not pending:
            self.retired_before_port = self.counter.retired
        return result
