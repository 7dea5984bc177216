"""Direct execution of deprivileged code: the guest's kernel and user code run as they are, at CPL 1 or 3, under shadow tables.

Two back-ends are made of it. `trap` lets the CPU run until something traps: privileged instructions do, and are emulated; sensitive
ones that do not trap slip, and show or change the deprivileged machine. `step` looks at each instruction before the CPU gets it
and emulates every sensitive one. Touches no device and decides nothing about what an exit means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from bt.decode import Instruction, decode, memory_access
from bt.sensitive import Class, Row, Treatment, row_of
from vmm.backends.count import Count
from vmm.backends.port_fault import PortFault
from vmm.backends.shadowed import Shadowed
from vmm.cpu_state import Cpu
from vmm.exits import DeviceMemory, End, Exit, External, PageFault, PortAccess, Raised, Resume, Sensitive, SoftwareInterrupt, Stop, Stopped, Wait
from vmm.faults import GuestPageFault
from vmm.machine import FRAME
from vmm.mmu.tables import DeviceAccess, StepOver
from vmm.ports import port_allowed
from vmm.x86.bits import Cr0, Cr4, Fault, Flag, Vector
from vmm.x86.descriptors import Segment

if TYPE_CHECKING:
    from bt.cache import TranslationCache
    from vmm.start import Start
    from vmm.vm import Vm

_LONGEST = 15  # bytes of an instruction
_PHYSICAL_CR0 = Cr0.PG | Cr0.WP | Cr0.ET | Cr0.PE
_GUEST_CR0 = Cr0.MP | Cr0.EM | Cr0.TS | Cr0.NE | Cr0.AM
_PHYSICAL_CR4 = Cr4.PAE  # and no SMEP: the guest's kernel may execute user pages
_GUEST_CR4 = Cr4.TSD | Cr4.DE | Cr4.OSFXSR | Cr4.OSXMMEXCPT
_TRAPS = frozenset((Vector.TS, Vector.NP, Vector.SS, Vector.GP))  # what an instruction raises that is not allowed at this CPL
_DPL, _LOST = 0x6000, 0x306000  # of a segment's attributes; and what `deprivileged` makes of them
_IN_A_ROW = 1000  # instructions emulated without the CPU in between, after which the run loop has its turn
_KNOWN_CODE = 1 << 16  # instructions remembered by their bytes
_NO_DEBUG_TRAP = frozenset(("mov ss,r/m", "pop ss"))  # behind which it is held off
_LOADS_FLAGS = frozenset(("popf", "iret"))
_RDTSC = 0x0F31
_SHORT_INTERRUPTS = {Vector.BP: b"\xcc", Vector.OF: b"\xce"}  # INT3 and INTO, of one byte


class DirectExecution:
    """Runs one VM's code without translating it. stepping: each instruction is looked at before it runs."""

    def __init__(self, vm: Vm, parts: Shadowed, *, stepping: bool) -> None:
        self.vm, self.machine, self.parts, self.stepping = vm, vm.machine, parts, stepping
        self.state, self.ring, self.stats, self.mmu = vm.machine.state, parts.ring, vm.stats, parts.mmu
        self.caches: Mapping[str, TranslationCache] = {}
        self.words = memoryview(bytearray(FRAME)).cast("I")
        self.exact = True  # whether the vCPU is the guest's state, the engine being stopped
        self.settling = False  # the next time that it is, the engine is to stop
        self.in_user = False  # which mode the guest is in, for ring 3, where the CPU cannot tell
        self.after_step: Callable[[bool], None] | None = None
        self._debug_trap = False  # the guest's own TF was set when the instruction that is being stepped began
        self._forced = False  # the physical TF is not the guest's now
        self._shadowed = False  # no interrupt before the instruction that is being stepped is done
        self._loaded: tuple[Segment, Segment, int] | None = None  # CS, SS and CPL that the CPU has been given, while stepping
        self._rows: tuple[dict[bytes, Row | None], dict[bytes, Row | None]] = {}, {}  # bytes at EIP to row, in 16- and 32-bit code
        self.count = Count()
        self._port = PortFault(vm.machine, parts.empty_root)

    def start(self, start: Start) -> None:
        """Takes over the machine: hooks, control registers, and the CPU's state at the guest's first instruction."""
        machine = self.machine
        self.parts.enter_start(self.vm, start)
        machine.on_interrupt = self._on_interrupt
        machine.on_invalid = self._on_invalid
        machine.on_port = self._on_port
        machine.on_cpuid = self._on_cpuid
        machine.on_fast_call = self._on_fast_call
        self.control_changed()

    # -- what the monitor asks for -----------------------------------------------------------------------------------------------

    def tables_changed(self) -> None:
        """Other guest tables are in use."""
        self.mmu.unchecked_directories = False
        self.parts.descriptors.verify()

    def page_invalidated(self, gva: int) -> None:
        """INVLPG: nothing here is derived from a page but its shadow."""

    def control_changed(self) -> None:
        """The guest's CR0 or CR4 changed: the physical ones follow where they matter to the CPU."""
        vcpu = self.vm.vcpu
        if not self.stepping and not vcpu.cr0 & Cr0.PE:
            raise Stopped(Stop(End.UNSUPPORTED, "the guest goes to real mode, whose segments the CPU would load as protected mode's"))
        self.machine.set_cr0(_PHYSICAL_CR0 | vcpu.cr0 & _GUEST_CR0)
        self.machine.set_cr4(_PHYSICAL_CR4 | vcpu.cr4 & _GUEST_CR4)

    def interrupts_changed(self, pending: bool) -> None:
        """The interrupt controllers' output changed."""
        if pending and not self.stepping and self.machine.running and self.vm.vcpu.interrupts_on:
            self.machine.stop()

    def step(self, done: Callable[[bool], None]) -> None:
        """Lets the one instruction at the vCPU's EIP run; then done(completed) is called, before anything else happens."""
        self.after_step = done

    def memory_access(self, write: bool) -> tuple[int, bool, bool]:
        """(bytes, reads, writes) of the memory operand of the instruction at the vCPU's EIP."""
        size, reads, writes = memory_access(self._code(), self.vm.vcpu.cs.wide)
        return size, reads, writes or write

    # -- running -------------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Runs guest code until the engine is stopped: by the ticker, for a wait, or for good."""
        if self._port.pending:  # the engine stopped before the aborted IN or OUT came back by its page fault
            self._end_port_access()
        else:
            if not self.exact:
                self._stand()
            self.exact = False
            self.count.due_in(self.vm, 1)
            self._resume()
        if self.vm.stopped is None and not self.exact:
            self.machine.run()

    def settle(self) -> None:
        """Ends what is under way: an access that is being aborted, or a step."""
        self.settling = True
        if self._port.pending:
            self._end_port_access()
        elif not self.exact and self.after_step is None:
            self._stand()
        while not self.exact and self.vm.stopped is None:
            self.machine.run()
        self.settling = False

    def _stand(self) -> None:
        """The engine was stopped in front of an instruction: the vCPU is exact there."""
        self._capture()
        self.vm.vcpu.inhibited = bool(self.state[Cpu.HFLAGS] & 8)
        self.exact = True

    def retired(self) -> int:
        """Instructions retired so far: counted under `step` only."""
        return self.count.retired

    def restored(self) -> None:
        """EFER and MSRs of the vCPU are another guest's: nothing else is derived from them."""

    def synchronize(self) -> None:
        """Makes the vCPU exact, for reports on a stopped VM."""
        if not self.exact:
            self._capture()

    def _resume(self) -> None:
        """Enters the guest at the vCPU's state, delivering what may be delivered and emulating what may not run first."""
        if self.settling and self.after_step is None:
            self.exact = True
            self.machine.stop()
            return
        vcpu, interrupts, counting = self.vm.vcpu, self.vm.board.interrupts, self.vm.icount is not None
        for _ in range(_IN_A_ROW):
            if interrupts.asserted and vcpu.interrupts_on and self.after_step is None:
                if vcpu.inhibited:
                    self.after_step = _nothing
                else:
                    if not self._handled(External()):
                        return
                    continue
            if counting and self.count.is_due and self.after_step is None:
                break
            self._shadowed, vcpu.inhibited = vcpu.inhibited, False
            try:
                exit_ = self._look() if self.stepping or self.after_step is not None else None
                if exit_ is None or not self._emulates(exit_.row):
                    if exit_ is not None and self.stepping and vcpu.cpl > vcpu.iopl and not self._port_allowed(exit_.instruction):
                        continue
                    if counting:
                        self.count.enters(self.vm, self._code())
                    self._enter(exit_)
                    return
            except GuestPageFault as fault:
                self._abandon_step()
                if not self._handled(PageFault(fault.gva, fault.code)):
                    return
                continue
            if not self._emulated(exit_):
                return
        self.exact = True
        self.machine.stop()

    def _emulates(self, row: Row) -> bool:
        """Whether an instruction that was met before it ran is emulated. Under `trap` only what would show that it is being stepped."""
        if not self.stepping:
            return row.name == "pushf"
        return row.treatment is not Treatment.NATIVE or row.name == "rdtsc"

    def _emulated(self, exit_: Sensitive) -> bool:
        """Emulates an instruction, with the debug trap that may follow it. False when the guest is not to go on now."""
        vcpu = self.vm.vcpu
        done, self.after_step = self.after_step, None
        trap_flag = vcpu.trap_flag and exit_.row.name not in _NO_DEBUG_TRAP
        self.stats.architectural["single step"] += 1
        delivered = vcpu.delivered
        going_on = self._handled(exit_)
        self.count.retired += self.vm.monitor.completed
        if done is not None:
            done(self.vm.monitor.completed)
        if going_on and trap_flag and vcpu.delivered == delivered:
            going_on = self._handled(Raised(Vector.DB))
        return going_on

    def _enter(self, exit_: Sensitive | None) -> None:
        """Puts the vCPU's EIP, CPL, CS and SS into the CPU, at the privilege that stands for them."""
        state, machine, vcpu = self.state, self.machine, self.vm.vcpu
        loaded = (vcpu.cs, vcpu.ss, vcpu.cpl)
        if loaded != self._loaded or not self.stepping:
            level = max(vcpu.cpl, self.ring)
            for at, held in ((Cpu.CS, vcpu.cs), (Cpu.SS, vcpu.ss)):
                machine.set_segment(at, held.selector & ~3 | level, held.base, held.limit, held.attributes & ~_DPL | level << 13)
            machine.set_mode(level)
            self._loaded = loaded
            if self.ring == 3 and self.in_user != (vcpu.cpl == 3):
                self.in_user = vcpu.cpl == 3
                self.mmu.switch(self.in_user)
                self.parts.descriptors.enter(self.in_user)
        state[Cpu.EIP] = vcpu.eip
        by_itself = self.stepping or self.after_step is not None
        self._debug_trap = by_itself and vcpu.trap_flag
        self._forced = by_itself and not (exit_ is not None and exit_.row.name in _LOADS_FLAGS)
        machine.set_trap_flag(vcpu.trap_flag or by_itself)

    def _capture(self) -> None:
        """Out of direct execution: the vCPU's EIP is the CPU's, and under `trap` CPL, CS and SS are what the guest made of them."""
        state, vcpu = self.state, self.vm.vcpu
        vcpu.eip = state[Cpu.EIP]
        if self.stepping:
            return
        if not self._forced:
            vcpu.trap_flag = bool(state[Cpu.EFLAGS] & Flag.TF)
        cpl = state[Cpu.HFLAGS] & 3
        vcpu.cpl = (3 if self.in_user else 0) if self.ring == 3 else 0 if cpl <= self.ring else cpl
        rpl, level = (3, _LOST) if vcpu.cpl == 0 else (0, 0)  # bits that deprivileging has put there
        vcpu.cs, vcpu.ss = (
            Segment(state[at] & ~rpl, state[at + Cpu.BASE], state[at + Cpu.LIMIT], state[at + Cpu.ATTRIBUTES] & ~level) for at in (Cpu.CS, Cpu.SS)
        )

    # -- looking at code ---------------------------------------------------------------------------------------------------------

    def _code(self) -> bytes:
        """The bytes at the vCPU's EIP, out of the very frames that the CPU fetches from. Raises GuestPageFault for the first of them."""
        vcpu = self.vm.vcpu
        linear, user = vcpu.cs.base + vcpu.eip & 0xFFFFFFFF, vcpu.cpl == 3
        hfn = self.mmu.code_frame(linear, user)
        if hfn is None:
            return b""
        at = hfn << 12 | linear & 0xFFF
        room = 0x1000 - (linear & 0xFFF)
        if room >= _LONGEST:
            return self.machine.memory[at : at + _LONGEST].tobytes()
        code = self.machine.memory[at : at + room].tobytes()
        try:
            hfn = self.mmu.code_frame(linear + room & 0xFFFFFFFF, user)
        except GuestPageFault:
            hfn = None
        return code if hfn is None else code + self.machine.memory[hfn << 12 : (hfn << 12) + _LONGEST - room].tobytes()

    def _row(self, code: bytes) -> Row | None:
        """The row of the instruction that stands first in `code`, if it is sensitive."""
        rows = self._rows[self.vm.vcpu.cs.wide]
        try:
            return rows[code]
        except KeyError:
            pass
        row = None
        for instruction in decode(code, 0, self.vm.vcpu.cs.wide):
            row = row_of(instruction.opcode, instruction.modrm)
            if row is not None and (row.klass is Class.FLOW or row.treatment is Treatment.NATIVE and not self._looked_at(row)):
                row = None
            break
        if len(rows) >= _KNOWN_CODE:
            rows.clear()
        rows[code] = row
        return row

    def _looked_at(self, row: Row) -> bool:
        """Whether what the CPU does by itself is looked at all the same: a port access may not be allowed; RDTSC shows counted time."""
        return row.klass is Class.PRIVILEGED or row.name == "rdtsc" and self.vm.icount is not None

    def _look(self) -> Sensitive | None:
        """The instruction at the vCPU's EIP if it is sensitive. Raises GuestPageFault."""
        code = self._code()
        row = self._row(code)
        return None if row is None else Sensitive(self._instruction(code), row)

    def _instruction(self, code: bytes) -> Instruction:
        vcpu = self.vm.vcpu
        return next(decode(code, vcpu.eip, vcpu.cs.wide))

    # -- exits -------------------------------------------------------------------------------------------------------------------

    def _handled(self, exit_: Exit) -> bool:
        """Lets the monitor handle an exit; False when the guest is not to go on now."""
        vm = self.vm
        vm.stats.last.append((type(exit_).__name__, vm.vcpu.eip))
        outcome = vm.monitor.handle(exit_)
        match outcome:
            case Resume():
                return True
            case Wait():
                self.exact = True
                self.machine.stop()
            case Stop():
                self.exact = True
                vm.stop(outcome)
        return False

    def _exit(self, exit_: Exit) -> None:
        """An exit with exact state: handles it and goes on."""
        self._abandon_step()
        if self._handled(exit_):
            self._resume()

    def _abandon_step(self) -> None:
        """The instruction that was to be stepped did not complete."""
        if self.after_step is not None:
            done, self.after_step = self.after_step, None
            done(False)

    def _user(self) -> bool:
        """Whether the guest is in virtual user mode."""
        return self.in_user if self.ring == 3 else self.state[Cpu.HFLAGS] & 3 == 3

    def _on_interrupt(self, vector: int) -> None:
        """Every exception and INT of the CPU."""
        state, machine = self.state, self.machine
        state[machine.old_exception] = 0xFFFFFFFF
        software = bool(state[machine.is_int])
        state[machine.is_int] = 0
        if self._port.pending:
            self._end_port_access()
        elif vector == Vector.PF and not software:
            self._page_fault(state[Cpu.CR2], state[machine.error_code])
        elif software:
            self._software_interrupt(vector)
        elif vector == Vector.DB and (self.stepping or self.after_step is not None):
            self._stepped()
        else:
            self._exception(vector, state[machine.error_code])

    def _stepped(self) -> None:
        """The instruction (one iteration of a repeated one) that was to run by itself has run."""
        vm, vcpu, count = self.vm, self.vm.vcpu, self.count
        self.stats.architectural["single step"] += 1
        if self.after_step is None and not self._debug_trap and not vm.board.interrupts.asserted:  # most are these: 3 us each
            if vm.icount is not None:
                self._count(interruptible=True)
            vcpu.eip = self.state[Cpu.EIP]
            try:
                code = self._code()
                row = self._row(code)
                if row is None or not vcpu.cpl and not self._emulates(row):
                    if vm.icount is None:
                        return
                    if not count.is_due:
                        count.enters(vm, code)
                        return
            except GuestPageFault:
                pass
            self._resume()
            return
        done, self.after_step = self.after_step, None
        if done is not None:
            done(True)
            count.due_in(vm)
        if vm.icount is not None:
            self._count(interruptible=not self._debug_trap)
        self._capture()
        if self._debug_trap:
            self._debug_trap = False
            if not self._handled(Raised(Vector.DB)):
                return
        if vm.stopped is None:
            self._resume()

    def _count(self, *, interruptible: bool) -> None:
        """The shadow of STI and of loads of SS lasts as long as the instruction behind it, whose iterations run one by one."""
        self._shadowed = self.vm.vcpu.inhibited = not self.count.ran(self.vm, interruptible=interruptible) and self._shadowed

    def _page_fault(self, gva: int, error: int) -> None:
        vm, user, write, fetch = self.vm, self._user(), bool(error & Fault.W), bool(error & Fault.I)
        architectural = self.stats.architectural
        try:
            outcome = self.mmu.fault(gva, write, user, fetch)
        except GuestPageFault as fault:
            architectural["exception 14"] += 1
            self._capture()
            self._exit(PageFault(fault.gva, fault.code))
            return
        match outcome:
            case None:
                architectural["hidden page fault"] += 1
                if self.mmu.unchecked_directories:
                    self.tables_changed()
            case StepOver(gfn):
                architectural["directory write"] += 1
                self._capture()
                self._step_over_directory_write(gfn)
            case DeviceAccess(gpa):
                architectural["device memory"] += 1
                self._capture()
                if fetch:
                    self.exact = True
                    vm.stop(Stop(End.DIED, f"the guest executes at {gva:#x}, where there is no memory (gpa {gpa:#x})"))
                else:
                    self._exit(DeviceMemory(gpa, gva, write))

    def _step_over_directory_write(self, gfn: int) -> None:
        """Lets the one instruction at hand write a guest directory, and looks at what it changed, behind what a step under way will do."""
        before = self.after_step

        def done(completed: bool) -> None:
            if before is not None:
                before(completed)
            self.mmu.retrace(gfn)
            self.tables_changed()

        self.after_step = done
        self._resume()

    def _software_interrupt(self, vector: int) -> None:
        """INT n traps at every privilege: through a gate of the VMM's."""
        self._capture()
        vcpu = self.vm.vcpu
        behind = vcpu.eip
        vcpu.eip = behind - 1 & 0xFFFFFFFF
        if self._code()[:1] != _SHORT_INTERRUPTS.get(vector):
            vcpu.eip = behind - 2 & 0xFFFFFFFF
        self.stats.architectural["system call" if vcpu.cpl == 3 else "int"] += 1
        self._exit(SoftwareInterrupt(vector, behind))

    def _exception(self, vector: int, error: int) -> None:
        """What an instruction raises: because its shadow descriptor was absent, because it is privileged, or by the guest's own fault."""
        vcpu, architectural = self.vm.vcpu, self.stats.architectural
        try:
            if vector in _TRAPS and error and self.parts.descriptors.fill(error, self._user()):
                architectural["shadow descriptor"] += 1
                return
            self._capture()
            exit_ = self._look() if vector in _TRAPS else None
        except GuestPageFault as fault:
            self._capture()
            self._exit(PageFault(fault.gva, fault.code))
            return
        if exit_ is not None:
            architectural["privileged instruction" if vcpu.cpl == 0 else f"exception {vector}"] += 1
            self._exit(exit_)
        elif vector == Vector.GP and vcpu.cr4 & Cr4.TSD and vcpu.cpl == 0 and self._time_stamp():
            pass
        else:
            architectural[f"exception {vector}"] += 1
            self._exit(Raised(vector, error))

    def _time_stamp(self) -> bool:
        """RDTSC under CR4.TSD traps at this CPU's privilege level but not at the guest's: it runs with TSD clear. False: something else."""
        instruction = next(decode(self._code(), 0, self.vm.vcpu.cs.wide), None)
        if instruction is None or instruction.opcode != _RDTSC:
            return False
        before, state = self.after_step, self.state

        def done(completed: bool) -> None:
            state[Cpu.CR4] |= Cr4.TSD
            if before is not None:
                before(completed)

        state[Cpu.CR4] &= ~Cr4.TSD
        self.after_step = done
        self._resume()
        return True

    def _on_invalid(self) -> None:
        """An undefined instruction: this CPU reports it apart, and takes some for undefined that are not."""
        self.machine.clear_event()
        self.stats.architectural["exception 6"] += 1
        self._capture()
        try:
            exit_ = self._look()
        except GuestPageFault:
            exit_ = None
        self._exit(exit_ if exit_ is not None and exit_.row.name in ("icebp", "rdpmc") else Raised(Vector.UD))

    def _on_fast_call(self) -> int:
        """SYSENTER or SYSCALL, which this CPU leaves to the VMM."""
        self._capture()
        self.stats.architectural["system call"] += 1
        exit_ = self._look()
        assert exit_ is not None
        self._exit(exit_)
        return len(exit_.instruction.raw)

    def _on_cpuid(self) -> bool:
        state = self.state
        values = self.vm.cpuid(state[Cpu.EAX], state[Cpu.ECX])
        for register, value in zip((Cpu.EAX, Cpu.EBX, Cpu.ECX, Cpu.EDX), values, strict=True):
            state[register] = value
            state[register + 1] = 0
        self.stats.engine["cpuid"] += 1
        return True

    def _on_port(self, port: int, size: int, value: int | None) -> int:
        vm = self.vm
        self.stats.architectural["port"] += 1
        if not self.stepping and self._user():
            vm.vcpu.cpl = 3
            if not self._port.allowed(vm, port, size):
                return 0
        result = vm.board.bus.port(port, size, value)
        self.count.due_in(vm)
        return result

    def _port_allowed(self, instruction: Instruction) -> bool:
        """Whether IN, OUT, INS or OUTS, met before it runs, may reach its port; False: the guest has its exception."""
        opcode = instruction.opcode
        port = instruction.raw[-1] if opcode & 0xF8 == 0xE0 else self.vm.vcpu.register(2) & 0xFFFF
        size = self.vm.operands.size(instruction) if opcode & 1 else 1
        if port_allowed(self.vm, port, size):
            return True
        self._handled(Raised(Vector.GP, 0))
        return False

    def _end_port_access(self) -> None:
        port, size = self._port.end(self.mmu.current.cr3)
        self._capture()
        self.stats.architectural["exception 13"] += 1
        self._exit(PortAccess(port, size))


def _nothing(completed: bool) -> None:
    """What follows a step that only had to be one."""
