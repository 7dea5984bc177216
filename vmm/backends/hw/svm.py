"""The VMCS on the CPU's silicon, which is AMD's: the VMCB, VMRUN, and exit codes turned into VT-x's reasons.

The one place that knows it. Source: AMD64 Architecture Programmer's Manual 2, 15 "Secure Virtual Machine", appendix B "VMCB Layout", appendix C
"SVM Intercept Exit Codes". This CPU reports an exit inside the engine with the guest's state live in its registers and does not switch
worlds: VMRUN happens once, and returning from the report enters the guest again. Controls that change later are therefore changed in the
CPU itself.
"""

from __future__ import annotations

import struct
from typing import Final

from vmm.backends.hw.vmcs import UNUSABLE, Field, Primary, Reason, Secondary, Vmcs
from vmm.cpu_state import Cpu
from vmm.machine import FRAME, Machine, MachineError

_SVME = 1 << 12
_TRIES = 100  # a kick that was meant for another VM may come before VMRUN
EXIT: Final = 0x100
"""Vectors from here on are exit codes."""
NESTED_FAULT: Final = 0x500
"""The vector of a nested page fault."""
_INTERRUPT_VECTOR, _INTERRUPT_SHADOW, _EXIT_INFO_2, _EVENT_INJECTION = 0x64, 0x68, 0x80, 0xA8  # in the VMCB
_SAVE = 0x400
_STUB = 0x1000  # linear, in the host's tables
_VMLOAD_VMRUN = b"\x0f\x01\xda\x0f\x01\xd8\xf4"
_HOST_TABLE, _HOST_LEAF = 0x23, 0x61
_DESCRIPTOR_TABLES = range(0x66, 0x6E)
# INTR, NMI, SMI (a kick), LTR (erratum 11), CPUID, MSR, VMRUN to SKINIT, MONITOR, MWAIT
_ALWAYS = (0x60, 0x61, 0x62, 0x6D, 0x72, 0x7C, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x8A, 0x8B)
_BY_PRIMARY: Final = {
    Primary.HLT_EXITING: (0x78,), Primary.INVLPG_EXITING: (0x79, 0x7A), Primary.RDPMC_EXITING: (0x6F,),
    Primary.RDTSC_EXITING: (0x6E, 0x87), Primary.PAUSE_EXITING: (0x77,),
}  # fmt: skip
_REASONS: Final = {
    0x60: Reason.EXTERNAL_INTERRUPT, 0x6E: Reason.RDTSC, 0x87: Reason.RDTSC, 0x6F: Reason.RDPMC, 0x72: Reason.CPUID, 0x76: Reason.INVD,
    0x77: Reason.PAUSE, 0x78: Reason.HLT, 0x79: Reason.INVLPG, 0x7A: Reason.INVLPG, 0x89: Reason.WBINVD, 0x8A: Reason.MONITOR,
    0x8B: Reason.MWAIT, 0x66: Reason.GDTR_IDTR, 0x67: Reason.GDTR_IDTR, 0x6A: Reason.GDTR_IDTR, 0x6B: Reason.GDTR_IDTR,
    0x68: Reason.LDTR_TR, 0x69: Reason.LDTR_TR, 0x6C: Reason.LDTR_TR, 0x6D: Reason.LDTR_TR, 0x400: Reason.EPT_VIOLATION,
    **dict.fromkeys(range(0x20), Reason.CONTROL_REGISTER),
    **dict.fromkeys(range(0x20, 0x40), Reason.MOV_DR),
    **dict.fromkeys(range(0x40, 0x60), Reason.EXCEPTION),
}  # fmt: skip


