"""Loads of segment registers and far transfers, as the manual's pseudo-code has them, for what is not left to the CPU.

Source: SDM 2 "MOV", "JMP", "CALL", "RET", "IRET"; SDM 3A 5.5 "Privilege Levels", 5.8 "Privilege Level Checking When
Transferring Program Control Between Code Segments". Knows descriptors; knows no instruction encoding.
"""

from __future__ import annotations

from vmm.cpu_state import Cpu
from vmm.faults import GuestFault
from vmm.mmu.linear import LinearMemory
from vmm.stack import Stack
from vmm.vcpu import Vcpu
from vmm.x86.bits import Cr0, Vector
from vmm.x86.descriptors import ACCESSED, CODE, CONFORMING, PRESENT, SEGMENT, WRITABLE, Segment, dpl, own_dpl, segment, system_type

DATA_REGISTERS = (Cpu.ES, Cpu.DS, Cpu.FS, Cpu.GS)


class Segments:
    """Segment loads for one virtual CPU."""

    def __init__(self, vcpu: Vcpu, linear: LinearMemory) -> None:
        self.vcpu, self.linear = vcpu, linear

    @property
    def real(self) -> bool:
        """Whether the virtual CPU is in real mode, where a segment's base is its selector times 16 and nothing else of it changes."""
        return not self.vcpu.cr0 & Cr0.PE

    def descriptor(self, selector: int, vector: int = Vector.GP, external: int = 0) -> tuple[int, int]:
        """(descriptor, its linear address) for a selector that is not null. Raises `vector` beyond the table's limit."""
        vcpu = self.vcpu
        error = selector & 0xFFFC | external
        if selector & 4:
            base, limit = vcpu.ldt.base, vcpu.ldt.limit
            if not vcpu.ldt.selector & 0xFFFC:
                raise GuestFault(vector, error)
        else:
            base, limit = vcpu.gdt_base, vcpu.gdt_limit
        if (selector & 0xFFF8) + 7 > limit:
            raise GuestFault(vector, error)
        address = base + (selector & 0xFFF8) & self.linear.paging.mask
        return self.linear.read_int(address, 8), address

    def system_descriptor(self, selector: int) -> tuple[int, int]:
        """As `descriptor`, for an LDT's or a TSS's, which in long mode has 16 bytes (SDM 3A 3.5 "System Descriptor Types")."""
        descriptor, address = self.descriptor(selector)
        if self.linear.paging.long:
            if (selector & 0xFFF8) + 15 > self.vcpu.gdt_limit:
                raise GuestFault(Vector.GP, selector & 0xFFFC)
            descriptor |= self.linear.read_int(address + 8 & self.linear.paging.mask, 8) << 64
        return descriptor, address

    def mark_accessed(self, descriptor: int, address: int) -> int:
        """Sets the descriptor's accessed bit in memory; returns the descriptor with it."""
        if not descriptor >> 32 & ACCESSED:
            self.linear.write_int(address + 5, 1, descriptor >> 40 & 0xFF | 1)
        return descriptor | ACCESSED << 32

    def stack(self, selector: int, cpl: int, vector: int = Vector.GP, external: int = 0) -> Segment:
        """The segment that loading SS with `selector` at `cpl` gives. `vector` is #TS when the selector comes from a TSS."""
        if self.real:
            return _shifted(self.vcpu.ss, selector)
        error = selector & 0xFFFC | external
        if not selector & 0xFFFC:
            raise GuestFault(vector, error if vector == Vector.TS else external)
        descriptor, address = self.descriptor(selector, vector, external)
        high = descriptor >> 32
        if selector & 3 != cpl or dpl(high) != cpl or not high & SEGMENT or high & CODE or not high & WRITABLE:
            raise GuestFault(vector, error)
        if not high & PRESENT:
            raise GuestFault(Vector.SS, error)
        return segment(selector, self.mark_accessed(descriptor, address))

    def data(self, selector: int) -> Segment:
        """The segment that loading DS, ES, FS or GS with `selector` gives; a null one may be loaded."""
        error = selector & 0xFFFC
        if not error:
            return Segment(selector, 0, 0, 0)
        descriptor, address = self.descriptor(selector)
        high = descriptor >> 32
        if not high & SEGMENT or high & CODE and not high & WRITABLE:  # of code the same bit says that it is readable
            raise GuestFault(Vector.GP, error)
        if not (high & CODE and high & CONFORMING) and dpl(high) < max(self.vcpu.cpl, selector & 3):
            raise GuestFault(Vector.GP, error)
        if not high & PRESENT:
            raise GuestFault(Vector.NP, error)
        return segment(selector, self.mark_accessed(descriptor, address))

    def inner_stack(self, level: int, ext: int = 0) -> Stack:
        """The stack of a privilege level, out of the TSS (SDM 3A 7.2.1 "Task-State Segment (TSS)")."""
        tr = self.vcpu.tr
        wide = system_type(tr.attributes) & 8
        offset = 4 + 8 * level if wide else 2 + 4 * level
        if offset + (7 if wide else 3) > tr.limit:
            raise GuestFault(Vector.TS, tr.selector & 0xFFFC | ext)
        esp = self.linear.read_int(tr.base + offset & 0xFFFFFFFF, 4 if wide else 2)
        selector = self.linear.read_int(tr.base + offset + (4 if wide else 2) & 0xFFFFFFFF, 2)
        return Stack(self.linear, self.stack(selector, level, Vector.TS, ext), esp, user=False)

    def code(self, selector: int, *, returning: bool = False) -> Segment:
        """The code segment for a far jump or call (no gates), or, `returning`, for a far return or iret. Keeps or raises the CPL."""
        if self.real:
            return _shifted(self.vcpu.cs, selector)
        cpl = self.vcpu.cpl
        error = selector & 0xFFFC
        if not error:
            raise GuestFault(Vector.GP, 0)
        descriptor, address = self.descriptor(selector)
        high, rpl = descriptor >> 32, selector & 3
        if not high & SEGMENT or not high & CODE:
            raise GuestFault(Vector.GP, error)
        if returning:
            wrong = rpl < cpl or (dpl(high) > rpl if high & CONFORMING else dpl(high) != rpl)
        else:
            wrong = dpl(high) > cpl if high & CONFORMING else rpl > cpl or dpl(high) != cpl
        if wrong:
            raise GuestFault(Vector.GP, error)
        if not high & PRESENT:
            raise GuestFault(Vector.NP, error)
        level = rpl if returning else cpl
        return segment(selector & 0xFFFC | level, self.mark_accessed(descriptor, address))

    def behind_gate(self, selector: int, *, jump: bool = False) -> Segment:
        """The code segment that a call gate names, at the level at which it is entered: an inner one by a call only."""
        cpl = self.vcpu.cpl
        error = selector & 0xFFFC
        if not error:
            raise GuestFault(Vector.GP, 0)
        descriptor, address = self.descriptor(selector)
        high = descriptor >> 32
        if not high & SEGMENT or not high & CODE or dpl(high) > cpl or jump and not high & CONFORMING and dpl(high) != cpl:
            raise GuestFault(Vector.GP, error)
        if not high & PRESENT:
            raise GuestFault(Vector.NP, error)
        return segment(error | (cpl if high & CONFORMING else dpl(high)), self.mark_accessed(descriptor, address))

    def drop_privileged_data(self, cpl: int) -> None:
        """On a return outwards: data segment registers that `cpl` may not use become null (SDM 2 "RET")."""
        state = self.vcpu.state
        for register in DATA_REGISTERS:
            high = state[register + Cpu.ATTRIBUTES]
            if not state[register] & 0xFFFC or own_dpl(high) >= cpl or high & CODE and high & CONFORMING:
                continue
            for word in range(6):
                state[register + word] = 0

    def drop_data(self) -> None:
        """Out of virtual-8086 mode: all data segment registers become null."""
        for register in DATA_REGISTERS:
            for word in range(6):
                self.vcpu.state[register + word] = 0


def _shifted(held: Segment, selector: int) -> Segment:
    return Segment(selector, selector << 4, held.limit, held.attributes)
