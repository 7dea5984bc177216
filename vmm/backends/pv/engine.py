"""The engine: runs a paravirtual guest directly, its kernel at CPL 1 and its user code at CPL 3, and reports what it cannot do itself.

Hypercalls, exceptions and upcalls are edits of the CPU's state inside the engine's callback: nothing is stopped for them. Touches no device and
decides nothing about what an exit means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from bt.cache import TranslationCache
from bt.decode import memory_access
from vmm.backends.counter import Counter
from vmm.backends.pv.options import PvOptions
from vmm.backends.pv.stores import TableStores
from vmm.cpu_state import GENERAL, Cpu
from vmm.exits import RESUME, Exit, Hypercall, Outcome, PageFault, Privileged, Raised, Resume, SoftwareInterrupt, Stop, Stopped, Wait
from vmm.faults import GuestPageFault
from vmm.mmu.host import BASE
from vmm.x86.bits import Cr0, Cr4, Efer, Fault, Flag, Vector
from vmm.xen.descriptors import KERNEL_CODE, KERNEL_DATA
from vmm.xen.domain import HYPERCALL_VECTOR, XenDomain
from vmm.xen.traps import EVENT

if TYPE_CHECKING:
    from vmm.monitor import Monitor
    from vmm.start import Start
    from vmm.vm import Vm

_CR4 = Cr4.PAE | Cr4.OSFXSR | Cr4.OSXMMEXCPT | Cr4.TSD  # time stamps are virtual: RDTSC traps
_CR0 = Cr0.PG | Cr0.WP | Cr0.NE | Cr0.ET | Cr0.MP | Cr0.PE
_SAVED_STATE = 4 * 1400  # bytes of the CPU's state that an aborted IN or OUT may have changed
_LONGEST = 15
_HFLAGS, _EIP = Cpu.HFLAGS, Cpu.EIP


class Paravirtual:
    """Runs one paravirtual VM."""

    ring = 1

    def __init__(self, vm: Vm, options: PvOptions, domain: XenDomain) -> None:
        self.vm, self.machine, self.options, self.domain = vm, vm.machine, options, domain
        self.state, self.stats, self.mmu, self.shared, self.traps = vm.machine.state, vm.stats, domain.mmu, domain.shared, domain.traps
        self.caches: Mapping[str, TranslationCache] = {}
        self.monitor: Monitor
        self._own_names: Mapping[str, object] = {}
        self.after_step: Callable[[bool], None] | None = None
        self._guest_trap_flag = False
        self.port_fault: bytes | None = None  # the state before an IN or OUT that is being aborted
        self._old_exception, self._is_int = vm.machine.old_exception, vm.machine.is_int
        self.stores = TableStores(self)
        self.counter: Counter | None = None
        if (icount := vm.icount) is not None:
            self.counter = Counter(vm.machine, lambda: icount.left(vm.clock.next_deadline()))
        self._retired_before_port = 0  # the access that is being aborted
        (empty,) = vm.machine.allocate(1)
        vm.machine.clear(empty)
        self.empty_root = empty << 12

    def start(self, start: Start) -> None:
        """Takes over the CPU: state, hooks, control registers."""
        machine, state = self.machine, self.state
        machine.enter_long_mode(self.mmu.cr3)
        machine.set_cr0(_CR0)
        machine.set_cr4(_CR4)
        self.monitor = self.vm.monitor
        self._own_names = vars(self.monitor)  # "handle" is among them while somebody watches
        if start.domain is not None:  # a domain that is made of a snapshot has begun already
            self.domain.start(start.domain)
        self.domain.descriptors.enter()
        machine.on_interrupt, machine.on_invalid = self._on_interrupt, self._on_invalid
        machine.on_port, machine.on_cpuid = self._on_port, self._on_cpuid
        if self.counter is not None:
            machine.on_interrupt, machine.on_invalid = self._on_counted_interrupt, self._on_counted_invalid
            machine.on_port = self.counter.within(self._on_port)
        self.traps.load(Cpu.CS, KERNEL_CODE, 1)
        self.traps.load(Cpu.SS, KERNEL_DATA, 1)
        for register in (Cpu.ES, Cpu.DS, Cpu.FS, Cpu.GS):
            machine.set_segment(register, KERNEL_DATA, 0, 0xFFFFFFFF, 0x00CFB300)
        values = (start.eax, start.ecx, start.edx, start.ebx, start.esp, start.ebp, start.esi, start.edi)
        for at, value in zip(GENERAL, values, strict=True):
            state[at] = value
        machine.set_mode(1)
        machine.set_flags(Flag.IF)
        state[Cpu.EIP] = start.entry

    # -- what the monitor asks for -----------------------------------------------------------------------------------------------------

    def interrupts_changed(self, pending: bool) -> None:
        """A PC's interrupt controllers: a domain has none."""

    def control_changed(self) -> None:
        """An emulated instruction changed the guest's CR0 or CR4: under this ABI only hypercalls do."""

    def tables_changed(self) -> None:
        """An emulated instruction brought other guest tables into use: under this ABI only hypercalls do."""

    def page_invalidated(self, gva: int) -> None:
        """INVLPG was emulated: nothing is derived from guest tables."""

    def step(self, done: Callable[[bool], None]) -> None:
        """Lets the one instruction at EIP run; then done(completed) is called, before anything else happens."""
        self.after_step = done
        self._guest_trap_flag = self.vm.vcpu.trap_flag
        self.machine.set_trap_flag(True)

    def memory_access(self, write: bool) -> tuple[int, bool, bool]:
        """(bytes, reads, writes) of the memory operand of the instruction at EIP."""
        size, reads, writes = memory_access(self.code(_LONGEST))
        return size, reads, writes or write

    def code(self, size: int) -> bytes:
        """Up to `size` bytes at EIP: fewer where the next page is absent."""
        state = self.state
        linear = state[Cpu.CS + Cpu.BASE] + state[Cpu.EIP] & 0xFFFFFFFF
        try:
            return self.mmu.read(linear, size)
        except GuestPageFault:
            return self.mmu.read(linear, min(size, 0x1000 - (linear & 0xFFF)))

    def retired(self) -> int:
        """Instructions retired so far."""
        return self.counter.retired if self.counter is not None else 0

    def run(self) -> None:
        """Runs guest code until the engine is stopped: by the ticker, for a wait, or for good."""
        if self.port_fault is not None:  # the engine stopped before the aborted IN or OUT came back by its page fault
            self._end_port_access()
        self.domain.tell_time()
        self._let_events_in()
        if self.vm.stopped is None and not self.vm.vcpu.halted:
            (self.counter or self.machine).run()

    def settle(self) -> None:
        """The CPU stops between two instructions only, but maybe before the one that is to be stepped."""
        if self.port_fault is not None:
            self._end_port_access()
        while (done := self.after_step) is not None and self.vm.stopped is None:

            def end(completed: bool, done: Callable[[bool], None] = done) -> None:
                done(completed)
                self.machine.stop()

            self.after_step = end
            (self.counter or self.machine).run()
        self.synchronize()

    def restored(self) -> None:
        """EFER and MSRs of the vCPU are another guest's: nothing else is derived from them."""

    def synchronize(self) -> None:
        """Makes CR3, and the walk of the guest's tables, exact for reports."""
        mmu, paging, vcpu = self.mmu, self.vm.paging, self.vm.vcpu
        vcpu.cr3 = max(mmu.base, 0) << 12
        paging.load(vcpu.cr0, self.empty_root, Cr4.PAE, Efer.NXE, reload_pdptes=True)
        paging.pdptes = [max(directory, 0) << 3 | (directory >= 0) for directory in mmu.directories]

    # -- exits -------------------------------------------------------------------------------------------------------------------------

    def exit(self, exit_: Exit) -> None:
        """Lets the monitor handle an exit; whatever event is due then comes in behind it."""
        vm = self.vm
        vm.stats.last.append((type(exit_).__name__, self.state[Cpu.EIP]))
        self._take(vm.monitor.handle(exit_))

    def _take(self, outcome: Outcome) -> None:
        match outcome:
            case Resume():
                self._let_events_in()
            case Wait():
                self.vm.vcpu.halted = True
                self.machine.stop()
            case Stop():
                self.vm.stop(outcome)

    def _hypercall(self, number: int) -> None:
        """Most exits are hypercalls: unless somebody watches the monitor, they take its way without its door, a third of their time."""
        stats = self.stats
        stats.architectural["hypercall"] += 1
        if "handle" in self._own_names:
            self.exit(Hypercall(number))
            return
        stats.last.append(("Hypercall", self.state[_EIP]))
        try:
            outcome: Outcome = self.domain.hypercall(number)
        except Stopped as stopped:
            stats.last.append((stopped.stop.reason, self.state[_EIP]))
            outcome = stopped.stop
        if outcome is not RESUME:
            self._take(outcome)
        elif self.shared.cpu[0]:
            self._let_events_in()

    def _let_events_in(self) -> None:
        """On every way back into the guest: an upcall, if one is due and not masked."""
        if self.shared.deliverable and self.after_step is None and self.vm.stopped is None:
            self.stats.injected[EVENT] += 1
            outcome = self.vm.monitor.upcall()
            if isinstance(outcome, Stop):
                self.vm.stop(outcome)

    def _on_interrupt(self, vector: int) -> None:
        """Every exception and INT of the CPU."""
        state, machine = self.state, self.machine
        state[self._old_exception] = 0xFFFFFFFF
        if self.port_fault is not None:  # whatever came behind the access, it never happened
            self._end_port_access()
            return
        if self.after_step is not None:
            self._stepped(vector)
            return
        if state[self._is_int]:
            state[self._is_int] = 0
            if vector == HYPERCALL_VECTOR and state[_HFLAGS] & 3 == 1:
                self._hypercall(state[0])
            else:
                self._software_interrupt(vector)
        elif vector == Vector.PF:
            self._page_fault(state[Cpu.CR2], state[Cpu.CR2 + 1], state[machine.error_code])
        elif vector == Vector.GP:
            self.stats.architectural["exception 13"] += 1
            self.exit(Privileged(state[machine.error_code], self._guest_code))
        else:
            self.stats.architectural[f"exception {vector}"] += 1
            if vector == Vector.NM:
                machine.set_task_switched(False)  # the ABI clears CR0.TS before the guest's handler runs
            self.exit(Raised(vector, state[machine.error_code]))

    def _guest_code(self) -> bytes:
        try:
            return self.code(_LONGEST)
        except GuestPageFault:
            return b""

    def _software_interrupt(self, vector: int) -> None:
        state = self.state
        behind, size = state[Cpu.EIP], 2
        if vector in (Vector.BP, Vector.OF):  # INT3 and INTO have forms of one byte
            state[Cpu.EIP] = behind - 2 & 0xFFFFFFFF
            if self._guest_code()[:2] != bytes((0xCD, vector)):
                size = 1
        state[Cpu.EIP] = behind - size & 0xFFFFFFFF
        self.stats.architectural["system call" if state[Cpu.HFLAGS] & 3 == 3 else f"int {vector:#x}"] += 1
        self.exit(SoftwareInterrupt(vector, behind))

    def _page_fault(self, gva: int, high: int, error: int) -> None:
        stats = self.stats
        if high:
            stats.architectural["descriptor page"] += 1
            try:
                self.domain.descriptors.ldt_fault(high << 32 | gva) if high == BASE >> 32 else None
                return
            except GuestPageFault as fault:
                gva, error = fault.gva, fault.code
        elif error & (Fault.I | Fault.P) == Fault.I | Fault.P and self.mmu.executed(gva):
            stats.engine["first execution"] += 1  # only this CPU needs the bit that was in the way
            return
        elif error & (Fault.P | Fault.W | Fault.U) == Fault.P | Fault.W and self.mmu.table_written(gva):
            stats.architectural["page-table store"] += 1
            self.stores.begin(gva)
            return
        stats.architectural["exception 14"] += 1
        self.exit(PageFault(gva, error & ~Fault.I))

    def _stepped(self, vector: int) -> None:
        """The end of a single step: done, or a fault of the instruction's own."""
        done, self.after_step = self.after_step, None
        assert done is not None
        self.machine.set_trap_flag(self._guest_trap_flag)
        completed = vector == Vector.DB
        done(completed)
        if completed and self.vm.vcpu.trap_flag:  # not so when the store was refused: its page fault has been delivered
            self.exit(Raised(Vector.DB))
        elif completed:
            self._let_events_in()

    def _on_invalid(self) -> None:
        """An undefined instruction: this CPU reports it apart."""
        self.machine.clear_event()
        if self.port_fault is not None:
            self._end_port_access()
            return
        if self.after_step is not None:
            self._stepped(Vector.UD)
            return
        self.stats.architectural["exception 6"] += 1
        self.exit(Privileged(None, self._guest_code))

    def _on_cpuid(self) -> bool:
        if self.port_fault is not None:
            return True  # it will not have happened
        self.stats.engine["cpuid"] += 1
        values = self.domain.cpuid(self.state[Cpu.EAX], self.state[Cpu.ECX])
        for register, value in zip((Cpu.EAX, Cpu.EBX, Cpu.ECX, Cpu.EDX), values, strict=True):
            self.state[register], self.state[register + 1] = value, 0
        return True

    # -- ports --------------------------------------------------------------------------------------------------------------------------

    def _on_port(self, port: int, size: int, value: int | None) -> int:
        self.stats.architectural["port"] += 1
        if self.state[Cpu.HFLAGS] & 3 <= self.vm.vcpu.iopl and port in self.domain.granted_ports:
            return self.vm.board.bus.port(port, size, value)
        if self.port_fault is None:
            self._retired_before_port = self.retired()
            self.port_fault = bytes(self.state.cast("B")[:_SAVED_STATE])
            self.machine.set_cr3(self.empty_root)
            self.machine.stop()
        return 0

    def _end_port_access(self) -> None:
        """Erratum 12: IN and OUT cannot be aborted: the state before is put back, and the exception injected."""
        assert self.port_fault is not None
        image = self.port_fault
        self.port_fault = None
        if self.counter is not None:
            self.counter.go_back(self._retired_before_port)
        self.state.cast("B")[: len(image)] = image
        self.machine.set_cr3(self.mmu.cr3)
        if not self.machine.running:
            self.machine.set_flags(self.machine.flags())  # the state was saved in a run, where the flags are kept in another form
        self.stats.architectural["exception 13"] += 1
        self.exit(Raised(Vector.GP, 0))

    # -- the same with instructions counted -----------------------------------------------------------------------------------------------

    def _on_counted_interrupt(self, vector: int) -> None:
        """An instruction that has begun is counted only when it is done. One that could not be fetched has not begun; a single step is done."""
        counter, state, machine = self.counter, self.state, self.machine
        assert counter is not None
        software = state[machine.is_int]
        fetch = vector == Vector.PF and not software and state[machine.error_code] & Fault.I
        if self.port_fault is not None or fetch or vector == Vector.DB and not software:
            self._on_interrupt(vector)
        else:
            counter.uncount()
            calls, self.monitor.completed, self.domain.preempted = self.stats.architectural["hypercall"], False, False
            self._on_interrupt(vector)
            done = self.monitor.completed
            if self.stats.architectural["hypercall"] != calls:
                done = not self.domain.preempted
            if done:
                counter.count()
        counter.look_ahead()

    def _on_counted_invalid(self) -> None:
        counter = self.counter
        assert counter is not None
        if self.port_fault is None:
            counter.uncount()
        self.monitor.completed = False
        self._on_invalid()
        if self.monitor.completed:
            counter.count()

    def uncount(self) -> None:
        """The instruction that was stepped is not done after all."""
        if self.counter is not None:
            self.counter.uncount()