class Svm:
    """The CPU's virtualization engine for one guest."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.state = machine, machine.state
        self._vmcb, self._save, self._permissions, _, stub, *tables = range((first := machine.allocate_run(9)) * FRAME, (first + 9) * FRAME, FRAME)
        machine.memory[self._permissions : self._permissions + 2 * FRAME] = b"\xff" * 2 * FRAME
        machine.memory[stub : stub + len(_VMLOAD_VMRUN)] = _VMLOAD_VMRUN
        for table, below in zip(tables, tables[1:], strict=False):
            machine.quads[table // 8] = below | _HOST_TABLE
        machine.quads[(tables[-1] + 8) // 8] = stub | _HOST_LEAF
        self.host_cr3 = tables[0]
        self.interrupt_shadow = (self._vmcb + _INTERRUPT_SHADOW) >> 2  # index of its word in host memory
        self._vector = (self._vmcb + _INTERRUPT_VECTOR) >> 2

    def load(self, vmcs: Vmcs) -> None:
        """Writes guest state and controls of a checked VMCS into the VMCB."""
        put, save = self._put, self._vmcb + _SAVE
        for at, name in ((0, "ES"), (0x10, "CS"), (0x20, "SS"), (0x30, "DS"), (0x40, "FS"), (0x50, "GS"), (0x70, "LDTR"), (0x90, "TR")):
            selector, rights, limit, base = vmcs.segment(name)
            attributes = 0 if rights & UNUSABLE else rights & 0xFF | rights >> 4 & 0xF00
            if name == "TR":
                attributes &= ~2  # erratum 11: call gates abort the process when TR is a busy TSS here
            put(save + at, "HHIQ", selector, attributes, limit, base)
        for at, name in ((0x60, "GDTR"), (0x80, "IDTR")):
            put(save + at, "HHIQ", 0, 0, vmcs[Field[f"GUEST_{name}_LIMIT"]], vmcs[Field[f"GUEST_{name}_BASE"]])
        put(save + 0xCB, "B", vmcs.segment("SS")[1] >> 5 & 3)
        for at, field in (
            (0x148, Field.GUEST_CR4), (0x150, Field.GUEST_CR3), (0x158, Field.GUEST_CR0), (0x160, Field.GUEST_DR7),
            (0x170, Field.GUEST_RFLAGS), (0x178, Field.GUEST_RIP), (0x1D8, Field.GUEST_RSP),
        ):  # fmt: skip
            put(save + at, "Q", vmcs[field])
        put(save + 0xD0, "Q", vmcs[Field.GUEST_IA32_EFER] | _SVME)
        put(save + 0x168, "Q", 0xFFFF0FF0)  # DR6
        words = self._intercepts(vmcs)
        put(self._vmcb, "IIIQ", words[0], words[1], words[2], words[3])
        put(self._vmcb + 0x48, "QQ", self._permissions, 0)
        put(self._vmcb + 0x58, "I", 1)  # the address-space identifier
        put(self._vmcb + 0x60, "II", 1 << 8 | 1 << 20, 0)  # a virtual interrupt, which shows whether the CPU's requests are where we think
        if vmcs[Field.SECONDARY_CONTROLS] & Secondary.ENABLE_EPT:
            put(self._vmcb + 0x90, "Q", 1)
            put(self._vmcb + 0xB0, "Q", vmcs[Field.EPT_POINTER] & ~0xFFF)

    def enter(self, vmcs: Vmcs) -> None:
        """VMRUN, from the host state that the VMCS has. The guest exits at once, for want of memory, before its first instruction."""
        machine, state = self.machine, self.state
        machine.enter_long_mode(vmcs[Field.HOST_CR3])
        machine.write_msr(0xC0000080, vmcs[Field.HOST_IA32_EFER] | _SVME)
        machine.write_msr(0xC0010117, self._save)
        state[Cpu.EAX], state[Cpu.EAX + 1] = self._vmcb, 0
        state[Cpu.EIP] = _STUB
        seen: list[int] = []

        def first_exit(vector: int) -> None:
            seen.append(vector)
            machine.clear_event()
            machine.stop()

        machine.on_interrupt = first_exit
        for _ in range(_TRIES):
            if not seen:
                machine.run()
        if state[machine.controls] != self._vmcb or not seen:
            raise MachineError(f"VMRUN did not enter the guest: vectors {seen}")
        machine.find_requests()
        machine.virtual_interrupt = False
        machine.kick_exits = True

    def change_controls(self, vmcs: Vmcs, *, checks_cr3: bool) -> None:
        """Takes over the execution controls of a VMCS whose guest is running. checks_cr3: loads of CR3 come here in any case."""
        at = self.machine.controls + 4
        controls, debug, exceptions, instructions = self._intercepts(vmcs)
        self.state[at], self.state[at + 1] = instructions & 0xFFFFFFFF, instructions >> 32
        controls |= checks_cr3 << 19
        self.state[at + 2], self.state[at + 3], self.state[at + 4] = controls, debug, exceptions

    def inject(self, vector: int) -> None:
        """Has the CPU deliver an external interrupt before the guest's next instruction; the guest's IF must be set."""
        self.machine.words[self._vector] = vector
        self.machine.virtual_interrupt = True

    def take_injected(self) -> int | None:
        """The vector of an interrupt whose delivery by the CPU just failed, and which it does not try again; None: there is none."""
        if not self.machine.virtual_interrupt:
            return None
        self.machine.virtual_interrupt = False
        self.machine.words[(self._vmcb + _EVENT_INJECTION) >> 2] = 0
        vector: int = self.machine.words[self._vector]
        return vector

    @property
    def fault_address(self) -> int:
        """The guest-physical address of a nested page fault, or the linear one of a page fault that exits."""
        address: int = self.machine.quads[(self._vmcb + _EXIT_INFO_2) >> 3]
        return address

    def take_interrupt_shadow(self) -> bool:
        """Whether the instruction that exited stood in the shadow of STI or of a load of SS, which the exit took off the CPU."""
        shadow = self.machine.words[self.interrupt_shadow] & 1
        if shadow:
            self.machine.words[self.interrupt_shadow] = 0
        return bool(shadow)

    def reason(self, code: int) -> Reason | None:
        """VT-x's basic exit reason for an exit code; None for instructions that are AMD's alone.

        RDMSR and WRMSR share one here: the caller looks at the instruction.
        """
        return Reason.RDMSR if code == 0x7C else _REASONS.get(code)

    def _put(self, at: int, form: str, *values: int) -> None:
        struct.pack_into("<" + form, self.machine.memory, at, *values)

    def _intercepts(self, vmcs: Vmcs) -> tuple[int, int, int, int]:
        """The VMCB's words: control registers, debug registers, exceptions, instructions."""
        primary, secondary = vmcs[Field.PRIMARY_CONTROLS], vmcs[Field.SECONDARY_CONTROLS]
        codes = list(_ALWAYS)
        for bit, more in _BY_PRIMARY.items():
            codes += more if primary & bit else ()
        if secondary & Secondary.DESCRIPTOR_TABLE_EXITING:
            codes += _DESCRIPTOR_TABLES
        if secondary & Secondary.WBINVD_EXITING:
            codes += (0x76, 0x89)
        reads = 1 << 8 | (1 << 3 if primary & Primary.CR3_STORE_EXITING else 0)  # CR8 is the local APIC's, which is not the CPU's
        writes = 0x111 | (1 << 3 if primary & Primary.CR3_LOAD_EXITING else 0)  # of CR0, CR4 and CR8: this CPU checks no reserved bits
        for number, mask in ((0, Field.CR0_MASK), (4, Field.CR4_MASK)):
            if vmcs[mask]:
                reads |= 1 << number
        # Breakpoints that this CPU is told of stop the engine: writes of debug registers and reads of DR7 come here in any case.
        debug = 0xFFFFFFFF if primary & Primary.MOV_DR_EXITING else 0xFF << 16 | 1 << 7 | 1 << 5
        return reads | writes << 16, debug, vmcs[Field.EXCEPTION_BITMAP], sum(1 << code - 0x60 for code in set(codes))
