"""What the back-ends that deprivilege the guest have in common: scattered memory, shadow tables of both kinds, and the CPU's first state.

Knows the parts by their contracts. Knows nothing of how guest code is run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.cpu_state import GENERAL, Cpu
from vmm.cpuid import CPU_32
from vmm.emulate import set_cr0
from vmm.machine import FRAME, MIB, Machine
from vmm.memory import GuestMemory
from vmm.mmu.descriptors import ShadowDescriptors
from vmm.mmu.host import HostSpace
from vmm.mmu.linear import LinearMemory
from vmm.mmu.shadow import ShadowMmu
from vmm.mmu.walk import GuestPaging
from vmm.vcpu import DeprivilegedVcpu
from vmm.x86.bits import Cr0, Flag
from vmm.x86.descriptors import Segment, deprivileged, segment

if TYPE_CHECKING:
    from vmm.start import Start
    from vmm.vm import Vm


_RUNS = 44 * MIB  # host-physical memory for two windows and the host's own tables
_TABLES = 40 * MIB  # and for shadow tables


def machine(memory_size: int) -> Machine:
    """A physical machine large enough for one VM of so much memory."""
    scattered, runs = room(memory_size)
    return Machine(scattered + runs, runs)


def room(memory_size: int) -> tuple[int, int]:
    """Bytes that such a VM takes of a machine: in scattered frames, and in runs of consecutive ones."""
    return memory_size + _TABLES, _RUNS


class Shadowed:
    """The parts of one VM of `size` bytes of memory whose guest kernel runs at CPL `ring`. kernel_executes: the CPU runs its own code.

    broken: mistakes that the shadow tables make.

    `put_under` completes them: descriptors exists from then on. empty_root: a page-table pointer that maps nothing (erratum 12).
    """

    descriptors: ShadowDescriptors

    def __init__(self, machine: Machine, size: int, ring: int, *, kernel_executes: bool = False, broken: frozenset[str] = frozenset()) -> None:
        self.machine, self.ring = machine, ring
        self.host = HostSpace(machine)
        self.memory = GuestMemory(machine, size)
        self.paging = GuestPaging(self.memory)
        self.mmu = ShadowMmu(machine, self.memory, self.paging, self.host, deprivileged=ring == 3, kernel_executes=kernel_executes)
        self.mmu.traces, self.mmu.raw_pointer = "no-trace" not in broken, "raw-ptp" in broken
        self.linear = LinearMemory(self.memory, self.paging)
        (empty,) = machine.allocate(1)
        machine.clear(empty)
        self.empty_root = empty * FRAME

    def put_under(self, vm: Vm, words: memoryview[int]) -> None:
        """Makes them the VM's, with a vCPU that keeps in `words` what translated code reads."""
        vm.memory, vm.paging, vm.mmu, vm.linear = self.memory, self.paging, self.mmu, self.linear
        vm.vcpu = DeprivilegedVcpu(self.machine, words)
        vm.descriptors = self.descriptors = ShadowDescriptors(
            self.machine, self.memory, self.paging, self.mmu, self.host, vm.vcpu, self.ring
        )

    def enter_start(self, vm: Vm, start: Start) -> None:
        """Sets the virtual CPU to the guest's first instruction, and the physical one to the deprivileged state that stands for it."""
        vcpu, machine = vm.vcpu, vm.machine
        machine.offer(CPU_32.offered)
        machine.enter_long_mode(self.mmu.current.cr3)
        self.descriptors.enter(user=False)
        vcpu.cpl = 0
        vcpu.gdt_base, vcpu.gdt_limit = start.gdt_base, start.gdt_limit
        vcpu.idt_base, vcpu.idt_limit = 0, 0x3FF
        vcpu.cr0 = Cr0.PE | Cr0.ET
        set_cr0(vm, Cr0.PE | Cr0.ET)
        vcpu.cs, vcpu.ss = (self._initial_segment(start, selector) for selector in (start.cs, start.ds))
        for register in (Cpu.ES, Cpu.DS, Cpu.FS, Cpu.GS):
            machine.set_segment(register, start.ds, 0, 0xFFFFFFFF, deprivileged(0x00CF9300, self.ring))
        values = (start.eax, start.ecx, start.edx, start.ebx, start.esp, start.ebp, start.esi, start.edi)
        for at, value in zip(GENERAL, values, strict=True):
            machine.state[at] = value
        vcpu.set_flags(start.eflags & ~Flag.IF)
        vcpu.eip = start.entry

    def _initial_segment(self, start: Start, selector: int) -> Segment:
        return segment(selector, int.from_bytes(self.memory.read(start.gdt_base + (selector & 0xFFF8), 8), "little"))
