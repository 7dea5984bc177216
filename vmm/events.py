"""Delivery of exceptions and interrupts into a guest through its IDT: the only place that does it.

What a CPU does between an event and the first instruction of its handler (SDM 3A 6.12.1 "Exception- or Interrupt-Handler
Procedures", 6.14 "Exception and Interrupt Handling in 64-bit Mode", 3B 20.1.4 "Interrupt and Exception Handling" in real mode,
20.3 "Interrupt and Exception Handling in Virtual-8086 Mode"), including what goes wrong on the way: double and triple faults (SDM 3A 6.15).
This CPU delivers nothing by itself, so every event of every back-end comes through here.
"""

from __future__ import annotations

import struct
from typing import Protocol

from vmm.cpu_state import Cpu
from vmm.exits import End, Stop, Stopped
from vmm.faults import GuestFault, GuestPageFault
from vmm.gates import Entry, Gates
from vmm.mmu.linear import LinearMemory
from vmm.segments import Segments
from vmm.stack import Stack
from vmm.vcpu import Vcpu
from vmm.x86.bits import CONTRIBUTORY, ERROR_CODE_VECTORS, Cr0, Dr7, Flag, Vector
from vmm.x86.descriptors import (
    CODE,
    CONFORMING,
    INTERRUPT_GATE,
    LONG_CODE,
    PRESENT,
    SEGMENT,
    TASK_GATE,
    TRAP_GATE,
    WIDE,
    Segment,
    dpl,
    segment,
    system_type,
)

_FAULTS_WITH_RF = frozenset((0, 5, 6, 7, 10, 11, 12, 13, 14, 16, 17, 19))


class Delivery(Protocol):
    """Delivery of events into a guest; may raise Stopped, and then the guest is dead."""

    def raise_exception(self, vector: int, error: int | None = None) -> None:
        """An exception of the instruction at EIP; a page fault's address is the vCPU's CR2."""
        ...

    def interrupt(self, vector: int, back_to: int, *, software: bool) -> None:
        """An external interrupt, or a software interrupt (whose gate must allow it); `back_to` is the EIP to return to. Raises GuestFault."""
        ...


