"""The bt back-end: guest kernel code runs only from the translation cache, guest user code directly.

Runs the virtual CPU until the monitor is needed, and puts the exact guest state back before it asks. Knows the translator,
the window and the shadow MMU; touches no device and decides nothing about what an exit means.

The guest's kernel runs at CPL `ring`. With ring 1 one shadow table serves both modes; with ring 3 (the lecture's scheme) each
mode has its own, and its own shadow descriptors. EIP is audited at every exit in virtual kernel mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt.block import CLEAN, RETURNING, SPILLED, Mode, Site, SiteKind, Translation
from bt.cache import CacheFull, Source, TranslationCache
from bt.decode import memory_access
from bt.discover import LONGEST, discover
from bt.emit import TRAP_VECTOR, Options
from bt.sensitive import classify
from bt.window import CODE, Word
from vmm.backends.window import NoRoom, Use, Window
from vmm.cpu_state import Cpu
from vmm.exits import DeviceMemory, End, Exit, External, PageFault, PortAccess, Raised, Resume, Sensitive, SoftwareInterrupt, Stop, Wait
from vmm.faults import GuestPageFault
from vmm.machine import MIB
from vmm.memory import CODE as CODE_USE
from vmm.memory import DESCRIPTORS
from vmm.mmu.shadow import DeviceAccess, StepOver
from vmm.ports import port_allowed
from vmm.x86.bits import Cr0, Cr4, Fault, Flag, Pte, Vector
from vmm.x86.descriptors import Segment

if TYPE_CHECKING:
    from vmm.vm import Vm

_CACHE_SELECTOR = 0xFFF0
_FLAT_CODE = 0x00CF9B00
_SELECTOR_VECTORS = frozenset((Vector.TS, Vector.NP, Vector.SS, Vector.GP))
_PHYSICAL_CR0 = Cr0.PG | Cr0.WP | Cr0.NE | Cr0.ET | Cr0.PE
_GUEST_CR0 = Cr0.MP | Cr0.EM | Cr0.TS | Cr0.AM
_PHYSICAL_CR4 = 1 << 20 | Cr4.PAE  # SMEP
_GUEST_CR4 = Cr4.DE | Cr4.OSFXSR | Cr4.OSXMMEXCPT


@dataclass(frozen=True, slots=True)
class BtOptions:
    """ring: CPL of the guest's kernel, 1 or 3. stubs_in_cache: `--stubs cache`. cache_size: bytes of translated code, whole frames."""

    ring: int = 1
    stubs_in_cache: bool = True
    cache_size: int = 16 * MIB


