"""The CPU of a guest that no VMM stands under: every part of the vCPU is the physical CPU's own.

Knows where the CPU keeps its state, and which derived state a change brings along. Knows no back-end.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

from vmm.cpu_state import Cpu
from vmm.cpuid import EFER
from vmm.machine import Machine
from vmm.x86.bits import Efer, Flag
from vmm.x86.descriptors import Segment

_INHIBITED = 8  # in the decoding flags: the shadow of STI and of loads of SS
_TSS_BUSY = 1 << 9
_LONG_MODE, _CODE_64 = 1 << 14, 1 << 15  # in the decoding flags
_TABLES = itemgetter(
    *(at + part >> 1 for at in (Cpu.GDT, Cpu.IDT, Cpu.TR) for part in (Cpu.BASE, Cpu.LIMIT)), *(at >> 1 for at in (Cpu.TR, Cpu.CR0, Cpu.CR3, Cpu.CR4))
)
_ALL = 0xFFFF_FFFF_FFFF_FFFF
_VIRTUAL_FLAGS = Flag.IF | Flag.IOPL


def _word(index: int, name: str) -> property:
    def read(self: NativeVcpu) -> int:
        return self.state[index]

    def write(self: NativeVcpu, value: int) -> None:
        self.state[index] = value & 0xFFFFFFFF

    return property(read, write, doc=name)


def _wide(index: int, name: str) -> property:
    """A register of 64 bits, of which 32-bit code leaves the upper half zero."""
    place = index >> 1

    def read(self: NativeVcpu) -> int:
        return self.wide[place]

    def write(self: NativeVcpu, value: int) -> None:
        self.wide[place] = value & _ALL

    return property(read, write, doc=name)


def _pointer(index: int, name: str) -> property:
    """A register that is as wide as addresses in the code that runs."""
    place = index >> 1

    def read(self: NativeVcpu) -> int:
        return self.wide[place] if self.state[Cpu.HFLAGS] & _CODE_64 else self.state[index]

    def write(self: NativeVcpu, value: int) -> None:
        self.wide[place] = value & (_ALL if self.state[Cpu.HFLAGS] & _CODE_64 else 0xFFFFFFFF)

    return property(read, write, doc=name)


def _control(index: int, load: Callable[[Machine, int], None], name: str) -> property:
    def read(self: NativeVcpu) -> int:
        return self.wide[index >> 1] if self.kept is None else self.kept[name]

    def write(self: NativeVcpu, value: int) -> None:
        if self.kept is None:
            load(self.machine, value)
        else:
            self.kept[name] = value

    return property(read, write, doc=name)


def _segment(index: int, name: str, hidden: int = 0) -> property:
    """hidden: attributes that the CPU's own part is not to have (erratum 11: a busy TSS in TR ends the process at a call gate)."""

    def read(self: NativeVcpu) -> Segment:
        state = self.state
        return Segment(state[index], self.wide[index + Cpu.BASE >> 1], state[index + Cpu.LIMIT], state[index + Cpu.ATTRIBUTES])

    def write(self: NativeVcpu, segment: Segment) -> None:
        self.machine.set_segment(index, segment.selector, segment.base, segment.limit, segment.attributes & ~hidden)

    return property(read, write, doc=name)


class DebugRegisters:
    """DR0 to DR7. The CPU is not told of DR7: its breakpoints would stop the engine instead of the guest."""

    def __init__(self, machine: Machine) -> None:
        self.wide, self.first = machine.wide, machine.debug >> 1
        self._dr7 = 0x400

    def __getitem__(self, number: int) -> int:
        return self._dr7 if number == 7 else self.wide[self.first + number]

    def __setitem__(self, number: int, value: int) -> None:
        if number == 7:
            self._dr7 = value
        else:
            self.wide[self.first + number] = value & _ALL


