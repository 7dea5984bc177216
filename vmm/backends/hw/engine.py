"""The engine: enters guest mode once, and handles each exit where the CPU reports it, with the guest's state live in the registers.

Exits that the VMCS asks for are architectural. What silicon does by itself and this CPU does not (delivery through the IDT, checks of reserved
bits) are engine assists. Touches no device and decides nothing about what an exit means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from bt.cache import TranslationCache
from bt.discover import LONGEST
from bt.sensitive import classify, row_of
from vmm.backends.hw.controls import new_vmcs, set_start
from vmm.backends.hw.counting import Counting
from vmm.backends.hw.instructions import NAMES, Instructions
from vmm.backends.hw.options import HwOptions
from vmm.backends.hw.shadow import ShadowPaging
from vmm.backends.hw.sites import Sites
from vmm.backends.hw.svm import EXIT, NESTED_FAULT, Svm
from vmm.backends.hw.vmcs import Field, Primary, Reason
from vmm.backends.live import code_address, instruction_at, int_size, load_tables
from vmm.backends.native.ports import PortFault
from vmm.backends.native.tables import NativeDescriptors
from vmm.backends.native.vcpu import NativeVcpu
from vmm.cpu_state import GENERAL, Cpu
from vmm.cpuid import CPU_32, CPU_64
from vmm.errors import InputError
from vmm.exits import RESUME, End, Exit, External, NonMaskable, PageFault, Raised, Resume, Sensitive, SoftwareInterrupt, Stop, Stopped, Wait
from vmm.faults import GuestFault, GuestPageFault
from vmm.lapic_page import GFN as LAPIC
from vmm.machine import EFER_HOST, KICK_EXIT, PHYSICAL_CR0, PHYSICAL_CR4, MachineError, NoCode
from vmm.memory import GuestMemory
from vmm.mmu.coherence import Coherence
from vmm.mmu.linear import LinearMemory
from vmm.mmu.nested import NestedMmu
from vmm.mmu.walk import PDPTE_RESERVED, GuestPaging
from vmm.x86.bits import Cr0, Cr4, Efer, Fault, Flag, Vector

if TYPE_CHECKING:
    from vmm.start import Start
    from vmm.vm import Vm

_CR3_LOAD, _PAGE_FAULT, _INTR, _NMI, _CPUID = EXIT + 0x13, EXIT + 0x4E, EXIT + 0x60, EXIT + 0x61, EXIT + 0x72
_IO, _EIP = int(Reason.IO), Cpu.EIP >> 1
_INTERRUPT, _WINDOW = ((int(reason), NAMES[reason]) for reason in (Reason.EXTERNAL_INTERRUPT, Reason.INTERRUPT_WINDOW))
_EXTERNAL = External()
_POLLS = 64  # reads of device memory in a row, before a page that may be lent is
_INTELS = ("sysenter", "sysexit")  # which 64-bit code has on Intel's CPUs only


class Hardware:
    """Runs one guest in the CPU's guest mode."""

    ring = 0

    def __init__(self, vm: Vm, options: HwOptions) -> None:
        self.vm, self.machine, self.state, self.stats, self.options = vm, vm.machine, vm.machine.state, vm.stats, options
        self.wide = vm.machine.wide
        self.memory = vm.memory = GuestMemory(vm.machine, vm.memory_size)
        self.paging = vm.paging = GuestPaging(self.memory)
        vm.linear = LinearMemory(self.memory, self.paging)
        self.vcpu = vm.vcpu = NativeVcpu(vm.machine)
        vm.cpu_model = CPU_32 if options.mmu == "shadow" else CPU_64  # shadow tables are walked in legacy mode
        if vm.icount is not None and vm.machine.shared:
            raise InputError("--icount: --backend hw counts instructions only on a machine of its own")
        self.nested = NestedMmu(vm.machine, self.memory)
        self.shadow = ShadowPaging(vm.machine, self.memory, self.paging, self.vcpu) if options.mmu != "nested" else None
        vm.mmu = self.shadow.mmu if self.shadow else self.nested
        vm.descriptors = NativeDescriptors()
        self.caches: Mapping[str, TranslationCache] = {}
        self.svm = Svm(vm.machine)
        self.vmcs = new_vmcs(options, self.nested.root)
        if vm.icount is not None:
            self.vmcs[Field.PRIMARY_CONTROLS] |= Primary.RDTSC_EXITING  # the CPU's own counts something else
        self.port_fault = PortFault(vm.machine, self.shadow.empty_root) if self.shadow else PortFault(vm.machine)
        self._waited = False  # whether the interrupt that is pending found the guest's IF clear
        self._ports = {number: f"port {number:#x}" for name, number in options.exit_on if name == "io"}
        self.wanted = {name for name, _ in options.exit_on}
        self.coherence = Coherence(vm.machine, self.memory, self.nested, self.paging, self.synchronize)
        self.counting = Counting(self, vm.icount) if vm.icount is not None else None
        self.sites = Sites(vm)
        self.instructions = Instructions(self)
        self._device_reads = 0
        if self.shadow is None:
            self._keep_code_coherent()

    def _keep_code_coherent(self) -> None:
        """Whatever the VMM writes for the guest may be code that the CPU has compiled. What a guest without NX writes the CPU notices."""
        self.memory.state[:] = b"\1" * self.memory.count
        self.memory.before_write = lambda gfn: False
        self.memory.after_write = lambda gfn: self.machine.drop_frame_code(self.memory.frames[gfn])

    def start(self, start: Start) -> None:
        """VM entry: the guest stands at its first instruction."""
        machine, vmcs, state = self.machine, self.vmcs, self.state
        set_start(vmcs, start, self.memory)
        vmcs[Field.HOST_CR0], vmcs[Field.HOST_CR3], vmcs[Field.HOST_CR4] = PHYSICAL_CR0, self.svm.host_cr3, PHYSICAL_CR4
        vmcs[Field.HOST_IA32_EFER] = EFER_HOST
        vmcs.check()
        self.svm.load(vmcs)
        self.svm.enter(vmcs)
        self.vcpu.efer = vmcs[Field.GUEST_IA32_EFER]  # without SVME, which VMRUN wants: its instructions are undefined from now on
        machine.offer(self.vm.cpu_model.offered)
        if self.shadow is not None and self.options.mmu == "auto" and (start.kind != "linux" or start.long_tables):
            self._use_nested()
        if self.shadow is not None:
            self.paging.load(self.vcpu.cr0, self.vcpu.cr3, self.vcpu.cr4, self.vcpu.efer)
            self.shadow.begin(vmcs)
            self.svm.change_controls(vmcs, checks_cr3=False)
        machine.on_interrupt, machine.on_invalid = self.on_interrupt, self.on_invalid
        machine.on_port, machine.on_memory, machine.on_fast_call = self.on_port, self._on_memory, self.on_fast_call
        if self.counting is not None:
            self.counting.take_over()
            if self.shadow is None:
                self.nested.fill_ram()
        if self.vm.lapic_page is not None:
            self.vm.lapic_page.unread = lambda: self.shadow is None and LAPIC not in self.nested.lent
        self.vm.monitor.inject = self._inject
        self.vm.board.interrupts.nmi = self.raise_nmi
        self.vm.board.a20.changed = lambda: self.nested.set_a20(self.vm.board.a20.enabled)
        values = (start.eax, start.ecx, start.edx, start.ebx, start.esp, start.ebp, start.esi, start.edi)
        for at, value in zip(GENERAL, values, strict=True):
            state[at], state[at + 1] = value, 0

    # -- what the monitor asks for -----------------------------------------------------------------------------------------------

    def retired(self) -> int:
        """Instructions retired so far, where they are counted."""
        return self.counting.counter.retired if self.counting is not None else 0

    def run(self) -> None:
        """Runs guest code until the engine is stopped: by the ticker, for a wait, or for good."""
        vm = self.vm
        if self.port_fault.pending:
            self._end_port_access()
        if vm.stopped is None and not self.vcpu.halted:
            self.machine.set_interrupt_pin(vm.board.interrupts.asserted)
            try:
                (self.counting.counter if self.counting is not None else self.machine).run()
            except MachineError as error:
                if self.shadow is not None and self._tasks_switched(self.shadow):
                    return
                if not isinstance(error, NoCode):
                    raise
                self.synchronize()
                if self._executes_rom():
                    return
                eip = code_address(vm, self.vcpu.eip)
                vm.stop(Stop(End.DIED, f"the guest executes at {eip:#x}, where there is no memory"))

    def _executes_rom(self) -> bool:
        """Whether the code that the CPU did not find is on a page of ROM that stood aside for the bus, or just behind its end."""
        eip = code_address(self.vm, self.vcpu.eip)
        return self.nested.executes_rom(self._code_frame(eip)) or self.nested.executes_rom(self._code_frame(eip + LONGEST - 1))

    def _code_frame(self, linear: int) -> int:
        try:
            return self.paging.walk(linear & self.paging.mask).gpa >> 12
        except GuestFault:
            return -1

    def settle(self) -> None:
        """The CPU stops between two instructions only. An interrupt that it was to deliver next is delivered here."""
        if self.port_fault.pending:
            self._end_port_access()
        self.machine.set_interrupt_pin(False)
        self.synchronize()
        if (injected := self.svm.take_injected()) is not None:
            self._deliver(injected)
        if self.svm.take_interrupt_shadow():
            self.vcpu.inhibited = True
        self.instructions.read_msrs()

    def restored(self) -> None:
        """EFER and MSRs of the vCPU are another guest's, its other registers not yet."""
        self.instructions.write_msrs()
        self.efer_changed()

    def synchronize(self) -> None:
        """The vCPU is the CPU: only the walk of its tables is to be told which they are."""
        if self.shadow is None:
            load_tables(self.vm)
        else:
            self.paging.forget()

    def interrupts_changed(self, pending: bool) -> None:
        """The interrupt controllers' output is the CPU's INTR pin: an exit comes where the guest takes interrupts."""
        self._waited = pending and not self.state[Cpu.EFLAGS] & Flag.IF
        self.machine.set_interrupt_pin(pending)

    def control_changed(self) -> None:
        """The guest's CR0 or CR4 changed. PAE's page-directory pointers are checked at each load of CR3, which this CPU does not do."""
        self.sites.forget()
        if self.shadow is not None:
            if self.vcpu.cr0 & Cr0.PE:
                self.shadow.control_changed()
                return
            self._leave_shadow(self.shadow)
        pae = bool(self.vcpu.cr0 & Cr0.PG and self.vcpu.cr4 & Cr4.PAE)
        self.svm.change_controls(self.vmcs, checks_cr3=pae and not self.vcpu.efer & Efer.LMA)

    def efer_changed(self) -> None:
        """With NX the guest's data are not executable, so its stores are fast under nested paging, which takes fewer exits; long mode needs it."""
        self.sites.forget()
        if not self.vcpu.efer & (Efer.NXE | Efer.LME):
            return
        if self.shadow is not None and self.options.mmu == "auto":
            self._leave_shadow(self.shadow)
        if self.shadow is None and self.vcpu.efer & Efer.NXE:
            self.coherence.start()

    def _leave_shadow(self, shadow: ShadowPaging) -> None:
        """Nested paging from now on."""
        shadow.end(self.vmcs, self.wanted)
        self._use_nested()
        if self.vcpu.efer & Efer.NXE:
            self.coherence.start()

    def _use_nested(self) -> None:
        vm = self.vm
        self.shadow, vm.mmu = None, self.nested
        self.port_fault = PortFault(vm.machine)
        if vm.lapic_page is not None:
            vm.lapic_page.mmu = self.nested
        self._keep_code_coherent()
        if self.counting is not None:
            self.nested.fill_ram()

    def _tasks_switched(self, shadow: ShadowPaging) -> bool:
        """Whether the guest's CR3 got into the CPU by a hardware task switch, of which this CPU gives no exit: the end under shadow paging."""
        switched = self.state[Cpu.CR3] != shadow.mmu.current.cr3
        if switched:
            self.vm.stop(Stop(End.UNSUPPORTED, "a hardware task switch under shadow paging: use --mmu nested"))
        return switched

    def tables_changed(self) -> None:
        """The CPU knows of its own."""
        if self.shadow is not None:
            self.shadow.synchronize()

    def page_invalidated(self, gva: int) -> None:
        """The CPU knows of its own."""
        if self.shadow is not None:
            self.shadow.synchronize()

    def step(self, done: Callable[[bool], None]) -> None:
        """Device memory is reached over the machine's bus: nothing is stepped."""
        raise AssertionError("no instruction is stepped in guest mode")

    def memory_access(self, write: bool) -> tuple[int, bool, bool]:
        """As `step`."""
        raise AssertionError("no instruction is stepped in guest mode")

    def _inject(self, vector: int) -> bool:
        """An external interrupt: by the CPU itself, unless another one is pending, which its INTR pin would report first."""
        if self.vm.board.interrupts.asserted or not self.machine.running or self.counting is not None:
            self.synchronize()
            return False
        self.svm.inject(vector)
        self.vcpu.halted = False
        return True

    # -- what the CPU reports ----------------------------------------------------------------------------------------------------

    def on_interrupt(self, vector: int) -> None:
        """Every exception, INT and exit of the CPU."""
        if vector == _CPUID and self.shadow is None and self.instructions.cpuid():
            return
        state, machine = self.state, self.machine
        if vector == _INTR and not self.port_fault.pending and not machine.virtual_interrupt:
            if self.shadow is None or not self._tasks_switched(self.shadow):
                self._external()
            return
        software = bool(state[machine.is_int])
        machine.clear_event()
        if vector >= EXIT and self.svm.take_interrupt_shadow():
            self.vcpu.inhibited = True
        if vector == KICK_EXIT:
            machine.take_kick()
        elif vector == NESTED_FAULT:
            self._nested_fault(state[machine.error_code])
        elif self.port_fault.pending:
            self._end_port_access()
        elif self.shadow is not None and self._tasks_switched(self.shadow):
            pass
        elif vector == _PAGE_FAULT and self.shadow is not None:
            self._shadow_fault(self.shadow, state[machine.error_code])
        elif vector == _CR3_LOAD and self.shadow is None and self._loads_cr3():
            pass
        elif vector == _NMI:
            self._non_maskable()
        else:
            self.synchronize()
            if (injected := self.svm.take_injected()) is not None:
                self._deliver(injected)
            elif vector >= EXIT:
                self._exited(vector - EXIT)
            elif software:
                self.stats.engine["int"] += 1
                behind = self.vcpu.eip
                self.vcpu.eip = behind - int_size(self.vm, vector, behind)
                self.exit(SoftwareInterrupt(vector, behind))
            else:
                self.stats.engine[f"exception {vector}"] += 1
                error = state[machine.error_code]
                self.exit(PageFault(self.vcpu.cr2, error) if vector == Vector.PF else Raised(vector, error))

    def _shadow_fault(self, shadow: ShadowPaging, error: int) -> None:
        gva = self.svm.fault_address & 0xFFFFFFFF
        try:
            shadow.fault(gva, error, self.vcpu.cpl == 3 and bool(error & Fault.U))
            self.stats.architectural["hidden page fault"] += 1
        except GuestPageFault as fault:
            if (injected := self.svm.take_injected()) is not None:
                self._deliver(injected)
                return
            self.stats.architectural["exception"] += 1
            self.exit(PageFault(fault.gva, fault.code))
        except Stopped as stopped:
            self.vm.stop(stopped.stop)

    def _deliver(self, vector: int) -> None:
        """An interrupt that the CPU began to deliver, with an exception on the way: from the beginning, and so to that exception."""
        vm = self.vm
        try:
            vm.events.interrupt(vector, self.vcpu.eip, software=False)
        except GuestPageFault as fault:
            self.exit(PageFault(fault.gva, fault.code))
        except GuestFault as fault:
            self.exit(Raised(fault.vector, fault.error))
        except Stopped as stopped:
            vm.stop(stopped.stop)

    def _loads_cr3(self) -> bool:
        """The common load of CR3 under PAE, which only has to be checked: 8 us here, 40 by way of the emulator. False: not that."""
        vcpu, state = self.vcpu, self.state
        if "cr3" in self.wanted or vcpu.cpl:
            return False
        self.synchronize()
        linear = state[Cpu.CS + Cpu.BASE] + state[Cpu.EIP] & 0xFFFFFFFF
        if linear & 0xFFF > 0xFFD:
            return False
        try:
            code = self.vm.linear.read(linear, 3)
        except GuestPageFault:
            return False
        if code[:2] != b"\x0f\x22" or code[2] & 0xF8 != 0xD8:
            return False
        value = state[2 * (code[2] & 7)]
        pointers = self.memory.read(value & 0xFFFFFFE0, 32)
        if any(pointers[at] & 1 and int.from_bytes(pointers[at : at + 8], "little") & PDPTE_RESERVED for at in (0, 8, 16, 24)):
            return False
        self.machine.set_cr3(value)
        state[Cpu.EIP] = state[Cpu.EIP] + 3 & 0xFFFFFFFF
        vcpu.inhibited = False
        self.stats.engine[NAMES[Reason.CONTROL_REGISTER]] += 1
        return True

    def _nested_fault(self, error: int) -> None:
        gpa = self.svm.fault_address
        self.report(Reason.EPT_VIOLATION, error & 2 or 1 << 2 * bool(error & Fault.I))
        self.vmcs[Field.GUEST_PHYSICAL_ADDRESS] = gpa
        self.nested.fault(gpa, bool(error & Fault.W))
        if gpa >> 12 in self.nested.on_bus:
            self._written_rom(gpa >> 12)

    def _written_rom(self, gfn: int) -> None:
        """ROM that is written by code on the same page cannot be both on the bus and executed: the instruction is passed over."""
        self.synchronize()
        if self._code_frame(code_address(self.vm, self.vcpu.eip)) == gfn and (instruction := instruction_at(self.vm)) is not None:
            self.nested.executes_rom(gfn)
            self.vcpu.eip = instruction.next

    def report(self, reason: Reason, qualification: int = 0, name: str | None = None) -> None:
        """Counts an exit, as `name` when it was asked for by that, and leaves its description in the VMCS."""
        self.stats.architectural[name or NAMES[reason]] += 1
        self.vmcs.exited(reason, qualification)

    def _external(self) -> None:
        """The CPU takes interrupts, and its INTR pin is high."""
        if self.vm.stopped is not None or not self.vm.board.interrupts.asserted:
            self.machine.set_interrupt_pin(False)  # while it is high the CPU exits again before it sees that it is to stop
            return
        reason, name = _WINDOW if self._waited else _INTERRUPT
        self.stats.architectural[name] += 1
        self.vmcs.exited(reason, 0)
        self._waited = False
        self.exit(_EXTERNAL)

    def raise_nmi(self) -> None:
        """A non-maskable interrupt, from whatever has one for the guest: at the next instruction boundary, or when the last one's handler is done."""
        self.vcpu.halted = False
        self.machine.raise_nmi()

    def _non_maskable(self) -> None:
        """Pin-based NMI exiting: the VMM takes it, and gives it to the guest."""
        self.machine.take_nmi()
        self.report(Reason.EXCEPTION, name="nmi")
        self.vmcs[Field.EXIT_INTERRUPTION_INFO] = 1 << 31 | 2 << 8 | Vector.NMI
        self.synchronize()
        self.exit(NonMaskable())

    def _exited(self, code: int) -> None:
        reason = self.svm.reason(code)
        if reason is Reason.EXCEPTION:
            self._exception(code - 0x40)
            return
        if reason is None:
            self._undefined()
            return
        instruction = self.sites.look() if self.shadow is None else instruction_at(self.vm)
        if instruction is None:
            return  # its page has gone: the CPU finds that out as it runs it again
        self.instructions.handle(code, reason, instruction)

    def _exception(self, vector: int) -> None:
        """An exception that the exception bitmap asks for; it goes on to the guest."""
        error = self.state[self.machine.error_code]
        address = self.svm.fault_address if vector == Vector.PF else 0
        self.report(Reason.EXCEPTION, address)
        self.vmcs[Field.EXIT_INTERRUPTION_INFO] = 1 << 31 | 3 << 8 | vector
        self.vmcs[Field.EXIT_INTERRUPTION_ERROR_CODE] = error
        self.exit(PageFault(address, error) if vector == Vector.PF else Raised(vector, error))

    def exit(self, exit_: Exit) -> None:
        """Lets the monitor handle an exit, and has the CPU stop when the guest is not to go on now."""
        vm = self.vm
        vm.stats.last.append((type(exit_).__name__, self.wide[_EIP]))
        if (outcome := vm.monitor.handle(exit_)) is RESUME:
            return
        match outcome:
            case Resume():
                pass
            case Wait():
                self.machine.stop()
            case Stop():
                vm.stop(outcome)

    def on_invalid(self) -> None:
        """An undefined instruction: this CPU reports it apart, and ICEBP with it."""
        self.machine.clear_event()
        if self.port_fault.pending:
            self._end_port_access()
            return
        self.synchronize()
        self._undefined()

    def _undefined(self) -> None:
        if self.vmcs[Field.EXCEPTION_BITMAP] >> Vector.UD & 1:
            self._exception(Vector.UD)
            return
        self.stats.engine["exception 6"] += 1
        instruction = instruction_at(self.vm)
        row = None if instruction is None else row_of(instruction.opcode, instruction.modrm)
        if instruction is not None and row is not None and (row.name == "icebp" or self.vcpu.code_64 and row.name in _INTELS):
            self.exit(Sensitive(instruction, row))
        else:
            self.exit(Raised(Vector.UD))

    def on_fast_call(self) -> int:
        """SYSENTER, and SYSCALL, which only 64-bit code has. Returns the instruction's size."""
        if self.vcpu.code_64 and not self.vm.monitor.observers and self.instructions.syscall():
            return 2
        self.synchronize()
        instruction = instruction_at(self.vm)
        if instruction is None:
            return 0
        row = classify(instruction.opcode, instruction.modrm)
        if row is not None and (row.name == "sysenter" and self.vcpu.cr0 & Cr0.PE or row.name == "syscall" and self.vcpu.code_64):
            self.stats.engine[row.name] += 1
            self.exit(Sensitive(instruction, row))
        else:
            self.stats.engine["exception 6"] += 1
            self.exit(Raised(Vector.UD))
        return len(instruction.raw)

    def on_port(self, port: int, size: int, value: int | None) -> int:
        if self.state[Cpu.HFLAGS] & 3 and (self.vcpu.cpl > self.vcpu.iopl or self.state[Cpu.EFLAGS] & Flag.VM):
            self.synchronize()
            if not self.port_fault.allowed(self.vm, port, size):
                return 0
        self.stats.architectural[self._ports.get(port, "port")] += 1
        self.vmcs.exited(_IO, size - 1 | (value is None) << 3 | port << 16)
        return self.vm.board.bus.port(port, size, value)

    def _end_port_access(self) -> None:
        exit_ = self.port_fault.end()
        if self.counting is not None:
            self.counting.counter.go_back(self.counting.retired_before_port)
        self.synchronize()
        self.stats.engine["exception 13"] += 1
        self.exit(exit_)

    def _on_memory(self, gpa: int, size: int, value: int | None) -> int:
        if self.port_fault.pending:
            return 0  # tables that map nothing
        self.stats.architectural["device memory"] += 1
        self._device_reads = self._device_reads + 1 if value is None else 0
        if self._device_reads > _POLLS and (hfn := self.memory.read_only.get(gpa >> 12)) is not None:
            self._device_reads = 0
            if self.vm.lapic_page is not None:
                self.vm.lapic_page.update()
            (self.shadow.mmu if self.shadow else self.nested).lend(gpa >> 12, hfn)
        return self.vm.board.bus.memory(gpa, size, value)
