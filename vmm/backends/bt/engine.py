"""The engine: enters the guest, comes back with exact state, and gets to where interrupts may be delivered.

The guest's kernel runs at CPL `ring`, translated. With ring 1 one shadow table serves both modes; with ring 3 (the lecture's scheme)
each mode has its own, and its own shadow descriptors. User code runs directly, or translated in a window of its own
(docs/adr/0006). Touches no device and decides nothing about what an exit means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bt.block import ADJUSTED, CLEAN, RETURNING, SHADOWED, SPILLED, Block, Mode, Translation
from bt.cache import CacheFull
from bt.decode import Instruction, decode, memory_access
from bt.discover import LONGEST
from bt.window import LOADABLE, SAME_CODE, Word
from vmm.backends.bt.budget import Budget
from vmm.backends.bt.direct_exits import DirectExits
from vmm.backends.bt.guest_code import GuestCode
from vmm.backends.bt.options import BtOptions
from vmm.backends.bt.translated_exits import TranslatedExits
from vmm.backends.shadowed import Shadowed
from vmm.cpu_state import Cpu
from vmm.cpuid import DIRECT_CPU_32
from vmm.exits import Exit, External, PageFault, Raised, Resume, Stop, Wait
from vmm.faults import GuestFault, GuestPageFault
from vmm.icount import MOST
from vmm.memory import CODE, DESCRIPTORS
from vmm.x86.bits import Cr0, Cr4, Fault, Flag, Vector
from vmm.x86.descriptors import WIDE, Segment

if TYPE_CHECKING:
    from vmm.start import Start
    from vmm.vm import Vm

_CACHE_SELECTOR = 0xFFF0
_FLAT_CODE = 0x00CF9B00
_SELECTOR_VECTORS = frozenset((Vector.TS, Vector.NP, Vector.SS, Vector.GP))
_SHOWN_TO_USERS = ((Word.FLAGS, Word.FLAGS + 4), (Word.CR0, Word.CR0 + 4), (Word.CS, Word.IDT_BASE + 4))  # what users' stubs read
_PHYSICAL_CR0 = Cr0.PG | Cr0.WP | Cr0.ET | Cr0.PE
_GUEST_CR0 = Cr0.MP | Cr0.EM | Cr0.TS | Cr0.NE | Cr0.AM
_PHYSICAL_CR4 = 1 << 20 | Cr4.PAE  # SMEP
_GUEST_CR4 = Cr4.TSD | Cr4.DE | Cr4.OSFXSR | Cr4.OSXMMEXCPT



class BinaryTranslation:
    """Runs one VM by binary translation."""

    def __init__(self, vm: Vm, options: BtOptions, parts: Shadowed) -> None:
        self.vm, self.machine, self.options, self.parts = vm, vm.machine, options, parts
        self.state, self.ring, self.stats, self.mmu = vm.machine.state, options.ring, vm.stats, parts.mmu
        self.code, self.user_code = (GuestCode(vm, options, parts, user=user) for user in (False, True))
        self.window, self.cache, self.words = self.code.window, self.code.cache, self.code.words
        if not options.translate_user and vm.icount is None:
            vm.cpu_model = DIRECT_CPU_32
        self.caches = {"kernel": self.cache, "user": self.user_code.cache}
        self.in_kernel = True  # which mode the guest is in, for ring 3, where the CPU cannot tell
        self.user_translated = False  # how user code was last entered
        self.exact = True  # whether the vCPU's EIP, CPL, CS and SS are the guest's, the engine being stopped
        self.settling = False  # the next time that it is, the engine is to stop
        self.rolling = False  # single-stepping out of a stub, to deliver an interrupt behind it
        self.after_step: Callable[[bool], None] | None = None
        self.trap_due = False  # the guest's TF was set when it was entered: a debug exception behind the one instruction
        self.shadowed = False  # no interrupt before the instruction that was entered is done, all its iterations
        self.iterating = False  # translated code single-steps by the CPU: one iteration of a string instruction
        self._stepping_directly = False  # the physical TF is not the guest's, while user code is stepped
        self._loaded: tuple[GuestCode, Segment, Mode] | None = None  # whose translations the CPU is set up for, with which SS, in which mode
        self._physical_control = (0, 0)
        self.budget = Budget(vm.machine, vm.clock, vm.icount) if vm.icount is not None else None  # where instructions are counted
        self.kernel, self.user, self.direct = TranslatedExits(self, self.code), TranslatedExits(self, self.user_code), DirectExits(self)

    def start(self, start: Start) -> None:
        """Takes over the CPU: state, hooks, control registers, window."""
        machine = self.machine
        self.parts.enter_start(self.vm, start)
        self.parts.descriptors.use_memory(*(self.window.data[table : table + 0x10000] for table in (LOADABLE, SAME_CODE)))
        self.mmu.made_writable = self._made_writable
        self.code.place()
        machine.on_interrupt = self._on_interrupt
        machine.on_invalid = self._on_invalid
        machine.on_port = self._on_port
        machine.on_cpuid = self._on_cpuid
        machine.on_fast_call = self.direct.fast_call
        self.control_changed()

    # -- what the monitor and the MMU ask for ------------------------------------------------------------------------------------

    def tables_changed(self) -> None:
        """Other guest tables are in use. What users' translations are worth under them is looked at when user code is entered."""
        if self.mmu.unchecked_directories:
            self.mmu.unchecked_directories = False
            for code in (self.code, self.user_code):
                code.keep_out_of_the_way()
        self.parts.descriptors.verify()
        self.code.verify_all()

    def page_invalidated(self, gva: int) -> None:
        """INVLPG: translations of this page must still be what its address leads to."""
        for code in (self.code, self.user_code):
            code.page_invalidated(gva >> 12)

    def _made_writable(self, gfn: int, uses: int) -> None:
        """A frame is opened for writing: what was derived from it is no longer valid."""
        if uses & CODE:
            for code in (self.code, self.user_code):
                code.made_writable(gfn)
        if uses & DESCRIPTORS:
            self.parts.descriptors.drop(gfn)

    def control_changed(self) -> None:
        """The guest's CR0 or CR4 changed: the physical ones follow where they matter to the CPU."""
        vcpu = self.vm.vcpu
        cr0 = _PHYSICAL_CR0 | vcpu.cr0 & _GUEST_CR0
        cr4 = _PHYSICAL_CR4 | vcpu.cr4 & _GUEST_CR4
        before, self._physical_control = self._physical_control, (cr0, cr4)
        if before == (cr0 ^ Cr0.TS, cr4):
            self.machine.set_task_switched(bool(cr0 & Cr0.TS))
        elif before != (cr0, cr4):
            self.machine.set_cr0(cr0)
            self.machine.set_cr4(cr4)

    def step(self, done: Callable[[bool], None]) -> None:
        """Lets the one instruction at the vCPU's EIP run; then done(completed) is called, before anything else happens."""
        self.after_step = done

    def step_once(self) -> None:
        """Lets one instruction run by itself, if that is not going to happen anyway."""
        if self.after_step is None:
            self.after_step = _nothing

    def memory_access(self, write: bool) -> tuple[int, bool, bool]:
        """(bytes, reads, writes) of the memory operand of the instruction at the vCPU's EIP."""
        vcpu = self.vm.vcpu
        code = self.user_code if vcpu.cpl == 3 else self.code
        raw = code.fetch(vcpu.cs.base + vcpu.eip & 0xFFFFFFFF, LONGEST)
        size, reads, writes = memory_access(raw, vcpu.cs.wide)
        return size, reads, writes or write

    def instruction(self) -> Instruction | None:
        """The instruction at the vCPU's EIP; None when there is none, or none that could be fetched now."""
        vcpu = self.vm.vcpu
        try:
            code = self.user_code if vcpu.cpl == 3 else self.code
            raw = code.fetch(vcpu.cs.base + vcpu.eip & 0xFFFFFFFF, LONGEST)
        except GuestPageFault:
            return None
        return next(decode(raw, vcpu.eip, vcpu.cs.wide), None)

    def interrupts_changed(self, pending: bool) -> None:
        """The interrupt controllers' output changed."""
        if not pending:
            self.window.ring(False)
        elif self.words[Word.FLAGS >> 2] & Flag.IF:
            if self.machine.running and self.budget is None:  # where instructions are counted, whoever did it resumes at once
                self.machine.stop()
        else:
            self.window.ring(True)

    def retired(self) -> int:
        """Instructions retired so far, where they are counted."""
        return self.budget.retired if self.budget is not None else 0

    def run(self) -> None:
        """Runs guest code until the engine is stopped: by the ticker, for a wait, or for good."""
        vm = self.vm
        if self.direct.port_fault is not None:  # the engine stopped before the aborted IN or OUT came back by its page fault
            self.direct.end_port_access()
        elif self.exact:
            self.exact = False
            self.resume()
        elif vm.board.interrupts.asserted:
            self._come_to_boundary()
        if vm.stopped is None and not self.exact:
            self.machine.run()

    def _come_to_boundary(self) -> None:
        """An interrupt waits, or the VM settles, and the engine was stopped at any block: gets to where nothing is under way."""
        if not self.settling and not self.words[Word.FLAGS >> 2] & Flag.IF:
            self.window.ring(True)
            return
        code = self._running()
        if code is None:
            self.capture_user()
            self.resume()
        elif self.after_step is None and not self._deliver_here(code):  # a step under way ends at a boundary by itself; TF would show in its pushf
            self.rolling = True
            self.machine.set_trap_flag(True)

    def cache_address(self) -> int:
        """In translated code: the linear address that the CPU is at."""
        address: int = self.state[Cpu.EIP] + self.state[Cpu.CS + Cpu.BASE] & 0xFFFFFFFF
        return address

    def _deliver_here(self, code: GuestCode) -> bool:
        """In translated code: delivers what is pending if EIP is a clean instruction boundary, or behind the next one if it is shadowed."""
        address = self.cache_address()
        translation = code.cache.translation_at(address)
        if translation is None or translation.single:
            return False
        guest, recovery, exact = translation.locate(address)
        if recovery not in (CLEAN, SHADOWED) or not exact:
            return False
        if self.budget is not None:
            self.budget.leave(translation.unfinished(address, self.state[Cpu.ECX]))
        self.vm.vcpu.inhibited = recovery == SHADOWED
        self.vm.vcpu.eip = guest
        self.vm.vcpu.cpl = translation.mode.cpl
        self.resume()
        return True

    def _virtual_kernel(self) -> bool:
        return self.in_kernel if self.ring == 3 else self.state[Cpu.HFLAGS] & 3 == 1

    def _running(self) -> GuestCode | None:
        """Whose translations the CPU runs; None: user code directly."""
        return self.code if self._virtual_kernel() else self.user_code if self.user_translated else None

    def _user_must_be_translated(self) -> bool:
        """Run directly, user code would show the physical IF, which is 1, and IOPL, which is 0."""
        return self.options.translate_user or self.budget is not None or not self.vm.vcpu.interrupts_on or self.vm.vcpu.iopl != 0

    def settle(self) -> None:
        """Ends what is under way: an access that is being aborted, a step, a stub."""
        self.settling = True
        if self.direct.port_fault is not None:
            self.direct.end_port_access()
        elif not self.exact and self.after_step is None:
            self._come_to_boundary()
        while not self.exact and self.vm.stopped is None:
            self.machine.run()
        self.settling = self.rolling = False
        self._loaded = None  # whatever stands in the CPU now is loaded anew

    def restored(self) -> None:
        """EFER and MSRs of the vCPU are another guest's: nothing else is derived from them."""

    def synchronize(self) -> None:
        """Makes the vCPU exact, as near as the place allows, for reports on a stopped VM."""
        code = self._running()
        if self.exact:
            return
        if code is None:
            self.capture_user()
        elif code.cache.translation_at(self.cache_address()) is not None:
            self.recover(self.cache_address())

    def resume(self) -> None:
        """Enters the guest at the vCPU's EIP, delivering what may be delivered first."""
        if self.settling and self.after_step is None:
            self.exact = True
            self.machine.stop()
            return
        vm = self.vm
        vcpu, interrupts = vm.vcpu, vm.board.interrupts
        if self.budget is not None:
            self.budget.run_due()
        while True:
            if interrupts.asserted:
                if not vcpu.interrupts_on:
                    self.window.ring(True)
                elif vcpu.inhibited:
                    self.step_once()
                elif self.after_step is None:
                    if not self.handled(External()):
                        return
                    continue
            self.shadowed, vcpu.inhibited = vcpu.inhibited, False
            self.trap_due = vcpu.trap_flag
            try:
                code = self.user_code if vcpu.cpl == 3 else self.code
                if code.user and not self._user_must_be_translated():
                    self._enter_directly()
                else:
                    if vcpu.trap_flag:
                        self.step_once()
                    self._enter_translated(code, vcpu.eip)
                return
            except GuestFault as fault:
                self._abandon_step()
                if not self.handled(PageFault(fault.gva, fault.code) if isinstance(fault, GuestPageFault) else Raised(fault.vector, fault.error)):
                    return
            except CacheFull:
                code.flush()

    def _enter_translated(self, code: GuestCode, eip: int) -> None:
        if code.user:
            self._prepare_user()
        mode = self.mode(code)
        if mode.careful and eip > self.vm.vcpu.cs.limit:
            raise GuestFault(Vector.GP, 0)
        if self.budget is not None:
            if self.budget.steps() or mode.careful:
                self.step_once()
            self.budget.enter(code.words)
        if self.after_step is not None:
            address = code.single(eip, mode)
        else:
            linear = self.vm.vcpu.cs.base + eip & 0xFFFFFFFF
            found = code.cache.lookup(eip, mode, code.pages.get(linear >> 12))
            address = code.translate(eip, mode) if found is None else found
        if self.vm.stopped is not None:  # there is nothing to translate there, or no room for it
            self.exact = True
            return
        state, ss, ring = self.state, self.vm.vcpu.ss, 3 if code.user else self.ring
        if self._loaded != (code, ss, mode) or state[Cpu.CS] != _CACHE_SELECTOR | ring:
            machine = self.machine
            kind = _FLAT_CODE if mode.wide else _FLAT_CODE & ~WIDE
            machine.set_segment(Cpu.CS, _CACHE_SELECTOR | ring, mode.code_base, 0xFFFFFFFF, kind | ring << 13)
            machine.set_segment(Cpu.SS, ss.selector & ~3 | ring, ss.base, ss.limit, ss.attributes & ~0x6000 | ring << 13)
            machine.set_mode(ring)
            machine.set_trap_flag(False)
            self._loaded, self.user_translated, self.rolling = (code, ss, mode), code.user, False
            self._switch(code.user)
        if self.after_step is not None:
            self._prepare_step(code.cache.singles[mode.index << 32 | eip].block)
        state[Cpu.EIP] = address - mode.code_base & 0xFFFFFFFF

    def _prepare_step(self, block: Block) -> None:
        """A string instruction is stepped by iterations, unless nobody but the count asks: then it gets as many as there is time for."""
        if not block.repeats:
            return
        self.iterating = self.budget is None or self.trap_due or self.after_step is not _nothing
        if self.iterating:
            self.machine.set_trap_flag(True)
        if self.budget is not None:
            self.budget.alone(block.instructions[0], one=self.iterating)

    def _prepare_user(self) -> None:
        """User code will run translated: its window is placed, its translations hold, and its copies of the VMM's words are right."""
        code, words = self.user_code, self.words
        if not code.placed:
            code.place()
        code.verify_all()
        for first, behind in _SHOWN_TO_USERS:
            code.words[first >> 2 : behind >> 2] = words[first >> 2 : behind >> 2]

    def _enter_directly(self) -> None:
        vcpu, machine = self.vm.vcpu, self.machine
        for at, held in ((Cpu.CS, vcpu.cs), (Cpu.SS, vcpu.ss)):
            machine.set_segment(at, held.selector, held.base, held.limit, held.attributes | 0x6000)
        machine.set_mode(3)
        self._stepping_directly = self.after_step is not None
        machine.set_trap_flag(vcpu.trap_flag or self._stepping_directly)
        self._loaded, self.user_translated, self.rolling = None, False, False
        self._switch(user=True)
        self.state[Cpu.EIP] = vcpu.eip

    def _switch(self, user: bool) -> None:
        """Ring 3: the lecture's set_ptp(current, kmode) at a change of mode."""
        if self.ring == 3 and self.in_kernel == user:
            self.in_kernel = not user
            self.mmu.switch(user)
            self.parts.descriptors.enter(user)

    @property
    def plain(self) -> bool:
        """Whether IOPL, TF and NT are all 0, which in-cache emulation of flags takes for granted."""
        vcpu = self.vm.vcpu
        return not (vcpu.iopl or vcpu.trap_flag or self.state[Cpu.EFLAGS] & Flag.NT)

    def mode(self, code: GuestCode) -> Mode:
        vcpu = self.vm.vcpu
        cs, ss = vcpu.cs, vcpu.ss
        real = not vcpu.cr0 & Cr0.PE
        if real or vcpu.cpl in (1, 2) or not cs.attributes & ss.attributes & WIDE:
            return code.cache.careful_mode(cs.base, cs.wide, vcpu.cpl, real)
        return code.cache.mode(cs.base, ss.base, self.plain)

    def capture(self) -> None:
        """At the present instruction, however it is run: makes the vCPU exact, with the state before it."""
        if self._running() is None:
            self.capture_user()
        else:
            self.recover(self.cache_address())

    def capture_user(self) -> None:
        """Out of direct execution in user mode: the vCPU's EIP, CPL, CS, SS and TF are the physical ones."""
        state, vcpu = self.state, self.vm.vcpu
        if self._stepping_directly:
            self._stepping_directly = False
        else:
            vcpu.trap_flag = bool(state[Cpu.EFLAGS] & Flag.TF)
        vcpu.cpl, vcpu.eip = 3, state[Cpu.EIP]
        vcpu.cs = Segment(state[Cpu.CS], state[Cpu.CS + 2], state[Cpu.CS + 4], state[Cpu.CS + 5])
        vcpu.ss = Segment(state[Cpu.SS], state[Cpu.SS + 2], state[Cpu.SS + 4], state[Cpu.SS + 5])

    def recover(self, address: int) -> Translation:
        """In translated code, at a cache address: puts back the state before the guest's instruction."""
        code = self._running()
        assert code is not None
        translation = code.cache.translation_at(address)
        if translation is None:
            raise RuntimeError(f"no translation at {address:#x}")
        guest, recovery, _ = translation.locate(address)
        if recovery & SPILLED:
            register = recovery & 7
            self.state[2 * register] = code.words[(Word.SAVED >> 2) + register]
        elif recovery & ADJUSTED:
            register, mode = recovery & 7, translation.mode
            self.state[2 * register] = self.state[2 * register] - mode.cs_base + mode.ss_base & 0xFFFFFFFF
        elif recovery & RETURNING:
            self.words[Word.FLAGS >> 2] = self.words[Word.FLAGS >> 2] & ~0xFF00 | self.words[Word.FLAGS_BEFORE >> 2] & 0xFF00
        if self.budget is not None:
            self.budget.leave(translation.unfinished(address, self.state[Cpu.ECX]))
        self.vm.vcpu.eip, self.vm.vcpu.cpl = guest, translation.mode.cpl
        return translation

    def handled(self, exit_: Exit) -> bool:
        """Lets the monitor handle an exit; False when the guest is not to go on now."""
        vm = self.vm
        vm.stats.last.append((type(exit_).__name__, vm.vcpu.eip))
        outcome = vm.monitor.handle(exit_)
        if self.budget is not None and vm.monitor.completed:
            self.budget.retired += 1
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

    def exit(self, exit_: Exit) -> None:
        """An exit with exact state: handles it and goes on."""
        self._abandon_step()
        if self.handled(exit_):
            self.resume()

    def _abandon_step(self) -> None:
        """The instruction that was to be stepped did not complete."""
        self._end_iteration()
        if self.after_step is not None:
            done, self.after_step = self.after_step, None
            done(False)

    def _end_iteration(self) -> None:
        if self.iterating:
            self.iterating = False
            self.machine.set_trap_flag(False)

    def iterated(self, code: GuestCode, address: int) -> None:
        """An iteration of a string instruction has been stepped, with the CPU now at a cache address: EIP stays while there are more."""
        translation = code.cache.translation_at(address)
        assert translation is not None
        instruction = translation.block.instructions[0]
        vcpu, more = self.vm.vcpu, address == translation.start
        self.finish_step(True)
        if self.budget is not None:
            waiting = self.vm.board.interrupts.asserted
            more = not self.budget.completed(more=more, iterated=not self.trap_due, waiting=waiting)
            vcpu.inhibited = self.shadowed and more
        vcpu.eip = instruction.address if more else instruction.next
        vcpu.cpl = translation.mode.cpl
        self.stepped()

    def finish_step(self, completed: bool) -> None:
        """The one instruction that was entered is done, or has raised an event, and is not counted yet: what waits for that has its turn."""
        self._end_iteration()
        done, self.after_step = self.after_step, None
        if done is not None:
            done(completed)

    def step_done(self, completed: bool) -> None:
        """The same, with the debug exception that follows it."""
        self.finish_step(completed)
        if completed and self.trap_due and self.vm.stopped is None:
            self.handled(Raised(Vector.DB))

    def descriptor_filled(self, vector: int, error: int, user: bool) -> bool:
        """An exception that a selector load may have raised because its shadow was absent: True when it is dealt with."""
        if vector not in _SELECTOR_VECTORS or not error:
            return False
        try:
            filled = self.parts.descriptors.fill(error, user)
        except GuestPageFault as fault:
            self.capture()
            self.exit(PageFault(fault.gva, fault.code))
            return True
        if filled:
            self.vm.stats.architectural["shadow descriptor"] += 1
        return filled

    def rolled(self) -> None:
        """A single step on the way out of a stub is done."""
        if not self.settling and (not self.vm.board.interrupts.asserted or not self.words[Word.FLAGS >> 2] & Flag.IF):
            self.rolling = False
            self.machine.set_trap_flag(False)
            self._arm_if_needed()
            return
        self.machine.set_trap_flag(False)
        code = self._running()
        if code is not None and self._deliver_here(code):
            self.rolling = False
        else:
            self.machine.set_trap_flag(True)

    def _arm_if_needed(self) -> None:
        if self.vm.board.interrupts.asserted and not self.words[Word.FLAGS >> 2] & Flag.IF:
            self.window.ring(True)

    def stepped(self) -> None:
        self.step_done(True)
        if self.vm.stopped is None:
            self.resume()

    def step_over_directory_write(self, gfn: int) -> None:
        """Lets the one instruction at hand write a guest directory, and looks at what it changed, behind what a step under way will do."""
        before = self.after_step

        def done(completed: bool) -> None:
            if before is not None:
                before(completed)
            self.mmu.retrace(gfn)
            self.tables_changed()

        self.after_step = done
        self.resume()

    def _on_interrupt(self, vector: int) -> None:
        """Every exception and INT of the CPU."""
        state, machine = self.state, self.machine
        state[machine.old_exception] = 0xFFFFFFFF
        software = False
        if state[machine.is_int]:
            state[machine.is_int] = 0
            software = True
        address = state[Cpu.EIP]
        in_kernel = self.in_kernel if self.ring == 3 else state[Cpu.HFLAGS] & 3 == 1
        if in_kernel:
            address = address + state[Cpu.CS + Cpu.BASE] & 0xFFFFFFFF
            self._audit(address, self.code)
        elif self.user_translated:
            address = address + state[Cpu.CS + Cpu.BASE] & 0xFFFFFFFF
            self._audit(address, self.user_code)
        if vector == 14 and not software and (in_kernel or self.direct.port_fault is None):
            error = state[machine.error_code]
            if not error & Fault.I and self.mmu.refill(state[Cpu.CR2], bool(error & Fault.W), not in_kernel):  # most exits end here
                self.stats.architectural["hidden page fault"] += 1
                return
        if in_kernel:
            self.kernel.interrupt(vector, address, software)
        elif self.user_translated and self.direct.port_fault is None:
            self.user.interrupt(vector, address, software)
        else:
            self.direct.interrupt(vector, address, software)

    def _audit(self, address: int, code: GuestCode) -> None:
        """At each exit out of code that is to be translated: EIP must lie in its cache."""
        self.stats.audited += 1
        if not 0 <= address - code.start <= self.options.cache_size:
            self.stats.outside += 1

    def _on_invalid(self) -> None:
        """An undefined instruction: this CPU reports it apart."""
        self.machine.clear_event()
        self.stats.architectural["exception 6"] += 1
        code = self._running()
        if self.direct.port_fault is not None:  # the instruction behind the IN or OUT that is being aborted
            self.direct.end_port_access()
            return
        if code is not None:
            self._audit(self.cache_address(), code)
        self.capture()
        if code is None and self.direct.emulate("icebp", "rdpmc"):
            return
        self.exit(Raised(Vector.UD))

    def _on_cpuid(self) -> bool:
        state = self.state
        values = self.vm.cpuid(state[Cpu.EAX], state[Cpu.ECX])
        for register, value in zip((Cpu.EAX, Cpu.EBX, Cpu.ECX, Cpu.EDX), values, strict=True):
            state[register] = value
            state[register + 1] = 0
        self.vm.stats.engine["cpuid"] += 1
        return True

    def _on_port(self, port: int, size: int, value: int | None) -> int:
        self.vm.stats.architectural["port"] += 1
        if self.budget is not None:
            return self._counted_port(self.budget, port, size, value)
        if not self._virtual_kernel() and not self.direct.port_allowed(port, size):
            return 0
        return self.vm.board.bus.port(port, size, value)

    def _counted_port(self, budget: Budget, port: int, size: int, value: int | None) -> int:
        """In the last instruction of a run (users' accesses are callouts), or in one that runs by itself. What it brings about comes behind it."""
        vm, code, address = self.vm, self.code, self.cache_address()
        translation = code.cache.starting_at(address)
        if translation.single:
            budget.note_iterations()
            result = vm.board.bus.port(port, size, value)
            budget.cut(1 if vm.board.interrupts.asserted or vm.stopped is not None else MOST)
            return result
        budget.leave(translation.unfinished(address, 0))
        result = vm.board.bus.port(port, size, value)
        budget.retired += 1
        waiting = vm.board.interrupts.asserted and vm.vcpu.interrupts_on
        if waiting or vm.stopped is not None or not budget.go_on(code.words):
            budget.enter(code.words)
            budget.stop()
        return result


def _nothing(completed: bool) -> None:
    """What follows a step that only had to be one."""