class NativeVcpu:
    """The vCPU that is the physical CPU. A change of CS, SS or EFLAGS.VM takes effect with the `cpl` that is written behind it."""

    eip = _pointer(Cpu.EIP, "EIP")
    esp = _pointer(Cpu.ESP, "ESP")
    cr0 = _control(Cpu.CR0, Machine.set_cr0, "CR0")
    cr2 = _wide(Cpu.CR2, "CR2")
    cr3 = _control(Cpu.CR3, Machine.set_cr3, "CR3")
    cr4 = _control(Cpu.CR4, Machine.set_cr4, "CR4")
    gdt_base = _wide(Cpu.GDT + Cpu.BASE, "GDTR base, linear")
    gdt_limit = _word(Cpu.GDT + Cpu.LIMIT, "GDTR limit")
    idt_base = _wide(Cpu.IDT + Cpu.BASE, "IDTR base, linear")
    idt_limit = _word(Cpu.IDT + Cpu.LIMIT, "IDTR limit")
    cs = _segment(Cpu.CS, "CS")
    ss = _segment(Cpu.SS, "SS")
    ldt = _segment(Cpu.LDT, "The local descriptor table register")
    tr = _segment(Cpu.TR, "The task register", _TSS_BUSY)

    def __init__(self, machine: Machine) -> None:
        self.machine, self.state, self.wide = machine, machine.state, machine.wide
        self.halted = False
        self.kept: dict[str, int] | None = None  # CR0, CR3 and CR4, where shadow paging keeps the guest's from the CPU
        self.delivered = 0
        self.debug = DebugRegisters(machine)
        self.msrs: dict[int, int] = {}
        self._efer = 0

    @property
    def efer(self) -> int:
        """EFER. LMA follows what is written to the others and to CR0."""
        return self._efer | (self.state[Cpu.HFLAGS] & _LONG_MODE and Efer.LMA)

    @efer.setter
    def efer(self, value: int) -> None:
        self._efer = value & ~Efer.LMA
        if self.kept is None:
            self.machine.write_msr(EFER, self._efer)

    @property
    def code_64(self) -> bool:
        """Whether 64-bit code runs."""
        return bool(self.state[Cpu.HFLAGS] & _CODE_64)

    @property
    def cpl(self) -> int:
        """The current privilege level."""
        return self.state[Cpu.HFLAGS] & 3

    @cpl.setter
    def cpl(self, level: int) -> None:
        inhibited = self.inhibited
        self.machine.set_mode(level, long=bool(self.state[Cpu.HFLAGS] & _LONG_MODE))
        self.inhibited = inhibited

    @property
    def inhibited(self) -> bool:
        """No interrupt before the next instruction is done."""
        return bool(self.state[Cpu.HFLAGS] & _INHIBITED)

    @inhibited.setter
    def inhibited(self, on: bool) -> None:
        self.state[Cpu.HFLAGS] = self.state[Cpu.HFLAGS] & ~_INHIBITED | on << 3

    @property
    def virtual_flags(self) -> int:
        """IF and IOPL in EFLAGS' places."""
        return self.state[Cpu.EFLAGS] & _VIRTUAL_FLAGS

    @virtual_flags.setter
    def virtual_flags(self, value: int) -> None:
        self.state[Cpu.EFLAGS] = self.state[Cpu.EFLAGS] & ~_VIRTUAL_FLAGS | value & _VIRTUAL_FLAGS

    @property
    def trap_flag(self) -> bool:
        """TF."""
        return bool(self.state[Cpu.EFLAGS] & Flag.TF)

    @trap_flag.setter
    def trap_flag(self, on: bool) -> None:
        self.state[Cpu.EFLAGS] = self.state[Cpu.EFLAGS] & ~Flag.TF | on << 8

    @property
    def interrupts_on(self) -> bool:
        """IF."""
        return bool(self.state[Cpu.EFLAGS] & Flag.IF)

    @property
    def iopl(self) -> int:
        """IOPL."""
        return self.state[Cpu.EFLAGS] >> 12 & 3

    def flags(self) -> int:
        """EFLAGS."""
        return self.machine.flags()

    def set_flags(self, value: int) -> None:
        """Writes EFLAGS whole."""
        self.machine.set_flags(value & 0x3F7FD7 | 2)
        self.state[Cpu.HFLAGS] &= ~Flag.TF  # the CPU takes TF from EFLAGS: in the decoding flags it would outlive it

    def tables(self) -> object:
        """Control registers, GDTR, IDTR and TR."""
        held = _TABLES(self.wide), self._efer
        return held if self.kept is None else (held, *self.kept.values())

    def register(self, number: int) -> int:
        """General register by its encoding, as wide as the code that runs."""
        return self.wide[number] if self.state[Cpu.HFLAGS] & _CODE_64 else self.state[2 * number]

    def set_register(self, number: int, value: int) -> None:
        self.wide[number] = value & (_ALL if self.state[Cpu.HFLAGS] & _CODE_64 else 0xFFFFFFFF)
