"""Delivery of exceptions and upcalls into a Xen guest: the only place that does it for one.

In place of an IDT the guest names handlers by hypercall, and finds a frame as a CPU would have pushed it, with its own interrupt mask beside CS.
Knows the CPU's state and the guest's stack; decides nothing about what happened.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vmm.cpu_state import Cpu
from vmm.exits import End, Stop, Stopped
from vmm.faults import GuestFault, GuestPageFault
from vmm.machine import Machine
from vmm.mmu.direct import VMM_START, DirectMmu
from vmm.vcpu import Vcpu
from vmm.x86.bits import ERROR_CODE_VECTORS, Flag, Vector
from vmm.x86.descriptors import CODE, CONFORMING, PRESENT, SEGMENT, WRITABLE, Segment, dpl, segment
from vmm.xen.descriptors import KERNEL_CODE, KERNEL_DATA, XenDescriptors
from vmm.xen.shared_info import SharedInfo

EVENT = 256
"""The number that stands for an upcall where others have a vector."""
_ANYBODYS = frozenset((Vector.BP, Vector.OF))  # INT3 and INTO may be used at any level
_OFF = Flag.TF | Flag.NT | Flag.RF | Flag.VM | Flag.AC | Flag.IOPL
_FLAT = {KERNEL_CODE: Segment(KERNEL_CODE, 0, 0xFFFFFFFF, 0x00CFBB00), KERNEL_DATA: Segment(KERNEL_DATA, 0, 0xFFFFFFFF, 0x00CFB300)}


@dataclass(frozen=True, slots=True)
class Handler:
    """Where an event goes. level: the lowest privilege (largest CPL) that may raise it by INT n. masks: no upcall may come in its handler."""

    selector: int
    address: int
    level: int = 0
    masks: bool = False


class Traps:
    """The handlers of one guest, and their frames."""

    def __init__(self, machine: Machine, vcpu: Vcpu, mmu: DirectMmu, descriptors: XenDescriptors, shared: SharedInfo) -> None:
        self.vcpu, self.machine, self.state = vcpu, machine, machine.state
        self.mmu, self.descriptors, self.shared = mmu, descriptors, shared
        self.handlers: dict[int, Handler] = {}
        self.event: Handler | None = None
        self.failsafe: Handler | None = None
        self.stack = (KERNEL_DATA, 0)  # SS and ESP for entries from user mode

    def raise_exception(self, vector: int, error: int | None = None) -> None:
        """An exception of the instruction at EIP; a page fault's address is the vCPU's CR2. Raises Stopped without a handler or stack for it."""
        self._deliver(vector, error, software=False, external=False)

    def interrupt(self, vector: int, back_to: int, *, software: bool) -> None:
        """INT n; EIP is at it, `back_to` behind it. Raises GuestFault where the gate does not let it in."""
        handler = self.handlers.get(vector)
        if handler is None or vector not in _ANYBODYS and handler.level < self.state[Cpu.HFLAGS] & 3:
            raise GuestFault(Vector.GP, vector << 3 | 2)
        self.state[Cpu.EIP] = back_to
        self._deliver(vector, None, software=software, external=False)

    def upcall(self) -> None:
        """Events are pending and not masked: enters the guest's handler for them."""
        self._deliver(EVENT, None, software=False, external=True)

    def _deliver(self, vector: int, error: int | None, *, software: bool, external: bool) -> None:
        handler = self.event if external else self.handlers.get(vector)
        if handler is None:
            what = "an event without a callback for it" if external else f"exception {vector} without a handler (error code {error or 0:#x})"
            raise Stopped(Stop(End.DIED, what))
        if vector == Vector.PF and not software:
            self.shared.set_cr2(self.vcpu.cr2)
        self._enter(handler, error if vector in ERROR_CODE_VECTORS and not software else None)

    def load(self, at: int, selector: int, level: int) -> bool:
        """Loads CS or SS for code at `level`, whose number takes the place of the selector's RPL; False when it is no such segment."""
        selector = selector & 0xFFFC | level
        found = _FLAT.get(selector)
        if found is None:
            descriptor = self.descriptors.descriptor(selector)
            high = descriptor >> 32
            wanted = high & (SEGMENT | PRESENT) == SEGMENT | PRESENT and (high & CODE != 0) == (at == Cpu.CS)
            if not wanted or (at == Cpu.SS and not high & WRITABLE):
                return False
            if dpl(high) != level and not (at == Cpu.CS and high & CONFORMING and dpl(high) <= level):
                return False
            found = segment(selector, descriptor)
        self.machine.set_segment(at, selector, found.base, found.limit, found.attributes)
        return True

    def _enter(self, handler: Handler, error: int | None) -> None:
        state = self.state
        flags, mask = self.vcpu.flags(), self.shared.masked
        frame = [state[Cpu.EIP], state[Cpu.CS] | mask << 16, flags]
        if state[Cpu.HFLAGS] & 3 == 3:
            frame += [state[Cpu.ESP], state[Cpu.SS]]
            esp = self._kernel_stack()
        else:
            esp = state[Cpu.ESP]
        if error is not None:
            frame.insert(0, error)
        self._go(handler, frame, esp)
        self.vcpu.set_flags(flags & ~_OFF)

    def cannot_return(self, frame: list[int]) -> None:
        """An IRET that the guest asked for has no such segments to go to: the failsafe callback gets its frame and the data segments.

        Raises Stopped without a callback, or a stack for it.
        """
        state = self.state
        if self.failsafe is None:
            raise Stopped(Stop(End.DIED, f"iret to the segments {frame[1] & 0xFFFF:#x} and {frame[-1]:#x}, without a failsafe callback"))
        esp = state[Cpu.ESP]
        if len(frame) > 3:
            esp = self._kernel_stack()
        self._go(self.failsafe, [*(state[register] & 0xFFFF for register in (Cpu.DS, Cpu.ES, Cpu.FS, Cpu.GS)), *frame], esp)

    def _kernel_stack(self) -> int:
        selector, esp = self.stack
        if not self.load(Cpu.SS, selector, 1):
            raise Stopped(Stop(End.DIED, f"the kernel's stack segment {selector:#x} is no stack"))
        return esp

    def _go(self, handler: Handler, frame: list[int], esp: int) -> None:
        """Pushes a frame and enters a handler."""
        state = self.state
        esp = esp - 4 * len(frame) & 0xFFFFFFFF
        linear = state[Cpu.SS + Cpu.BASE] + esp & 0xFFFFFFFF
        try:
            if linear + 4 * len(frame) > VMM_START:
                raise GuestPageFault(linear, 3)
            self.mmu.write(linear, struct.pack(f"<{len(frame)}I", *frame))
        except GuestPageFault as fault:
            raise Stopped(Stop(End.DIED, f"no stack to deliver an event on: page fault at {fault.gva:#x}")) from None
        if not self.load(Cpu.CS, handler.selector, 1):
            raise Stopped(Stop(End.DIED, f"the handler's code segment {handler.selector:#x} is none"))
        state[Cpu.ESP], state[Cpu.EIP] = esp, handler.address
        self.machine.set_mode(1)
        if handler.masks:
            self.shared.masked = 1
