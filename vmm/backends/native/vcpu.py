"""The CPU of a guest that no VMM stands under: every part of the vCPU is the physical CPU's own.

Knows where the CPU keeps its state, and which derived state a change brings along. Knows no back-end.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.cpu_state import Cpu
from vmm.cpuid import EFER
from vmm.machine import Machine
from vmm.x86.bits import Flag
from vmm.x86.descriptors import Segment

_INHIBITED = 8  # in the decoding flags: the shadow of STI and of loads of SS
_TSS_BUSY = 1 << 9
_VIRTUAL_FLAGS = Flag.IF | Flag.IOPL


def _word(index: int, name: str) -> property:
    def read(self: NativeVcpu) -> int:
        return self.state[index]

    def write(self: NativeVcpu, value: int) -> None:
        self.state[index] = value & 0xFFFFFFFF

    return property(read, write, doc=name)


def _control(index: int, load: Callable[[Machine, int], None], name: str) -> property:
    def read(self: NativeVcpu) -> int:
        return self.state[index] if self.kept is None else self.kept[name]

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
        return Segment(state[index], state[index + Cpu.BASE], state[index + Cpu.LIMIT], state[index + Cpu.ATTRIBUTES])

    def write(self: NativeVcpu, segment: Segment) -> None:
        self.machine.set_segment(index, segment.selector, segment.base, segment.limit, segment.attributes & ~hidden)

    return property(read, write, doc=name)


class DebugRegisters:
    """DR0 to DR7. The CPU is not told of DR7: its breakpoints would stop the engine instead of the guest."""

    def __init__(self, machine: Machine) -> None:
        self.state, self.first = machine.state, machine.debug
        self._dr7 = 0x400

    def __getitem__(self, number: int) -> int:
        return self._dr7 if number == 7 else self.state[self.first + 2 * number]

    def __setitem__(self, number: int, value: int) -> None:
        if number == 7:
            self._dr7 = value
        else:
            self.state[self.first + 2 * number] = value & 0xFFFFFFFF


class NativeVcpu:
    """The vCPU that is the physical CPU. A change of CS, SS or EFLAGS.VM takes effect with the `cpl` that is written behind it."""

    eip = _word(Cpu.EIP, "EIP")
    esp = _word(Cpu.ESP, "ESP")
    cr0 = _control(Cpu.CR0, Machine.set_cr0, "CR0")
    cr2 = _word(Cpu.CR2, "CR2")
    cr3 = _control(Cpu.CR3, Machine.set_cr3, "CR3")
    cr4 = _control(Cpu.CR4, Machine.set_cr4, "CR4")
    gdt_base = _word(Cpu.GDT + Cpu.BASE, "GDTR base, linear")
    gdt_limit = _word(Cpu.GDT + Cpu.LIMIT, "GDTR limit")
    idt_base = _word(Cpu.IDT + Cpu.BASE, "IDTR base, linear")
    idt_limit = _word(Cpu.IDT + Cpu.LIMIT, "IDTR limit")
    cs = _segment(Cpu.CS, "CS")
    ss = _segment(Cpu.SS, "SS")
    ldt = _segment(Cpu.LDT, "The local descriptor table register")
    tr = _segment(Cpu.TR, "The task register", _TSS_BUSY)

    def __init__(self, machine: Machine) -> None:
        self.machine, self.state = machine, machine.state
        self.halted = False
        self.kept: dict[str, int] | None = None  # CR0, CR3 and CR4, where shadow paging keeps the guest's from the CPU
        self.delivered = 0
        self.debug = DebugRegisters(machine)
        self.msrs: dict[int, int] = {}
        self._efer = 0

    @property
    def efer(self) -> int:
        """EFER."""
        return self._efer

    @efer.setter
    def efer(self, value: int) -> None:
        self._efer = value
        if self.kept is None:
            self.machine.write_msr(EFER, value)

    @property
    def cpl(self) -> int:
        """The current privilege level."""
        return self.state[Cpu.HFLAGS] & 3

    @cpl.setter
    def cpl(self, level: int) -> None:
        inhibited = self.inhibited
        self.machine.set_mode(level)
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

    def register(self, number: int) -> int:
        """General register by its encoding, 32 bits."""
        return self.state[2 * number]

    def set_register(self, number: int, value: int) -> None:
        self.state[2 * number] = value & 0xFFFFFFFF
        self.state[2 * number + 1] = 0