class Events:
    """Delivers events to one virtual CPU. Leaves the vCPU at the handler's first instruction."""

    def __init__(self, vcpu: Vcpu, linear: LinearMemory, segments: Segments) -> None:
        self.vcpu, self.linear, self.segments = vcpu, linear, segments
        self.gates = Gates(vcpu, linear)

    def raise_exception(self, vector: int, error: int | None = None) -> None:
        """An exception of the instruction at EIP; a fault on the way becomes a double fault. Raises Stopped on a triple fault."""
        current: GuestFault = GuestFault(vector, error)
        while True:
            try:
                self._deliver(current.vector, current.error, software=False, external=False, back_to=self.vcpu.eip)
                return
            except GuestFault as second:
                if isinstance(second, GuestPageFault):
                    self.vcpu.cr2 = second.gva
                current = _combined(current, second)

    def interrupt(self, vector: int, back_to: int, *, software: bool) -> None:
        """An external interrupt, or a software interrupt (whose gate must allow it); `back_to` is the EIP to return to. Raises GuestFault."""
        self._deliver(vector, None, software=software, external=not software, back_to=back_to)

    def _deliver(self, vector: int, error: int | None, *, software: bool, external: bool, back_to: int) -> None:
        vcpu = self.vcpu
        if not vcpu.cr0 & Cr0.PE:
            self._deliver_real(vector, back_to)
            return
        if self.linear.paging.long:
            self._deliver_long(vector, error, software=software, external=external, back_to=back_to)
            return
        entry = self.gates.find(vector, software)
        if entry is not None and self._enter(entry, vector, error, back_to, faults=not software and not external):
            return
        ext = 0 if software else 1
        about_gate = vector << 3 | 2 | ext
        if vector * 8 + 7 > vcpu.idt_limit:
            raise GuestFault(Vector.GP, about_gate)
        gate = self.linear.read_int(vcpu.idt_base + vector * 8 & 0xFFFFFFFF, 8)
        high = gate >> 32
        kind = system_type(high)
        if high & SEGMENT or kind not in (INTERRUPT_GATE, TRAP_GATE, TASK_GATE, 6, 7):
            raise GuestFault(Vector.GP, about_gate)
        if software and dpl(high) < vcpu.cpl:
            raise GuestFault(Vector.GP, about_gate)
        if not high & PRESENT:
            raise GuestFault(Vector.NP, about_gate)
        if kind == TASK_GATE:
            raise Stopped(Stop(End.UNSUPPORTED, f"vector {vector} goes through a task gate: hardware task switches are not supported"))
        width = 4 if kind >= INTERRUPT_GATE else 2
        offset = gate & 0xFFFF | (high & 0xFFFF0000 if width == 4 else 0)
        selector = gate >> 16 & 0xFFFF
        if not selector & 0xFFFC:
            raise GuestFault(Vector.GP, ext)
        descriptor, address = self.segments.descriptor(selector, Vector.GP, ext)
        code = descriptor >> 32
        if not code & SEGMENT or not code & CODE or dpl(code) > vcpu.cpl:
            raise GuestFault(Vector.GP, selector & 0xFFFC | ext)
        if not code & PRESENT:
            raise GuestFault(Vector.NP, selector & 0xFFFC | ext)
        flags = vcpu.flags()
        if not software and not external and vector in _FAULTS_WITH_RF:
            flags |= Flag.RF
        frame = [flags, vcpu.cs.selector, back_to]
        cpl = vcpu.cpl
        level = cpl if code & CONFORMING else dpl(code)
        if flags & Flag.VM and level:
            raise GuestFault(Vector.GP, selector & 0xFFFC | ext)
        if level < vcpu.cpl:
            stack = self.segments.inner_stack(level, ext)
            frame = [vcpu.ss.selector, vcpu.esp, *frame]
            if flags & Flag.VM:
                frame = [*(vcpu.state[register] for register in (Cpu.GS, Cpu.FS, Cpu.DS, Cpu.ES)), *frame]
        else:
            stack = Stack(self.linear, vcpu.ss, vcpu.esp, level == 3)
        if error is not None and vector in ERROR_CODE_VECTORS:
            frame.append(error)
        stack.push(*frame, size=width)
        entered = segment(selector & 0xFFFC | level, self.segments.mark_accessed(descriptor, address))
        if flags & Flag.VM:
            self.segments.drop_data()
        if level < vcpu.cpl:
            vcpu.ss = stack.segment
        vcpu.cs = entered
        vcpu.cpl = level
        vcpu.esp = stack.esp
        vcpu.eip = offset
        off = Flag.TF | Flag.NT | Flag.RF | Flag.VM | (Flag.IF if kind & 1 == 0 else 0)
        vcpu.set_flags(flags & ~off)
        self._delivered(vector)
        if width == 4:
            self.gates.remember(vector, software, cpl, selector, Entry(entered, offset, level, off, stack.segment if level < cpl else None, 0))

    def _enter(self, entry: Entry, vector: int, error: int | None, back_to: int, *, faults: bool) -> bool:
        """Delivers by what is known of a gate. False, and nothing was done: that is not enough."""
        vcpu, flags = self.vcpu, self.vcpu.flags()
        if flags & Flag.VM:
            return False
        if faults and vector in _FAULTS_WITH_RF:
            flags |= Flag.RF
        if entry.stack is None:
            ss = vcpu.ss
            if ss.base or not ss.wide:
                return False
            frame, esp = [flags, vcpu.cs.selector, back_to], vcpu.esp
        else:
            frame, esp = [vcpu.ss.selector, vcpu.esp, flags, vcpu.cs.selector, back_to], self.linear.memory.words[entry.esp_at]
        if error is not None and vector in ERROR_CODE_VECTORS:
            frame.append(error)
        frame.reverse()
        esp -= 4 * len(frame)
        if esp < 0 or esp & 0xFFF > 0x1000 - 4 * len(frame):
            return False  # over a page's end, where both pages are to be looked at first
        self.linear.write(esp, struct.pack(f"<{len(frame)}I", *frame), entry.level == 3)
        if entry.stack is not None:
            vcpu.ss = entry.stack
        vcpu.cs = entry.code
        vcpu.cpl = entry.level
        vcpu.esp, vcpu.eip = esp, entry.offset
        vcpu.set_flags(flags & ~entry.cleared)
        self._delivered(vector)
        return True

    def _deliver_long(self, vector: int, error: int | None, *, software: bool, external: bool, back_to: int) -> None:
        """In long mode: gates of 16 bytes into 64-bit code, a stack from the TSS by the gate's wish too, and five words or six in any case."""
        vcpu, linear = self.vcpu, self.linear
        ext = 0 if software else 1
        about_gate = vector << 3 | 2 | ext
        if vector * 16 + 15 > vcpu.idt_limit:
            raise GuestFault(Vector.GP, about_gate)
        gate = linear.read_int(vcpu.idt_base + vector * 16, 16)
        high = gate >> 32 & 0xFFFFFFFF
        kind = system_type(high)
        if high & SEGMENT or kind not in (INTERRUPT_GATE, TRAP_GATE) or software and dpl(high) < vcpu.cpl:
            raise GuestFault(Vector.GP, about_gate)
        if not high & PRESENT:
            raise GuestFault(Vector.NP, about_gate)
        offset = gate & 0xFFFF | high & 0xFFFF0000 | gate >> 32 & 0xFFFFFFFF_00000000
        selector = gate >> 16 & 0xFFFF
        if not selector & 0xFFFC:
            raise GuestFault(Vector.GP, ext)
        descriptor, address = self.segments.descriptor(selector, Vector.GP, ext)
        code = descriptor >> 32
        level = vcpu.cpl if code & CONFORMING else dpl(code)
        if not code & SEGMENT or not code & CODE or level > vcpu.cpl or code & (LONG_CODE | WIDE) != LONG_CODE:
            raise GuestFault(Vector.GP, selector & 0xFFFC | ext)
        if not code & PRESENT:
            raise GuestFault(Vector.NP, selector & 0xFFFC | ext)
        inner, stack_number = level < vcpu.cpl, high & 7
        rsp = self._inner_rsp(level, stack_number, ext) if inner or stack_number else vcpu.esp
        flags = vcpu.flags()
        if not software and not external and vector in _FAULTS_WITH_RF:
            flags |= Flag.RF
        frame = [back_to, vcpu.cs.selector, flags, vcpu.esp, vcpu.ss.selector]
        if error is not None and vector in ERROR_CODE_VECTORS:
            frame.insert(0, error)
        rsp = (rsp & ~0xF) - 8 * len(frame)
        if rsp + (1 << 47) >> 48 & 0xFFFF:
            raise GuestFault(Vector.SS, ext)
        linear.write(rsp, b"".join(value.to_bytes(8, "little") for value in frame), level == 3)
        entered = segment(selector & 0xFFFC | level, self.segments.mark_accessed(descriptor, address))
        if inner:
            vcpu.ss = Segment(level, 0, 0, level << 13)
        vcpu.cs = entered
        vcpu.cpl = level
        vcpu.esp, vcpu.eip = rsp, offset
        vcpu.set_flags(flags & ~(Flag.TF | Flag.NT | Flag.RF | Flag.VM | (Flag.IF if kind == INTERRUPT_GATE else 0)))
        self._delivered(vector)

    def _inner_rsp(self, level: int, stack_number: int, ext: int) -> int:
        """A stack pointer out of the TSS: the gate's, or else the privilege level's (SDM 3A 7.7 "Task Management in 64-bit Mode")."""
        tr = self.vcpu.tr
        offset = 0x1C + 8 * stack_number if stack_number else 4 + 8 * level
        if offset + 7 > tr.limit:
            raise GuestFault(Vector.TS, tr.selector & 0xFFFC | ext)
        return self.linear.read_int(tr.base + offset, 8)

    def _delivered(self, vector: int) -> None:
        vcpu = self.vcpu
        vcpu.inhibited = False
        vcpu.halted = False
        vcpu.delivered += 1
        if vector == Vector.DB:
            vcpu.debug[7] &= ~Dr7.GD

    def _deliver_real(self, vector: int, back_to: int) -> None:
        """Through the table of far pointers that the IDTR names in real mode. No error code is pushed."""
        vcpu = self.vcpu
        if vector * 4 + 3 > vcpu.idt_limit:
            raise GuestFault(Vector.GP, 0)
        handler = self.linear.read_int(vcpu.idt_base + vector * 4 & 0xFFFFFFFF, 4)
        flags, stack = vcpu.flags(), Stack(self.linear, vcpu.ss, vcpu.esp, user=False)
        stack.push(flags, vcpu.cs.selector, back_to, size=2)
        before, selector = vcpu.cs, handler >> 16
        vcpu.cs = Segment(selector, selector << 4, before.limit, before.attributes)
        vcpu.cpl = 0
        vcpu.esp = stack.esp
        vcpu.eip = handler & 0xFFFF
        vcpu.set_flags(flags & ~(Flag.TF | Flag.IF | Flag.AC | Flag.RF))
        self._delivered(vector)


def _combined(first: GuestFault, second: GuestFault) -> GuestFault:
    """What a second exception during the delivery of a first one becomes (SDM 3A table 6-5)."""
    if first.vector == Vector.DF:
        raise Stopped(Stop(End.DIED, f"triple fault: exception {second.vector} while a double fault was delivered"))
    page, contributory = first.vector == Vector.PF, first.vector in CONTRIBUTORY
    if contributory and second.vector in CONTRIBUTORY or page and (second.vector in CONTRIBUTORY or second.vector == Vector.PF):
        return GuestFault(Vector.DF, 0)
    return second