class BinaryTranslation:
    """Runs one VM by binary translation."""

    def __init__(self, vm: Vm, options: BtOptions) -> None:
        self.vm, self.machine, self.options = vm, vm.machine, options
        self.state, self.ring = vm.machine.state, options.ring
        self.window = Window(vm.machine, options.cache_size, user=options.ring == 3)
        self.words = self.window.data[:4096].cast("I")
        self.cache = TranslationCache(
            self.window.data, self.window.code, self.window.base, Options(options.ring == 1, options.stubs_in_cache), self._protect_code
        )
        self.cache_cs = _CACHE_SELECTOR | options.ring
        self.in_kernel = True  # which mode the guest is in, for ring 3, where the CPU cannot tell
        self.exact = True  # whether the vCPU's EIP, CPL, CS and SS are the guest's, the engine being stopped
        self.rolling = False  # single-stepping out of a stub, to deliver an interrupt behind it
        self.after_step: Callable[[bool], None] | None = None
        self.code_pages: dict[int, int] = {}  # linear page -> gfn that translations of it were made from
        self.tolerated = Use.FREE  # what the guest may have in the window's place
        self.code_opened = False  # whether code was invalidated since that was last looked at
        self.loaded_ss: Segment | None = None
        self.physical_control = (0, 0)
        self.port_fault: tuple[bytes, int, int] | None = None

    def start(self) -> None:
        """Takes over the CPU: hooks, control registers, window."""
        vm, machine = self.vm, self.machine
        vm.mmu.made_writable = self._opened
        self.window.place(self._use)
        self.cache.flush(self.window.base)
        vm.mmu.set_window(self.window.entries())
        machine.on_interrupt = self._on_interrupt
        machine.on_invalid = self._on_invalid
        machine.on_port = self._on_port
        machine.on_cpuid = self._on_cpuid
        self.control_changed()

    # -- what the monitor and the MMU ask for ------------------------------------------------------------------------------------

    def control_changed(self) -> None:
        """The guest's CR0 or CR4 changed: the physical ones follow where they matter to the CPU."""
        vcpu = self.vm.vcpu
        cr0 = _PHYSICAL_CR0 | vcpu.cr0 & _GUEST_CR0
        cr4 = _PHYSICAL_CR4 | vcpu.cr4 & _GUEST_CR4
        before, self.physical_control = self.physical_control, (cr0, cr4)
        if before == (cr0 ^ Cr0.TS, cr4):
            self.machine.set_task_switched(bool(cr0 & Cr0.TS))
        elif before != (cr0, cr4):
            self.machine.set_cr0(cr0)
            self.machine.set_cr4(cr4)

    def tables_changed(self) -> None:
        """Other guest tables are in use: translations must still be what the guest's code addresses lead to."""
        mmu = self.vm.mmu
        if mmu.unchecked_directories:
            mmu.unchecked_directories = False
            if any(self._use(region) > self.tolerated for region in mmu.window):
                self._move_window()
        root = mmu.current
        if root.verified != len(self.code_pages):
            for page in list(self.code_pages):
                self._verify(page)
            root.verified = len(self.code_pages)

    def page_invalidated(self, gva: int) -> None:
        """INVLPG: so must those of this page."""
        if gva >> 12 in self.code_pages:
            self._verify(gva >> 12)

    def step(self, done: Callable[[bool], None]) -> None:
        """Lets the one instruction at the vCPU's EIP run; then done(completed) is called, before anything else happens."""
        self.after_step = done

    def memory_access(self, write: bool) -> tuple[int, bool, bool]:
        """(bytes, reads, writes) of the memory operand of the instruction at the vCPU's EIP."""
        vcpu = self.vm.vcpu
        raw = self._fetch(vcpu.cs.base + vcpu.eip & 0xFFFFFFFF, LONGEST, user=vcpu.cpl == 3)
        size, reads, writes = memory_access(raw)
        return size, reads, writes or write

    def interrupts_changed(self, pending: bool) -> None:
        """The interrupt controllers' output changed."""
        if not pending:
            if self.window.armed:
                self.window.ring(False)
        elif self.words[Word.FLAGS >> 2] & Flag.IF:
            if self.machine.running:
                self.machine.stop()
        elif not self.window.armed:
            self.window.ring(True)

    # -- running --------------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Runs guest code until the engine is stopped: by the ticker, for a wait, or for good."""
        vm = self.vm
        if self.exact:
            self.exact = False
            self._resume()
        elif vm.board.interrupts.asserted:
            self._come_to_boundary()
        if vm.stopped is None and not self.exact:
            self.machine.run()

    def _come_to_boundary(self) -> None:
        """An interrupt waits and the engine was stopped at any block: gets to where it may be delivered."""
        if not self.words[Word.FLAGS >> 2] & Flag.IF:
            if not self.window.armed:
                self.window.ring(True)
            return
        if not self._virtual_kernel():
            self._capture_user()
            self._resume()
        elif not self._deliver_here():
            self.rolling = True
            self.machine.set_trap_flag(True)

    def _deliver_here(self) -> bool:
        """In virtual kernel mode: delivers what is pending if EIP is a clean instruction boundary."""
        address = self.state[Cpu.EIP]
        translation = self.cache.translation_at(address)
        if translation is None or translation.single:
            return False
        guest, recovery, exact = translation.locate(address)
        if recovery != CLEAN or not exact:
            return False
        self.vm.vcpu.eip = guest
        self.vm.vcpu.cpl = 0
        self._resume()
        return True

    def _virtual_kernel(self) -> bool:
        return self.in_kernel if self.ring == 3 else self.state[Cpu.HFLAGS] & 3 == 1

    def synchronize(self) -> None:
        """Makes the vCPU exact, as near as the place allows, for reports on a stopped VM."""
        vcpu = self.vm.vcpu
        if self.exact:
            return
        if self._virtual_kernel():
            translation = self.cache.translation_at(self.state[Cpu.EIP])
            if translation is not None:
                vcpu.eip, vcpu.cpl = translation.locate(self.state[Cpu.EIP])[0], 0
        else:
            self._capture_user()

    def _resume(self) -> None:
        """Enters the guest at the vCPU's EIP, delivering what may be delivered first."""
        vm = self.vm
        vcpu, interrupts = vm.vcpu, vm.board.interrupts
        while True:
            if interrupts.asserted:
                if not vcpu.interrupts_on:
                    if not self.window.armed:
                        self.window.ring(True)
                elif vcpu.inhibited:
                    if self.after_step is None:
                        self.after_step = _nothing
                elif self.after_step is None:
                    if not self._handled(External()):
                        return
                    continue
            vcpu.inhibited = False
            try:
                if vcpu.cpl == 3:
                    self._enter_user()
                else:
                    if vcpu.trap_flag and self.after_step is None:
                        self.after_step = self._trap_after
                    self._enter_kernel(vcpu.eip)
                return
            except GuestPageFault as fault:
                self._abandon_step()
                if not self._handled(PageFault(fault.gva, fault.code)):
                    return
            except CacheFull:
                self._flush()

    def _trap_after(self, completed: bool) -> None:
        """TF in virtual kernel mode: a debug exception behind the instruction."""
        if completed:
            self._handled(Raised(Vector.DB))

    def _enter_kernel(self, eip: int) -> None:
        mode = self._mode()
        if self.after_step is not None:
            address = self._single(eip, mode)
        else:
            linear = self.vm.vcpu.cs.base + eip & 0xFFFFFFFF
            found = self.cache.lookup(eip, mode, self.code_pages.get(linear >> 12))
            address = self._translate(eip, mode) if found is None else found
        state = self.state
        ss = self.vm.vcpu.ss
        if state[Cpu.CS] != self.cache_cs or self.loaded_ss is not ss or not self.in_kernel:
            machine = self.machine
            machine.set_segment(Cpu.CS, self.cache_cs, 0, 0xFFFFFFFF, _FLAT_CODE | self.ring << 13)
            machine.set_segment(Cpu.SS, ss.selector & ~3 | self.ring, ss.base, ss.limit, ss.attributes & ~0x6000 | self.ring << 13)
            machine.set_mode(self.ring)
            machine.set_trap_flag(False)
            self.loaded_ss = ss
            self._switch(user=False)
        state[Cpu.EIP] = address

    def _enter_user(self) -> None:
        vcpu, machine = self.vm.vcpu, self.machine
        for at, held in ((Cpu.CS, vcpu.cs), (Cpu.SS, vcpu.ss)):
            machine.set_segment(at, held.selector, held.base, held.limit, held.attributes | 0x6000)
        machine.set_mode(3)
        step = self.after_step is not None
        machine.set_trap_flag(step or bool(self.state[Cpu.EFLAGS] & Flag.TF))
        self._switch(user=True)
        self.state[Cpu.EIP] = vcpu.eip

    def _switch(self, user: bool) -> None:
        """Ring 3: the lecture's set_ptp(current, kmode) at a change of mode."""
        if self.ring == 3 and self.in_kernel == user:
            self.in_kernel = not user
            self.vm.mmu.switch(user)
            self.vm.descriptors.enter(user)

    def _mode(self) -> Mode:
        vcpu = self.vm.vcpu
        return self.cache.mode(vcpu.cs.base, vcpu.ss.base, vcpu.ss.wide and not vcpu.iopl and not vcpu.trap_flag)

    def _capture_user(self) -> None:
        """Out of direct execution in user mode: the vCPU's EIP, CPL, CS and SS are the physical ones."""
        state, vcpu = self.state, self.vm.vcpu
        vcpu.cpl, vcpu.eip = 3, state[Cpu.EIP]
        vcpu.cs = Segment(state[Cpu.CS], state[Cpu.CS + 2], state[Cpu.CS + 4], state[Cpu.CS + 5])
        vcpu.ss = Segment(state[Cpu.SS], state[Cpu.SS + 2], state[Cpu.SS + 4], state[Cpu.SS + 5])

    def _recover(self, address: int) -> Translation:
        """In virtual kernel mode, at a cache address: puts back the state before the guest's instruction."""
        translation = self.cache.translation_at(address)
        if translation is None:
            raise RuntimeError(f"no translation at {address:#x}")
        guest, recovery, _ = translation.locate(address)
        if recovery & SPILLED:
            register = recovery & 7
            self.state[2 * register] = self.words[(Word.SAVED >> 2) + register]
        elif recovery & RETURNING:
            self.words[Word.FLAGS >> 2] = self.words[Word.FLAGS >> 2] & ~0xFF00 | self.words[Word.FLAGS_BEFORE >> 2] & 0xFF00
        self.vm.vcpu.eip, self.vm.vcpu.cpl = guest, 0
        return translation

    # -- exits ----------------------------------------------------------------------------------------------------------------------

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

    def _on_interrupt(self, vector: int) -> None:
        """Every exception and INT of the CPU."""
        state, machine, stats = self.state, self.machine, self.vm.stats
        state[machine.old_exception] = 0xFFFFFFFF
        software = state[machine.is_int]
        state[machine.is_int] = 0
        address = state[Cpu.EIP]
        if not self._virtual_kernel():
            self._user_exit(vector, address, bool(software))
            return
        stats.audited += 1
        if not 0 <= address - self.cache.base - CODE <= self.options.cache_size:
            stats.outside += 1
        if software and vector == TRAP_VECTOR:
            self._trap(self.cache.sites[address])
        elif vector == Vector.PF:
            self._kernel_page_fault(state[Cpu.CR2], state[machine.error_code], address)
        elif vector == Vector.DB and self.rolling:
            self._rolled()
        else:
            error = state[machine.error_code]
            if vector in _SELECTOR_VECTORS and error and self._descriptor_filled(error, user=False):
                return
            stats.architectural[f"exception {vector}"] += 1
            self._recover(address)
            self._exit(Raised(vector, error))

    def _descriptor_filled(self, error: int, user: bool) -> bool:
        try:
            filled = self.vm.descriptors.fill(error, user)
        except GuestPageFault as fault:
            if user:
                self._capture_user()
            else:
                self._recover(self.state[Cpu.EIP])
            self._exit(PageFault(fault.gva, fault.code))
            return True
        if filled:
            self.vm.stats.architectural["shadow descriptor"] += 1
        return filled

    def _rolled(self) -> None:
        """A single step on the way out of a stub is done."""
        if not self.vm.board.interrupts.asserted or not self.words[Word.FLAGS >> 2] & Flag.IF:
            self.rolling = False
            self.machine.set_trap_flag(False)
            self._arm_if_needed()
            return
        self.machine.set_trap_flag(False)
        if self._deliver_here():
            self.rolling = False
        else:
            self.machine.set_trap_flag(True)

    def _arm_if_needed(self) -> None:
        if self.vm.board.interrupts.asserted and not self.words[Word.FLAGS >> 2] & Flag.IF and not self.window.armed:
            self.window.ring(True)

    def _trap(self, site: Site) -> None:
        """A trapping stub."""
        site.count += 1
        vm, stats = self.vm, self.vm.stats
        vcpu = vm.vcpu
        match site.kind:
            case SiteKind.CALLOUT:
                instruction, row = site.instruction, site.row
                assert instruction is not None and row is not None
                stats.architectural["callout"] += 1
                vcpu.eip, vcpu.cpl = site.address, 0
                flushes, ss, mode = self.cache.flushes, vcpu.ss, site.translation.mode
                if self.after_step is not None and site.translation.single:
                    self._step_callout(Sensitive(instruction, row))
                    return
                if not self._handled(Sensitive(instruction, row)):
                    return
                if (
                    vcpu.cpl == 0
                    and vcpu.eip == instruction.next
                    and site.translation.alive
                    and flushes == self.cache.flushes
                    and ss is vcpu.ss
                    and not vcpu.iopl | vcpu.trap_flag
                    and mode.plain
                    and not vm.board.interrupts.asserted
                    and self.after_step is None
                ):
                    vcpu.inhibited = False
                    return  # EIP already stands behind the stub
                self._resume()
            case SiteKind.CHAIN:
                stats.architectural["chain"] += 1
                vcpu.eip, vcpu.cpl = site.target, 0
                flushes = self.cache.flushes
                self._resume()
                if flushes == self.cache.flushes:
                    self.cache.link(site.slot, site.target, site.translation.mode)
            case SiteKind.MISS:
                stats.architectural["indirect miss"] += 1
                self.state[Cpu.ECX] = self.words[(Word.SAVED >> 2) + 1]
                target = vcpu.eip = self.words[Word.TARGET >> 2]
                vcpu.cpl = 0
                try:
                    mode = self._mode()
                except CacheFull:
                    self._resume()
                    return
                self._resume()
                self._link_return(target, mode)
            case SiteKind.STEPPED:
                vcpu.eip, vcpu.cpl = site.target, 0
                self._stepped()
            case SiteKind.UNDEFINED:
                stats.architectural["exception 6"] += 1
                vcpu.eip, vcpu.cpl = site.address, 0
                self._exit(Raised(Vector.UD))

    def _step_callout(self, exit_: Exit) -> None:
        """The instruction to be stepped is emulated: it is done at once."""
        done, self.after_step = self.after_step, None
        assert done is not None
        going_on = self._handled(exit_)
        done(True)
        if going_on:
            self._resume()

    def _stepped(self) -> None:
        done, self.after_step = self.after_step, None
        if done is not None:
            done(True)
        if self.vm.stopped is None:
            self._resume()

    def _link_return(self, target: int, mode: Mode) -> None:
        try:
            if self.cache.lookup(target, mode) is not None:
                self.cache.link_return(target, mode)
        except CacheFull:
            pass  # the next translation flushes

    def _kernel_page_fault(self, gva: int, error: int, address: int) -> None:
        vm, stats = self.vm, self.vm.stats
        window = self.window
        if window.holds(gva):
            if window.on_doorbell(gva):
                self._doorbell(address)
                return
        try:
            outcome = vm.mmu.fault(gva, bool(error & Fault.W), False, False)
        except GuestPageFault as fault:
            stats.architectural["exception 14"] += 1
            self._recover(address)
            self._exit(PageFault(fault.gva, fault.code))
            return
        match outcome:
            case None:
                stats.architectural["hidden page fault"] += 1
                if vm.mmu.unchecked_directories:
                    self._recover(address)
                    self.tables_changed()
                    self._resume()
                    return
                if self.code_opened:
                    self.code_opened = False
                    translation = self.cache.translation_at(address)
                    if translation is not None and translation.alive:
                        return
                    self._recover(address)  # the code that runs was written: once over the writing instruction, then anew
                    if self.after_step is None:
                        self.after_step = _nothing
                    self._resume()
            case StepOver(gfn):
                stats.architectural["directory write"] += 1
                self._recover(address)
                self._then(lambda completed: vm.mmu.retrace(gfn), self.tables_changed)
                self._resume()
            case DeviceAccess(gpa):
                stats.architectural["device memory"] += 1
                self._recover(address)
                self._exit(DeviceMemory(gpa, gva, bool(error & Fault.W)))

    def _then(self, *actions: Callable[..., None]) -> None:
        """Steps over the instruction at hand, then does these, behind what a step already under way will do."""
        before = self.after_step
        retrace, check = actions

        def done(completed: bool) -> None:
            if before is not None:
                before(completed)
            retrace(completed)
            check()

        self.after_step = done

    def _doorbell(self, address: int) -> None:
        """The guest sets IF while an interrupt waits: the whole instruction is emulated instead."""
        translation = self._recover(address)
        vcpu = self.vm.vcpu
        self.vm.stats.architectural["interrupt window"] += 1
        instruction = next(i for i in translation.block.instructions if i.address == vcpu.eip)
        row = classify(instruction.opcode, instruction.modrm)
        assert row is not None
        self._exit(Sensitive(instruction, row))

    def _user_exit(self, vector: int, address: int, software: bool) -> None:
        vm, stats, state, machine = self.vm, self.vm.stats, self.state, self.machine
        if self.port_fault is not None:
            self._end_port_access()
            return
        if self.rolling:  # the last step out of a stub was an iret to user mode
            self.rolling = False
            machine.set_trap_flag(False)
            if vector == Vector.DB:
                self._capture_user()
                self._resume()
                return
        error = state[machine.error_code]
        if vector == Vector.PF and not software:
            self._user_page_fault(state[Cpu.CR2], error)
            return
        if vector in _SELECTOR_VECTORS and not software and error and self._descriptor_filled(error, user=True):
            return
        self._capture_user()
        if software:
            stats.architectural["system call"] += 1
            raw = self._fetch(vm.vcpu.cs.base + address - 2 & 0xFFFFFFFF, 2, user=True)
            size = 2 if raw[0] == 0xCD and raw[1] == vector else 1
            vm.vcpu.eip = address - size & 0xFFFFFFFF
            self._exit(SoftwareInterrupt(vector, address))
        elif vector == Vector.DB and self.after_step is not None:
            self._stepped()
        else:
            stats.architectural[f"exception {vector}"] += 1
            self._exit(Raised(vector, error))

    def _user_page_fault(self, gva: int, error: int) -> None:
        vm, stats = self.vm, self.vm.stats
        try:
            outcome = vm.mmu.fault(gva, bool(error & Fault.W), True, bool(error & Fault.I))
        except GuestPageFault as fault:
            stats.architectural["exception 14"] += 1
            self._capture_user()
            self._exit(PageFault(fault.gva, fault.code))
            return
        match outcome:
            case None:
                stats.architectural["hidden page fault"] += 1
            case StepOver(gfn):
                stats.architectural["directory write"] += 1
                self._capture_user()
                self._then(lambda completed: vm.mmu.retrace(gfn), self.tables_changed)
                self._resume()
            case DeviceAccess(gpa):
                stats.architectural["device memory"] += 1
                self._capture_user()
                if error & Fault.I:
                    self._handled_stop(f"the guest executes at {gva:#x}, where there is no memory (gpa {gpa:#x})")
                else:
                    self._exit(DeviceMemory(gpa, gva, bool(error & Fault.W)))

    def _handled_stop(self, reason: str) -> None:
        self.exact = True
        self.vm.stop(Stop(End.DIED, reason))

    def _on_invalid(self) -> None:
        """An undefined instruction: this CPU reports it apart."""
        state = self.state
        state[self.machine.old_exception] = 0xFFFFFFFF
        self.vm.stats.architectural["exception 6"] += 1
        if self._virtual_kernel():
            self.vm.stats.audited += 1
            self._recover(state[Cpu.EIP])
        else:
            self._capture_user()
        self._exit(Raised(Vector.UD))

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
        if not self._virtual_kernel() and not self._port_allowed(port, size):
            return 0
        return self.vm.board.bus.port(port, size, value)

    def _port_allowed(self, port: int, size: int) -> bool:
        vm = self.vm
        vm.vcpu.cpl = 3
        try:
            if port_allowed(vm, port, size):
                return True
        except GuestPageFault:
            pass
        if self.port_fault is None:
            self.port_fault = bytes(self.state.cast("B")[: 4 * 1400]), port, size
            self.machine.set_cr3(vm.empty_root)
            self.machine.stop()
        return False

    def _end_port_access(self) -> None:
        """Erratum 12: IN and OUT cannot be aborted: the state before is put back, and the exception injected."""
        assert self.port_fault is not None
        image, port, size = self.port_fault
        self.port_fault = None
        self.state.cast("B")[: len(image)] = image
        self.machine.set_cr3(self.vm.mmu.current.cr3)
        self._capture_user()
        self.vm.stats.architectural["exception 13"] += 1
        self._exit(PortAccess(port, size))

    # -- translating -----------------------------------------------------------------------------------------------------------------

    def _fetch(self, linear: int, size: int, user: bool) -> bytes:
        """Up to `size` bytes of code, less when the next page cannot be fetched."""
        room = 0x1000 - (linear & 0xFFF)
        linear_memory = self.vm.linear
        code = linear_memory.read(linear, min(size, room), user, fetch=True)
        if size > room:
            try:
                code += linear_memory.read(linear + room & 0xFFFFFFFF, size - room, user, fetch=True)
            except GuestPageFault:
                pass
        return code

    def _page(self, linear: int) -> int:
        """gfn of the code page at a linear address. Raises GuestPageFault."""
        return self.vm.paging.walk(linear, fetch=True).gpa >> 12

    def _translate(self, eip: int, mode: Mode) -> int:
        """Translates the block at `eip`; returns where it stands in the cache."""
        vm = self.vm
        linear = mode.cs_base + eip & 0xFFFFFFFF
        gfn = self._page(linear)
        if gfn >= vm.memory.count:
            self._handled_stop(f"the guest executes at {linear:#x}, where there is no memory (gpa {gfn << 12 | linear & 0xFFF:#x})")
            return self.cache.miss
        page = linear >> 12
        if page not in self.code_pages:
            self.code_pages[page] = gfn
        elif self.code_pages[page] != gfn:
            self._verify(page)
            self.code_pages[page] = gfn
        revived = self.cache.revive(eip, mode, lambda source: self._same(source, gfn))
        if revived is not None:
            return revived
        start = eip - (linear & 0xFFF)
        code = vm.memory.read(gfn << 12, 4096)
        block = discover(code, start, 4096, eip)
        source: Source = []
        if not block.instructions and not block.undecodable:
            behind = (page + 1 & 0xFFFFF) << 12
            next_gfn = self._page(behind)
            block = discover(code + vm.memory.read(next_gfn << 12, LONGEST), start, 4096, eip, 1)
            if next_gfn < vm.memory.count:
                self.code_pages.setdefault(behind >> 12, next_gfn)
                source.append((next_gfn, 0, vm.memory.read(next_gfn << 12, LONGEST)))
        first = min([i.address for i in block.instructions] + block.undecodable) - start
        last = min(max([i.next for i in block.instructions] + [a + LONGEST for a in block.undecodable]) - start, 4096)
        source.append((gfn, first, code[first:last]))
        return self.cache.install(block, mode, source)

    def _same(self, source: Source, gfn: int) -> bool:
        """Whether a translation's source is unchanged and still lies in the page that `gfn` is."""
        memory = self.vm.memory
        return source[-1][0] == gfn and all(memory.read(page << 12 | offset, len(code)) == code for page, offset, code in source)

    def _single(self, eip: int, mode: Mode) -> int:
        """A translation of the one instruction at `eip`, which does not protect its page."""
        raw = self._fetch(mode.cs_base + eip & 0xFFFFFFFF, LONGEST, user=False)
        block = discover(raw, eip, 1, eip, 1)
        if not block.instructions and not block.undecodable:
            block.undecodable.append(eip)
        return self.cache.single(block, mode)

    def _protect_code(self, gfn: int) -> None:
        memory = self.vm.memory
        memory.state[gfn] |= CODE_USE
        self.vm.mmu.protect(gfn)

    def _opened(self, gfn: int, uses: int) -> None:
        """A frame is opened for writing: what was derived from it is no longer valid."""
        if uses & CODE_USE:
            self.code_opened = True
            self.cache.invalidate(gfn)
        if uses & DESCRIPTORS:
            self.vm.descriptors.drop(gfn)

    def _verify(self, page: int) -> None:
        """Whether the linear page still leads to the frame that translations were made of; if not, they go to sleep."""
        gfn = self.code_pages[page]
        try:
            now = self._page(page << 12)
        except GuestPageFault:
            now = -1
        if now != gfn:
            self.cache.invalidate(gfn)
            self.vm.memory.state[gfn] &= ~CODE_USE
            del self.code_pages[page]

    def _flush(self) -> None:
        """The cache is full: everything goes."""
        self._drop_protections()
        self.cache.flush()

    def _drop_protections(self) -> None:
        state = self.vm.memory.state
        for gfn in self.cache.pages:
            state[gfn] &= ~CODE_USE
        self.code_pages.clear()
        self.machine.flush_code()

    def _use(self, region: int) -> Use:
        """What the guest's current tables have in a region of 2 MiB."""
        vm = self.vm
        entry = vm.mmu.directory_entry(region)
        if not entry & Pte.P:
            return Use.FREE
        if not entry & Pte.PS:
            return Use.TAKEN
        first = entry >> 21 << 9 if vm.paging.pae or not vm.paging.enabled else (entry & 0xFFC00000) >> 12
        device = vm.board.bus.memory_device
        taken = first < vm.memory.count or any(device(gfn << 12) for gfn in range(first, first + 1024))
        return Use.TAKEN if taken else Use.NOBODY if vm.paging.enabled else Use.FREE

    def _move_window(self) -> None:
        """The guest maps the window's range: the window goes elsewhere."""
        vm = self.vm
        self._drop_protections()
        try:
            self.window.place(self._use)
        except NoRoom:
            self._handled_stop("the guest maps all 4 GiB of linear addresses: there is no room for the translation cache")
            return
        self.tolerated = max(self._use(region) for region in self.window.entries())
        self.cache.flush(self.window.base)
        vm.mmu.set_window(self.window.entries())


def _nothing(completed: bool) -> None:
    """What follows a step that only had to be one."""


