"""The bare machine: runs the guest at its own privilege levels under its own tables, and lends it what the CPU lacks.

Nothing here is virtualization: a real CPU would do all of it by itself, so everything is counted as an engine assist. The CPU's intercepts
report what this CPU does not do, or does wrong. Touches no device and decides nothing about what an exit means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from bt.cache import TranslationCache
from bt.sensitive import row_of
from vmm.backends.counter import Counter
from vmm.backends.live import instruction_at, int_size, is_fetch, load_tables
from vmm.backends.native.ports import PortFault
from vmm.backends.native.tables import NativeDescriptors, NativeMmu
from vmm.backends.native.vcpu import NativeVcpu
from vmm.cpu_state import GENERAL, Cpu
from vmm.cpuid import CPU_32, SYSENTER_CS
from vmm.emulate import ROUTINES
from vmm.exits import End, Exit, External, PageFault, Raised, Resume, Sensitive, SoftwareInterrupt, Stop, Wait
from vmm.machine import VMM_EXIT, NoCode
from vmm.memory import GuestMemory
from vmm.mmu.linear import LinearMemory
from vmm.mmu.walk import GuestPaging
from vmm.x86.bits import Cr0, Cr4, Flag, Vector
from vmm.x86.descriptors import PRESENT, TSS_AVAILABLE, Segment, segment
from vmm.x86.svm import ExitCode

if TYPE_CHECKING:
    from vmm.start import Start
    from vmm.vm import Vm

_EXITS = frozenset(
    (ExitCode.INTR, ExitCode.RDTSC, ExitCode.RDPMC, ExitCode.CPUID, ExitCode.HLT, ExitCode.MSR, ExitCode.MONITOR, ExitCode.MWAIT, ExitCode.LTR)
)
_NAMES = {
    ExitCode.RDTSC: "rdtsc",
    ExitCode.RDPMC: "rdpmc",
    ExitCode.CPUID: "cpuid",
    ExitCode.HLT: "hlt",
    ExitCode.MSR: "msr",
    ExitCode.MONITOR: "monitor",
    ExitCode.MWAIT: "monitor",
    ExitCode.LTR: "ltr",
}
_ICEBP = 0xF1
_SINGLE_STEP = 1 << 14  # in DR6


class Native:
    """Runs one guest on a bare machine."""

    ring = 0

    def __init__(self, vm: Vm) -> None:
        self.vm, self.machine, self.state, self.stats = vm, vm.machine, vm.machine.state, vm.stats
        self.memory = vm.memory = GuestMemory(vm.machine, vm.memory_size, identical=True)
        self.paging = vm.paging = GuestPaging(self.memory)
        vm.linear = LinearMemory(self.memory, self.paging)
        vm.mmu, vm.descriptors = NativeMmu(), NativeDescriptors()
        self.vcpu = vm.vcpu = NativeVcpu(vm.machine)
        self.caches: Mapping[str, TranslationCache] = {}
        self.port_fault = PortFault(vm.machine)
        self.counter: Counter | None = None
        if (icount := vm.icount) is not None:
            self.counter = Counter(vm.machine, lambda: icount.left(vm.clock.next_deadline()))
        self._done = False  # the instruction that the present exit is about is done
        self._retired_before_port = 0  # the access that is being aborted
        self._keep_code_coherent()

    def _keep_code_coherent(self) -> None:
        """Whatever the VMM writes for the guest may be code, of which the CPU has compiled something."""
        self.memory.state[:] = b"\1" * self.memory.count
        self.memory.before_write = lambda gfn: False
        self.memory.after_write = self.machine.drop_frame_code

    def start(self, start: Start) -> None:
        """Takes over the CPU: hooks, control registers, and the state at the guest's first instruction."""
        machine, vcpu, state = self.machine, self.vcpu, self.state
        machine.offer(CPU_32.offered)
        machine.on_interrupt, machine.on_invalid = self._on_interrupt, self._on_invalid
        machine.on_port, machine.on_memory, machine.on_fast_call = self._on_port, self._on_memory, self._on_fast_call
        if self.counter is not None:
            machine.on_interrupt, machine.on_invalid = self._on_counted_interrupt, self._on_counted_invalid
            machine.on_port, machine.on_memory = self.counter.within(self._on_port), self.counter.within(self._on_memory)
            machine.on_fast_call = self.counter.within(self._on_counted_fast_call)
        vcpu.gdt_base, vcpu.gdt_limit = start.gdt_base, start.gdt_limit
        vcpu.idt_base, vcpu.idt_limit = 0, 0x3FF
        vcpu.tr = Segment(0, 0, 0, PRESENT | TSS_AVAILABLE << 8)
        for at, selector in ((Cpu.CS, start.cs), *((at, start.ds) for at in (Cpu.SS, Cpu.DS, Cpu.ES, Cpu.FS, Cpu.GS))):
            loaded = segment(selector, self.vm.linear.read_int(start.gdt_base + (selector & 0xFFF8), 8))
            machine.set_segment(at, selector, loaded.base, loaded.limit, loaded.attributes)
        values = (start.eax, start.ecx, start.edx, start.ebx, start.esp, start.ebp, start.esi, start.edi)
        for at, value in zip(GENERAL, values, strict=True):
            state[at] = value
        vcpu.cpl = 0
        vcpu.set_flags(start.eflags & ~Flag.IF)
        vcpu.eip = start.entry
        self.control_changed()

    # -- what the monitor asks for -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Runs guest code until the engine is stopped: by the ticker, for a wait, or for good."""
        vm = self.vm
        if self.port_fault.pending:
            self._end_port_access()
        if vm.stopped is None and not self.vcpu.halted:
            self.machine.set_interrupt_pin(vm.board.interrupts.asserted)
            try:
                (self.counter or self.machine).run()
            except NoCode:
                load_tables(self.vm)
                eip = self.vcpu.cs.base + self.vcpu.eip & 0xFFFFFFFF
                vm.stop(Stop(End.DIED, f"the guest executes at {eip:#x}, where there is no memory"))

    def retired(self) -> int:
        """Instructions retired so far."""
        return self.counter.retired if self.counter is not None else 0

    def settle(self) -> None:
        """The CPU stops between two instructions only."""
        if self.port_fault.pending:
            self._end_port_access()
        self.machine.set_interrupt_pin(False)
        load_tables(self.vm)

    def restored(self) -> None:
        """EFER and MSRs of the vCPU are another guest's. SYSEXIT is the CPU's own, and looks at one of them."""
        self.machine.write_msr(SYSENTER_CS, self.vcpu.msrs[SYSENTER_CS])

    def synchronize(self) -> None:
        """The vCPU is the CPU: only the walk of its tables is to be told which they are."""
        load_tables(self.vm)

    def interrupts_changed(self, pending: bool) -> None:
        """The interrupt controllers' output is the CPU's INTR pin."""
        self.machine.set_interrupt_pin(pending)

    def control_changed(self) -> None:
        """The guest's CR0 or CR4 changed. PAE's page-directory pointers are checked at each load of CR3, which this CPU does not do."""
        writes = (0, 3, 4) if self.vcpu.cr4 & Cr4.PAE else (0, 4)
        self.machine.set_intercepts(_EXITS, frozenset(writes))

    def tables_changed(self) -> None:
        """The CPU knows."""

    def page_invalidated(self, gva: int) -> None:
        """The CPU knows."""

    def step(self, done: Callable[[bool], None]) -> None:
        """Device memory is reached by its physical address: nothing is stepped."""
        raise AssertionError("no instruction is stepped on a bare machine")

    def memory_access(self, write: bool) -> tuple[int, bool, bool]:
        """As `step`."""
        raise AssertionError("no instruction is stepped on a bare machine")

    # -- what the CPU reports ----------------------------------------------------------------------------------------------------

    def _on_interrupt(self, vector: int) -> None:
        """Every exception, INT and intercept of the CPU."""
        state, machine, stats = self.state, self.machine, self.stats
        self._done = False
        software = bool(state[machine.is_int])
        machine.clear_event()
        if self.port_fault.pending:
            self._end_port_access()
            return
        load_tables(self.vm)
        if vector >= VMM_EXIT:
            self._intercepted(vector - VMM_EXIT)
        elif software:
            stats.engine["int"] += 1
            behind = state[Cpu.EIP]
            state[Cpu.EIP] = behind - int_size(self.vm, vector, behind) & 0xFFFFFFFF
            self._exit(SoftwareInterrupt(vector, behind))
        else:
            stats.engine[f"exception {vector}"] += 1
            error = state[machine.error_code]
            self._exit(PageFault(state[Cpu.CR2], error) if vector == Vector.PF else Raised(vector, error))

    def _intercepted(self, code: int) -> None:
        if code == ExitCode.INTR:
            if self.vm.stopped is not None or not self.vm.board.interrupts.asserted:
                self.machine.set_interrupt_pin(False)  # while it is high the CPU exits again before it sees that it is to stop
            else:
                self.stats.engine["interrupt"] += 1
                self._exit(External())
            return
        stepping = self.vcpu.trap_flag
        self._emulate(code)
        if self._done and stepping:
            self.vcpu.debug[6] |= _SINGLE_STEP
            self._exit(Raised(Vector.DB))
            self._done = True

    def _emulate(self, code: int) -> None:
        """The instruction at EIP, which the CPU does not do by itself."""
        self.stats.engine[_NAMES.get(code, "debug register" if code >= ExitCode.DR_READ else "control register")] += 1
        instruction = instruction_at(self.vm)
        row = None if instruction is None else row_of(instruction.opcode, instruction.modrm)
        if instruction is None:
            return  # its page has gone: the CPU finds that out as it runs it again
        if code == ExitCode.CPUID:
            self._answer(self.vm.cpuid(self.vcpu.register(0), self.vcpu.register(1)))
        elif code == ExitCode.RDTSC and instruction.opcode == 0x0F31:
            now = self.vm.clock.now()
            self._answer((now & 0xFFFFFFFF, self.vcpu.register(3), self.vcpu.register(1), now >> 32 & 0xFFFFFFFF))
        elif row is not None and row.name in ROUTINES:
            self._exit(Sensitive(instruction, row))
            if code == ExitCode.MSR:
                self.machine.write_msr(SYSENTER_CS, self.vcpu.msrs[SYSENTER_CS])  # SYSEXIT is the CPU's own
            return
        else:  # what CPUID does not offer
            self._exit(Raised(Vector.UD))
            return
        self.vcpu.inhibited = False
        self.vcpu.eip = instruction.next
        self._done = True

    def _answer(self, values: tuple[int, int, int, int]) -> None:
        """EAX, EBX, ECX, EDX."""
        for register, value in zip((0, 3, 1, 2), values, strict=True):
            self.vcpu.set_register(register, value)

    def _exit(self, exit_: Exit) -> None:
        """Lets the monitor handle an exit, and has the CPU stop when the guest is not to go on now."""
        vm = self.vm
        vm.stats.last.append((type(exit_).__name__, vm.vcpu.eip))
        outcome = vm.monitor.handle(exit_)
        self._done = vm.monitor.completed
        match outcome:
            case Resume():
                pass
            case Wait():
                self.machine.stop()
            case Stop():
                vm.stop(outcome)

    def _on_invalid(self) -> None:
        """An undefined instruction: this CPU reports it apart, and ICEBP with it."""
        self._done = False
        self.machine.clear_event()
        if self.port_fault.pending:
            self._end_port_access()
            return
        load_tables(self.vm)
        self.stats.engine["exception 6"] += 1
        instruction = instruction_at(self.vm)
        if instruction is not None and instruction.opcode == _ICEBP and (row := row_of(_ICEBP, 0)) is not None:
            self._exit(Sensitive(instruction, row))
        else:
            self._exit(Raised(Vector.UD))

    def _on_fast_call(self) -> int:
        """SYSENTER, and SYSCALL, which CPUID does not offer. Returns the instruction's size."""
        self._done = False
        load_tables(self.vm)
        instruction = instruction_at(self.vm)
        if instruction is None:
            return 0
        row = row_of(instruction.opcode, instruction.modrm)
        if row is not None and row.name == "sysenter" and self.vcpu.cr0 & Cr0.PE:
            self.stats.engine["sysenter"] += 1
            self._exit(Sensitive(instruction, row))
        else:
            self.stats.engine["exception 6"] += 1
            self._exit(Raised(Vector.UD))
        return len(instruction.raw)

    def _on_port(self, port: int, size: int, value: int | None) -> int:
        self.stats.engine["port"] += 1
        if self.vcpu.cpl == 3 or self.vcpu.cpl > self.vcpu.iopl:
            load_tables(self.vm)
            aborting = self.port_fault.pending
            if not self.port_fault.allowed(self.vm, port, size):
                if not aborting:
                    self._retired_before_port = self.retired()
                return 0
        return self.vm.board.bus.port(port, size, value)

    def _end_port_access(self) -> None:
        exit_ = self.port_fault.end()
        if self.counter is not None:
            self.counter.go_back(self._retired_before_port)
        load_tables(self.vm)
        self.stats.engine["exception 13"] += 1
        self._exit(exit_)

    def _on_memory(self, hpa: int, size: int, value: int | None) -> int:
        if self.port_fault.pending:
            return 0  # tables that map nothing
        self.stats.engine["device memory"] += 1
        return self.vm.board.bus.memory(hpa, size, value)

    # -- the same with instructions counted ------------------------------------------------------------------------------------------

    def _on_counted_interrupt(self, vector: int) -> None:
        """An instruction that has begun is counted only when it is done. What comes in front of one waits for what is due there."""
        counter, state, machine = self.counter, self.state, self.machine
        assert counter is not None
        software = state[machine.is_int]
        between = vector == VMM_EXIT + ExitCode.INTR
        if vector == Vector.PF and not software:
            between = is_fetch(self.vm, state[Cpu.CR2], state[machine.error_code])
        if self.port_fault.pending or vector == Vector.DB and not software:  # a single step is done
            self._on_interrupt(vector)
        elif not between:
            counter.uncount()
            self._on_interrupt(vector)
            if self._done:
                counter.count()
        elif counter.exhausted():
            machine.clear_event()
            machine.set_interrupt_pin(False)
            machine.stop()
        else:
            self._on_interrupt(vector)

    def _on_counted_invalid(self) -> None:
        assert self.counter is not None
        if not self.port_fault.pending:
            self.counter.uncount()
        self._on_invalid()
        if self._done:
            self.counter.count()

    def _on_counted_fast_call(self) -> int:
        assert self.counter is not None
        size = self._on_fast_call()
        if not self._done:
            self.counter.uncount()
        return size
