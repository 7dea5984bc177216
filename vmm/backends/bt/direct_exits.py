"""Exits out of direct execution: what the CPU reports while it runs the guest's user code as it is.

Knows the engine that it belongs to; decides nothing about what an exit means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.sensitive import row_of
from vmm.cpu_state import Cpu
from vmm.exits import DeviceMemory, End, PageFault, PortAccess, Raised, Sensitive, SoftwareInterrupt, Stop
from vmm.faults import GuestPageFault
from vmm.mmu.tables import DeviceAccess, StepOver
from vmm.ports import port_allowed
from vmm.x86.bits import Fault, Vector

if TYPE_CHECKING:
    from vmm.backends.bt.engine import BinaryTranslation

_TRANSFERS = ("call far", "call far m", "jmp far", "jmp far m", "ret far", "ret far n", "iret")  # gates are not shown to this CPU
_SAVED_STATE = 4 * 1400  # bytes of the CPU's state that an aborted IN or OUT may have changed


class DirectExits:
    """Handles what happens in user code that runs directly for one engine."""

    def __init__(self, engine: BinaryTranslation) -> None:
        self.engine = engine
        self.vm, self.machine, self.state = engine.vm, engine.machine, engine.state
        self.port_fault: tuple[bytes, int, int] | None = None  # state before an IN or OUT that is being aborted, port, size

    def interrupt(self, vector: int, address: int, software: bool) -> None:
        vm, stats, state, machine = self.vm, self.vm.stats, self.state, self.machine
        if self.port_fault is not None:
            self.end_port_access()
            return
        if self.engine.rolling:  # the last step out of a stub was an iret to user mode
            self.engine.rolling = False
            machine.set_trap_flag(False)
            if vector == Vector.DB:
                self.engine.capture_user()
                self.engine.resume()
                return
        error = state[machine.error_code]
        if vector == Vector.PF and not software:
            self._page_fault(state[Cpu.CR2], error)
            return
        if not software and self.engine.descriptor_filled(vector, error, user=True):
            return
        self.engine.capture_user()
        if software:
            stats.architectural["system call"] += 1
            size = 2
            if vector in (Vector.BP, Vector.OF):  # INT3 and INTO have forms of one byte; INT n ends in n
                size = 2 if self._byte(address - 1) == vector else 1
            vm.vcpu.eip = address - size & 0xFFFFFFFF
            self.engine.exit(SoftwareInterrupt(vector, address))
        elif vector == Vector.DB and self.engine.after_step is not None:
            self.engine.stepped()
        else:
            stats.architectural[f"exception {vector}"] += 1
            if vector == Vector.GP and self.emulate(*_TRANSFERS):
                return
            self.engine.exit(Raised(vector, error))

    def _byte(self, eip: int) -> int | None:
        """The byte of code at an EIP; None when it cannot be fetched any more."""
        try:
            return self.engine.user_code.fetch(self.vm.vcpu.cs.base + eip & 0xFFFFFFFF, 1)[0]
        except GuestPageFault:
            return None

    def emulate(self, *names: str) -> int:
        """Has the instruction at EIP emulated if it is one of these, which this CPU does not do as the guest's. Returns its size; 0: another."""
        instruction = self.engine.instruction()
        row = row_of(instruction.opcode, instruction.modrm) if instruction is not None else None
        if instruction is None or row is None or row.name not in names:
            return 0
        self.engine.exit(Sensitive(instruction, row))
        return len(instruction.raw)

    def fast_call(self) -> int:
        """SYSENTER or SYSCALL."""
        self.engine.capture_user()
        self.vm.stats.architectural["system call"] += 1
        return self.emulate("sysenter", "syscall")

    def _page_fault(self, gva: int, error: int) -> None:
        vm, stats = self.vm, self.vm.stats
        try:
            outcome = self.engine.mmu.fault(gva, bool(error & Fault.W), True, bool(error & Fault.I))
        except GuestPageFault as fault:
            stats.architectural["exception 14"] += 1
            self.engine.capture_user()
            self.engine.exit(PageFault(fault.gva, fault.code))
            return
        match outcome:
            case None:
                stats.architectural["hidden page fault"] += 1
            case StepOver(gfn):
                stats.architectural["directory write"] += 1
                self.engine.capture_user()
                self.engine.step_over_directory_write(gfn)
            case DeviceAccess(gpa):
                stats.architectural["device memory"] += 1
                self.engine.capture_user()
                if error & Fault.I:
                    self.engine.exact = True
                    vm.stop(Stop(End.DIED, f"the guest executes at {gva:#x}, where there is no memory (gpa {gpa:#x})"))
                else:
                    self.engine.exit(DeviceMemory(gpa, gva, bool(error & Fault.W)))

    def port_allowed(self, port: int, size: int) -> bool:
        vm = self.vm
        vm.vcpu.cpl = 3
        try:
            if port_allowed(vm, port, size):
                return True
        except GuestPageFault:
            pass
        if self.port_fault is None:
            self.port_fault = bytes(self.state.cast("B")[:_SAVED_STATE]), port, size
            self.machine.set_cr3(self.engine.parts.empty_root)
            self.machine.stop()
        return False

    def end_port_access(self) -> None:
        """Erratum 12: IN and OUT cannot be aborted: the state before is put back, and the exception injected."""
        assert self.port_fault is not None
        image, port, size = self.port_fault
        self.port_fault = None
        self.state.cast("B")[: len(image)] = image
        self.machine.set_cr3(self.engine.mmu.current.cr3)
        if not self.machine.running:
            self.machine.set_flags(self.machine.flags())  # the state was saved in a run, where the flags are kept in another form
        self.engine.capture()
        self.vm.stats.architectural["exception 13"] += 1
        self.engine.exit(PortAccess(port, size))
