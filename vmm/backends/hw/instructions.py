"""Exits of instructions in guest mode: which were asked for, how the VMCS describes them, and who emulates them.

Knows the engine that it belongs to, and the routines that every back-end uses. Decides nothing about what an exit means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bt.decode import Instruction
from bt.sensitive import Row, classify
from vmm.backends.hw.vmcs import Reason
from vmm.cpu_state import Cpu
from vmm.cpuid import EFER, FS_BASE, GS_BASE, KERNEL_GS_BASE, LSTAR, SFMASK, STAR, SYSENTER_CS
from vmm.emulate import ROUTINES
from vmm.exits import Raised, Sensitive
from vmm.x86.bits import Efer, Flag, Pte, Vector
from vmm.x86.descriptors import FLAT_CODE_64, FLAT_DATA

if TYPE_CHECKING:
    from vmm.backends.hw.engine import Hardware

NAMES: Final = {reason: reason.name.lower().replace("_", " ") for reason in Reason} | {Reason.IO: "port", Reason.EPT_VIOLATION: "nested page fault"}
"""What statistics call each exit reason."""
_EAX, _EBX, _ECX, _EDX, _EIP = (register >> 1 for register in (Cpu.EAX, Cpu.EBX, Cpu.ECX, Cpu.EDX, Cpu.EIP))
_CPUID = int(Reason.CPUID)
_WRMSR, _RDTSC, _SYSCALL = 0x0F30, 0x0F31, b"\x0f\x05"
_ADDRESS: Final = 0xFF_FFFF_F000  # in an entry, as this CPU has it
_OF_THE_CPU: Final = frozenset((SYSENTER_CS, STAR, FS_BASE, GS_BASE, KERNEL_GS_BASE))  # SYSEXIT, SYSRET, SWAPGS and all code use them


class Instructions:
    """Handles the instructions that exit for one engine."""

    def __init__(self, engine: Hardware) -> None:
        self.engine, self.vm, self.vcpu = engine, engine.vm, engine.vcpu
        machine = engine.machine
        self.state, self.wide, self._words, self.architectural = machine.state, machine.wide, machine.words, engine.stats.architectural
        self._known, self._answers, self._exited = engine.sites.find, engine.vm.cpu_model.cpuid, engine.vmcs.exited
        self._events = machine.old_exception, machine.is_int, engine.svm.interrupt_shadow
        self._msrs = {number: f"msr {number:#x}" for name, number in engine.options.exit_on if name == "msr"}

    def handle(self, code: int, reason: Reason, instruction: Instruction) -> None:
        """An instruction that exits: emulated by the routine that every back-end uses."""
        row = classify(instruction.opcode, instruction.modrm)
        if not self._asked_for(reason, code):
            self.vm.stats.engine[NAMES[reason]] += 1
        else:
            wrmsr = reason is Reason.RDMSR and instruction.opcode == _WRMSR
            name = self._msrs.get(self.vcpu.register(1) & 0xFFFFFFFF) if reason is Reason.RDMSR else None
            self.engine.report(Reason.WRMSR if wrmsr else reason, self._qualification(reason, code, instruction), name)
        if reason is Reason.CPUID:
            self._cpuid()
        elif reason is Reason.RDTSC and instruction.opcode == _RDTSC:
            now = self.vm.clock.now()
            self.vcpu.set_register(0, now & 0xFFFFFFFF)
            self.vcpu.set_register(2, now >> 32 & 0xFFFFFFFF)
        elif row is not None and row.name in ROUTINES:
            if reason is Reason.RDMSR:
                self._msr(instruction, row)
            else:
                self.engine.exit(Sensitive(instruction, row))
            return
        elif reason not in (Reason.WBINVD, Reason.INVD, Reason.PAUSE):  # those have no effect; the others CPUID does not offer
            self.engine.exit(Raised(Vector.UD))
            return
        self.vcpu.inhibited = False
        self.vcpu.eip = instruction.next

    def syscall(self) -> bool:
        """SYSCALL of two bytes in 64-bit code: 6 us here, 20 by way of the monitor. False: not that, or undefined."""
        vcpu, machine = self.vcpu, self.vm.machine
        wide, rip = vcpu.wide, vcpu.eip
        if not vcpu.efer & Efer.SCE or rip & 0xFFF == 0xFFF or self._fetched(rip, 2) != _SYSCALL:
            return False
        flags, msrs = machine.flags(), vcpu.msrs
        wide[1], wide[11] = rip + 2 & 0xFFFF_FFFF_FFFF_FFFF, flags & ~Flag.RF
        selector = msrs[STAR] >> 32 & 0xFFFC
        machine.set_segment(Cpu.CS, selector, 0, 0xFFFFFFFF, FLAT_CODE_64)
        machine.set_segment(Cpu.SS, selector + 8 & 0xFFFF, 0, 0xFFFFFFFF, FLAT_DATA)
        machine.set_mode(0, long=True)
        machine.set_flags(flags & ~(msrs[SFMASK] | Flag.RF))
        wide[Cpu.EIP >> 1] = msrs[LSTAR]
        self.vm.stats.engine["syscall"] += 1
        return True

    def _fetched(self, rip: int, size: int) -> bytes:
        """Bytes of one page that the CPU has just fetched in long mode: its tables lead there, and no right is in question."""
        memory, quads = self.vm.memory, self.vm.machine.quads
        table, shift = self.vcpu.wide[Cpu.CR3 >> 1], 39
        while True:
            gfn = table >> 12 & 0xFF_FFFF_FFFF
            if gfn >= memory.count:
                return b""
            entry = quads[memory.frames[gfn] << 9 | rip >> shift & 511]
            if shift == 12 or entry & Pte.PS and shift < 39:
                offset = (1 << shift) - 1
                return memory.read(entry & _ADDRESS & ~offset | rip & offset, size)
            table, shift = entry & _ADDRESS, shift - 9

    def _asked_for(self, reason: Reason, code: int) -> bool:
        """Whether the VMCS asks for this exit, or it is only this CPU that needs help with the instruction."""
        match reason:
            case Reason.CONTROL_REGISTER:
                return self.engine.shadow is not None or f"cr{code & 0xF}" in self.engine.wanted
            case Reason.MOV_DR:
                return "dr" in self.engine.wanted
            case Reason.LDTR_TR:
                return "descriptor" in self.engine.wanted
            case _:
                return True

    def _qualification(self, reason: Reason, code: int, instruction: Instruction) -> int:
        """The exit qualification (SDM 3C 28.2.1) of what has one here."""
        if reason is Reason.CONTROL_REGISTER:
            if instruction.opcode == 0x0F06:
                return 2 << 4
            if instruction.opcode == 0x0F01:
                return 3 << 4 | (self.vcpu.register(instruction.modrm & 7) & 0xFFFF) << 16
            return code & 0xF | (code < 0x10) << 4 | instruction.rm << 8
        if reason is Reason.MOV_DR:
            return code & 7 | (code < 0x30) << 4 | instruction.rm << 8
        if reason is Reason.INVLPG:
            return self.vm.operands.address(instruction)
        return 0

    def cpuid(self) -> bool:
        """CPUID, which every VMCS asks for, at a known site. Hot: nothing else of the guest's state matters to it. False: the site is not known."""
        instruction = self._known()
        if instruction is None:
            return False
        wide, (old_exception, is_int, interrupt_shadow) = self.wide, self._events
        wide[_EAX], wide[_EBX], wide[_ECX], wide[_EDX] = self._answers(wide[_EAX] & 0xFFFFFFFF, wide[_ECX] & 0xFFFFFFFF)
        wide[_EIP] = instruction.next
        state = self.state
        state[old_exception], state[is_int] = 0xFFFFFFFF, 0  # `Machine.clear_event`, written out
        self._words[interrupt_shadow] = 0  # it ends with this instruction
        self.architectural["cpuid"] += 1
        self._exited(_CPUID, 0)
        return True

    def _cpuid(self) -> None:
        vcpu = self.vcpu
        leaf, subleaf = vcpu.register(0) & 0xFFFFFFFF, vcpu.register(1) & 0xFFFFFFFF
        for register, value in zip((0, 3, 1, 2), self.vm.cpuid(leaf, subleaf), strict=True):
            vcpu.set_register(register, value)

    def _msr(self, instruction: Instruction, row: Row) -> None:
        """RDMSR or WRMSR; those that the CPU uses by itself are the CPU's."""
        vcpu, machine = self.vcpu, self.vm.machine
        number = vcpu.register(1) & 0xFFFFFFFF
        held = number in _OF_THE_CPU and number in vcpu.msrs
        if held:
            vcpu.msrs[number] = self._held(number)
        self.engine.exit(Sensitive(instruction, row))
        if held and instruction.opcode == _WRMSR:
            machine.write_msr(number, vcpu.msrs[number])
        elif number == EFER:
            self.engine.efer_changed()

    def read_msrs(self) -> None:
        """Makes the vCPU's MSRs exact."""
        msrs = self.vcpu.msrs
        for number in _OF_THE_CPU & msrs.keys():
            msrs[number] = self._held(number)

    def write_msrs(self) -> None:
        """Gives the CPU what it uses by itself of the vCPU's MSRs; the bases go with their segments."""
        msrs = self.vcpu.msrs
        for number in (_OF_THE_CPU & msrs.keys()) - {FS_BASE, GS_BASE}:
            self.vm.machine.write_msr(number, msrs[number])

    def _held(self, number: int) -> int:
        if number in (FS_BASE, GS_BASE):
            return self.vcpu.wide[(Cpu.FS if number == FS_BASE else Cpu.GS) + Cpu.BASE >> 1]
        return self.vm.machine.read_msr(number)
