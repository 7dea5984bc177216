"""The virtual CPU of a paravirtual guest: the physical CPU at its lower privilege levels, with an interrupt flag in the shared info page.

Knows where the CPU keeps its state. A guest that knows what it runs on sees the machine as it is, so little is virtual.
"""

from __future__ import annotations

from vmm.cpu_state import Cpu
from vmm.machine import Machine
from vmm.x86.bits import Cr4, Flag
from vmm.x86.descriptors import NULL, Segment
from vmm.xen.shared_info import SharedInfo


def _word(index: int, name: str) -> property:
    def read(self: PvVcpu) -> int:
        return self.state[index]

    def write(self: PvVcpu, value: int) -> None:
        self.state[index] = value & 0xFFFFFFFF

    return property(read, write, doc=name)


def _segment(index: int, name: str) -> property:
    def read(self: PvVcpu) -> Segment:
        state = self.state
        return Segment(state[index], state[index + Cpu.BASE], state[index + Cpu.LIMIT], state[index + Cpu.ATTRIBUTES])

    def write(self: PvVcpu, segment: Segment) -> None:
        self.machine.set_segment(index, segment.selector, segment.base, segment.limit, segment.attributes)

    return property(read, write, doc=name)


class PvVcpu:
    """The vCPU that is the physical CPU but for IF and IOPL. A change of CS or SS takes effect with the `cpl` that is written behind it.

    cr3: machine address of the top-level table; it changes by hypercall. There are no guest GDTR, IDTR, TR: the ABI has others.
    """

    code_64 = False
    eip = _word(Cpu.EIP, "EIP")
    esp = _word(Cpu.ESP, "ESP")
    cr0 = _word(Cpu.CR0, "CR0")
    cs = _segment(Cpu.CS, "CS")
    ss = _segment(Cpu.SS, "SS")

    def __init__(self, machine: Machine, shared: SharedInfo) -> None:
        self.machine, self.state, self.shared = machine, machine.state, shared
        self.cr2 = self.cr3 = self.efer = 0
        self.cr4: int = Cr4.PAE
        self.gdt_base = self.gdt_limit = self.idt_base = self.idt_limit = 0
        self.ldt = self.tr = NULL
        self.iopl = 0
        self.inhibited = self.halted = False
        self.delivered = 0
        self.debug = [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400]
        self.msrs: dict[int, int] = {}

    @property
    def cpl(self) -> int:
        """The current privilege level: 1 in the guest's kernel."""
        return self.state[Cpu.HFLAGS] & 3

    @cpl.setter
    def cpl(self, level: int) -> None:
        self.machine.set_mode(level)

    @property
    def interrupts_on(self) -> bool:
        """The virtual IF: no mask in the shared info page."""
        return not self.shared.masked

    @property
    def virtual_flags(self) -> int:
        """IF and IOPL in EFLAGS' places."""
        return (Flag.IF if self.interrupts_on else 0) | self.iopl << 12

    @virtual_flags.setter
    def virtual_flags(self, value: int) -> None:
        self.shared.masked = not value & Flag.IF
        self.iopl = value >> 12 & 3

    @property
    def trap_flag(self) -> bool:
        """TF."""
        return bool(self.state[Cpu.EFLAGS] & Flag.TF)

    @trap_flag.setter
    def trap_flag(self, on: bool) -> None:
        self.machine.set_trap_flag(on)

    def tables(self) -> object:
        """The guest has none of its own that are read for it."""
        return self.cr3

    def flags(self) -> int:
        """EFLAGS as the guest sees it where the VMM shows it."""
        return self.machine.flags() & ~(Flag.IF | Flag.IOPL) | self.virtual_flags

    def set_flags(self, value: int) -> None:
        """Writes EFLAGS but for IF and IOPL."""
        self.machine.set_flags(value & ~(Flag.IOPL | Flag.VM | Flag.RF) & 0x3F7FD7 | Flag.IF | 2)

    def register(self, number: int) -> int:
        """General register by its encoding, 32 bits."""
        return self.state[2 * number]

    def set_register(self, number: int, value: int) -> None:
        self.state[2 * number] = value & 0xFFFFFFFF
