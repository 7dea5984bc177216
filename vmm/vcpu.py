"""The virtual CPU: the state that the guest believes in, and how it is kept where it differs from the physical CPU's.

General registers, arithmetic flags, FPU state and the data segments are always in the physical CPU and are the guest's own. For a
deprivileged guest the rest is virtual and stands here: control registers, IF and IOPL, CS and SS in virtual kernel mode, descriptor-table
and task registers, MSRs. Words that translated code reads live in the window and are reached through `words`. Knows no back-end.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Protocol

from vmm.cpu_state import Cpu
from vmm.machine import Machine
from vmm.words import Word
from vmm.x86.bits import Flag
from vmm.x86.descriptors import NULL, Segment

_VIRTUAL_FLAGS = Flag.IF | Flag.IOPL
_TABLES = itemgetter(*(word >> 2 for word in (Word.CR0, Word.CR3, Word.CR4, Word.GDT_LIMIT, Word.GDT_BASE, Word.IDT_LIMIT, Word.IDT_BASE)))


def _word(offset: int, name: str) -> property:
    index = offset >> 2

    def read(self: DeprivilegedVcpu) -> int:
        return self.words[index]

    def write(self: DeprivilegedVcpu, value: int) -> None:
        self.words[index] = value & 0xFFFFFFFF

    return property(read, write, doc=name)


class Registers(Protocol):
    """Numbered registers."""

    def __getitem__(self, number: int, /) -> int: ...

    def __setitem__(self, number: int, value: int, /) -> None: ...


class Vcpu(Protocol):
    """One virtual CPU, as those who emulate and deliver see it. Exact whenever the monitor handles an exit.

    trap_flag: TF in virtual kernel mode. inhibited: no interrupt before the next instruction is done. state: the CPU's live state, for
    what is always the guest's own. delivered: events so far. debug: DR0 to DR7. msrs: the MSRs that exist and are no more than stored values.
    code_64: in 64-bit code; registers, EIP and ESP have 64 bits then, otherwise 32. tables(): all that says where page tables and descriptor
    tables are and how they are read, to be compared.
    """

    state: memoryview[int]
    eip: int
    cpl: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    efer: int
    gdt_base: int
    gdt_limit: int
    idt_base: int
    idt_limit: int
    cs: Segment
    ss: Segment
    ldt: Segment
    tr: Segment
    virtual_flags: int
    trap_flag: bool
    inhibited: bool
    halted: bool
    delivered: int
    msrs: dict[int, int]
    esp: int

    @property
    def code_64(self) -> bool: ...

    @property
    def debug(self) -> Registers: ...

    @property
    def interrupts_on(self) -> bool: ...

    @property
    def iopl(self) -> int: ...

    def flags(self) -> int: ...

    def set_flags(self, value: int) -> None: ...

    def tables(self) -> object: ...

    def register(self, number: int) -> int: ...

    def set_register(self, number: int, value: int) -> None: ...


class DeprivilegedVcpu:
    """The virtual CPU of a guest that the VMM deprivileges. words: the first page of the window as 32-bit words, or any memory of that size.

    eip, cpl, cs and ss are exact whenever the monitor handles an exit.
    """

    code_64 = False

    cr0 = _word(Word.CR0, "CR0 as the guest sees it")
    cr2 = _word(Word.CR2, "CR2")
    cr3 = _word(Word.CR3, "CR3")
    cr4 = _word(Word.CR4, "CR4")
    gdt_limit = _word(Word.GDT_LIMIT, "GDTR limit")
    gdt_base = _word(Word.GDT_BASE, "GDTR base, linear")
    idt_limit = _word(Word.IDT_LIMIT, "IDTR limit")
    idt_base = _word(Word.IDT_BASE, "IDTR base, linear")
    virtual_flags = _word(Word.FLAGS, "IF and IOPL in EFLAGS' places")

    def __init__(self, machine: Machine, words: memoryview[int]) -> None:
        self.machine, self.state, self.words = machine, machine.state, words
        self.eip = 0
        self.cpl = 0
        self.efer = 0
        self._cs = self._ss = self._ldt = self._tr = NULL
        self.trap_flag = False  # TF
        self.inhibited = False  # no interrupt before the next instruction is done: behind sti and loads of SS
        self.halted = False
        self.delivered = 0  # events so far
        self.debug = [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400]
        self.msrs: dict[int, int] = {}

    @property
    def cs(self) -> Segment:
        """CS in virtual kernel mode, with the selector that the guest sees."""
        return self._cs

    @cs.setter
    def cs(self, segment: Segment) -> None:
        self._cs = segment
        self.words[Word.CS >> 2] = segment.selector

    @property
    def ss(self) -> Segment:
        """SS in virtual kernel mode."""
        return self._ss

    @ss.setter
    def ss(self, segment: Segment) -> None:
        self._ss = segment
        self.words[Word.SS >> 2] = segment.selector

    @property
    def ldt(self) -> Segment:
        """The local descriptor table register."""
        return self._ldt

    @ldt.setter
    def ldt(self, segment: Segment) -> None:
        self._ldt = segment
        self.words[Word.LDT >> 2] = segment.selector

    @property
    def tr(self) -> Segment:
        """The task register."""
        return self._tr

    @tr.setter
    def tr(self, segment: Segment) -> None:
        self._tr = segment
        self.words[Word.TR >> 2] = segment.selector

    @property
    def interrupts_on(self) -> bool:
        """The virtual IF."""
        return bool(self.words[Word.FLAGS >> 2] & Flag.IF)

    @property
    def iopl(self) -> int:
        """The virtual IOPL."""
        iopl: int = self.words[Word.FLAGS >> 2] >> 12 & 3
        return iopl

    def flags(self) -> int:
        """EFLAGS as the guest sees it."""
        flags: int = self.machine.flags() & ~(_VIRTUAL_FLAGS | Flag.TF) | self.virtual_flags
        return flags | Flag.TF if self.trap_flag else flags

    def set_flags(self, value: int) -> None:
        """Writes EFLAGS whole. TF is a back-end's business: it may be physical where guest code runs directly."""
        self.virtual_flags = value & _VIRTUAL_FLAGS
        self.trap_flag = bool(value & Flag.TF)
        physical = value & ~(_VIRTUAL_FLAGS | Flag.TF | Flag.VM | Flag.RF) | Flag.IF
        self.machine.set_flags(physical & 0x3F7FD7 | 2)

    def tables(self) -> object:
        """Control registers, GDTR, IDTR and TR."""
        return _TABLES(self.words), self.efer, self._tr

    def register(self, number: int) -> int:
        """General register by its encoding, 32 bits."""
        value: int = self.state[2 * number]
        return value

    def set_register(self, number: int, value: int) -> None:
        self.state[2 * number] = value & 0xFFFFFFFF

    @property
    def esp(self) -> int:
        return self.state[Cpu.ESP]

    @esp.setter
    def esp(self, value: int) -> None:
        self.state[Cpu.ESP] = value & 0xFFFFFFFF
