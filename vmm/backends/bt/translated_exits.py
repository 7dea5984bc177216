"""Exits out of translated code, the kernel's or users': what the CPU reports while it runs it.

Turns cache addresses back into guest state through the address map, and a
trapping stub into what its site means. Knows the engine that it belongs to; decides nothing about what an exit means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.block import Mode, Site, SiteKind
from bt.cache import CacheFull
from bt.decode import Instruction
from bt.emit import TRAP, TRAP_VECTOR
from bt.sensitive import ADAPTED, classify
from bt.window import Word
from vmm.cpu_state import Cpu
from vmm.emulate.moves import move_address
from vmm.exits import DeviceMemory, PageFault, Raised, Sensitive
from vmm.faults import GuestPageFault
from vmm.memory import TABLE
from vmm.mmu.tables import DeviceAccess, StepOver
from vmm.x86.bits import Cr4, Fault, Vector

if TYPE_CHECKING:
    from vmm.backends.bt.engine import BinaryTranslation
    from vmm.backends.bt.guest_code import GuestCode

_NO_TRAP_BEHIND = ("mov ss,r/m", "pop ss")  # SDM 3A 6.8.3
_SYSTEM_CALLS = ("int", "int3", "into")

_RDTSC = 0x0F31


class TranslatedExits:
    """Handles what happens in the translations of `code` for one engine."""

    def __init__(self, engine: BinaryTranslation, code: GuestCode) -> None:
        self.engine, self.code = engine, code
        self.vm, self.machine, self.state = engine.vm, engine.machine, engine.state
        self.cache, self.words, self.cpl = code.cache, code.words, 3 if code.user else 0

    def interrupt(self, vector: int, address: int, software: bool) -> None:
        """An exception or INT at a cache address."""
        engine, state, machine, stats = self.engine, self.state, self.machine, self.vm.stats
        if software and vector == TRAP_VECTOR:
            self._trap(self.cache.sites[address], address - len(TRAP))
        elif vector == Vector.PF:
            self._page_fault(state[Cpu.CR2], state[machine.error_code], address)
        elif vector == Vector.DB and engine.iterating:
            engine.iterated(self.code, address)
        elif vector == Vector.DB and engine.rolling:
            engine.rolled()
        else:
            error = state[machine.error_code]
            if engine.descriptor_filled(vector, error, self.code.user):
                return
            stats.architectural[f"exception {vector}"] += 1
            engine.recover(address)
            if vector == Vector.GP and not error and self.vm.vcpu.cr4 & Cr4.TSD and not self.vm.vcpu.cpl and self._time_stamp():
                return
            engine.exit(Raised(vector, error))

    def _time_stamp(self) -> bool:
        """RDTSC under CR4.TSD traps at this CPU's privilege level but not at the guest's: it is stepped with TSD clear. False: something else."""
        engine, state, vcpu = self.engine, self.state, self.vm.vcpu
        instruction = engine.instruction()
        if instruction is None or instruction.opcode != _RDTSC:
            return False
        before = engine.after_step

        def done(completed: bool) -> None:
            state[Cpu.CR4] |= vcpu.cr4 & Cr4.TSD
            if before is not None:
                before(completed)

        state[Cpu.CR4] &= ~Cr4.TSD
        engine.after_step = done
        engine.resume()
        return True

    def _trap(self, site: Site, address: int) -> None:
        """A trapping stub."""
        site.count += 1
        vm, stats, budget = self.vm, self.vm.stats, self.engine.budget
        vcpu = vm.vcpu
        unfinished = 0
        if budget is not None and site.kind is not SiteKind.STEPPED:
            unfinished = site.translation.unfinished(address, self.state[Cpu.ECX])
            budget.leave(unfinished)
        match site.kind:
            case SiteKind.CALLOUT:
                instruction, row = site.instruction, site.row
                assert instruction is not None and row is not None
                stats.architectural["system call" if self.code.user and row.name in _SYSTEM_CALLS else "callout"] += 1
                flushes, cs, ss, mode = self.cache.flushes, vcpu.cs, vcpu.ss, site.translation.mode
                vcpu.eip, vcpu.cpl = site.address, mode.cpl
                if self.engine.after_step is not None and site.translation.single:
                    self._step_callout(Sensitive(instruction, row))
                    return
                plain = row is ADAPTED and self._is_plain(instruction)
                if not self.engine.handled(Sensitive(instruction, row)):
                    return
                if row is ADAPTED:
                    self.code.adaptation.made(site, plain)
                    if self.engine.mmu.unchecked_directories:
                        self.engine.tables_changed()
                if (
                    vcpu.cpl == self.cpl
                    and vcpu.eip == instruction.next
                    and site.translation.alive
                    and flushes == self.cache.flushes
                    and cs is vcpu.cs
                    and ss is vcpu.ss
                    and self.engine.plain
                    and mode.plain
                    and not vm.board.interrupts.asserted
                    and self.engine.after_step is None
                    and (budget is None or budget.go_on(self.words))
                ):
                    vcpu.inhibited = False
                    return  # EIP already stands behind the stub
                self.engine.resume()
            case SiteKind.CHAIN:
                stats.architectural["chain"] += 1
                vcpu.eip, vcpu.cpl = site.target, self.cpl
                flushes = self.cache.flushes
                self.engine.resume()
                if flushes == self.cache.flushes:
                    self.cache.link(site.slot, site.target, site.translation.mode)
            case SiteKind.MISS:
                stats.architectural["indirect miss"] += 1
                self.state[Cpu.ECX] = self.words[(Word.SAVED >> 2) + 1]
                target = vcpu.eip = self.words[Word.TARGET >> 2]
                vcpu.cpl = self.cpl
                try:
                    mode = self.engine.mode(self.code)
                except CacheFull:
                    self.engine.resume()
                    return
                self.engine.resume()
                self._link_return(target, mode)
            case SiteKind.STEPPED:
                self.engine.finish_step(True)
                done = budget is None or budget.completed()
                vcpu.inhibited = self.engine.shadowed and not done
                vcpu.eip, vcpu.cpl = site.target if done else site.translation.block.entry, site.translation.mode.cpl
                self.engine.stepped()
            case SiteKind.PROTECTED:
                vcpu.eip, vcpu.cpl = site.address, site.translation.mode.cpl
                stats.architectural["exception 13"] += 1
                self.engine.exit(Raised(Vector.GP, 0))
            case SiteKind.ALONE:
                assert budget is not None
                self.engine.recover(address)
                vcpu.inhibited = site.translation.is_shadowed(site.address)
                budget.next_alone = True
                self.engine.resume()
            case SiteKind.OVERDRAWN:
                assert budget is not None
                self.engine.recover(address)
                if vm.stopped is not None:  # by the instruction before
                    self.engine.exact = True
                    return
                vcpu.inhibited = site.translation.is_shadowed(site.address)
                budget.overdrawn(unfinished)
                self.engine.resume()
            case SiteKind.UNDEFINED:
                stats.architectural["exception 6"] += 1
                vcpu.eip, vcpu.cpl = site.address, site.translation.mode.cpl
                self.engine.exit(Raised(Vector.UD))

    def _is_plain(self, instruction: Instruction) -> bool:
        """Whether an adapted access would not exit: it reaches memory that may be written, or that is only read, or faults by itself."""
        vm = self.vm
        mapping = vm.paging.look(move_address(vm, instruction), False)
        return mapping is None or mapping.gpa >> 12 < vm.memory.count and not vm.memory.state[mapping.gpa >> 12] & TABLE

    def _step_callout(self, exit_: Sensitive) -> None:
        """The instruction to be stepped is emulated: it is done at once."""
        vcpu = self.vm.vcpu
        before, self.engine.after_step, done = vcpu.delivered, None, self.engine.after_step
        going_on = self.engine.handled(exit_)
        self.engine.after_step = done
        self.engine.step_done(vcpu.delivered == before and exit_.row.name not in _NO_TRAP_BEHIND)
        if going_on:
            self.engine.resume()

    def _link_return(self, target: int, mode: Mode) -> None:
        try:
            if self.cache.lookup(target, mode) is not None:
                self.cache.link_return(target, mode)
        except CacheFull:
            pass  # the next translation flushes

    def _page_fault(self, gva: int, error: int, address: int) -> None:
        stats, window = self.vm.stats, self.code.window
        if not self.code.user and window.holds(gva) and window.on_doorbell(gva):
            self._doorbell(address)
            return
        try:
            outcome = self.engine.mmu.fault(gva, bool(error & Fault.W), self.code.user, False)
        except GuestPageFault as fault:
            stats.architectural["exception 14"] += 1
            self.engine.recover(address)
            self.engine.exit(PageFault(fault.gva, fault.code))
            return
        match outcome:
            case None:
                stats.architectural["hidden page fault"] += 1
                if self.engine.mmu.unchecked_directories:
                    self.engine.recover(address)
                    self.engine.tables_changed()
                    self.engine.resume()
                    return
                if self.code.opened:
                    self.code.opened = False
                    translation = self.cache.translation_at(address)
                    if translation is not None and translation.alive:
                        return
                    self.engine.recover(address)  # the code that runs was written: once over the writing instruction, then anew
                    self.engine.step_once()
                    self.engine.resume()
            case StepOver(gfn):
                stats.architectural["directory write"] += 1
                self.code.adaptation.faulted(self.engine.recover(address), self.vm.vcpu.eip)
                self.engine.step_over_directory_write(gfn)
            case DeviceAccess(gpa):
                stats.architectural["device memory"] += 1
                self.code.adaptation.faulted(self.engine.recover(address), self.vm.vcpu.eip)
                self.engine.exit(DeviceMemory(gpa, gva, bool(error & Fault.W)))

    def _doorbell(self, address: int) -> None:
        """The guest sets IF while an interrupt waits: the whole instruction is emulated instead."""
        translation = self.engine.recover(address)
        vcpu = self.vm.vcpu
        self.vm.stats.architectural["interrupt window"] += 1
        instruction = next((i for i in translation.block.instructions if i.address == vcpu.eip), None)
        row = classify(instruction.opcode, instruction.modrm) if instruction else None
        if instruction is None or row is None:  # the guest itself writes there, where it has nothing: it harms only itself
            self.code.window.ring(False)
            return
        self.engine.exit(Sensitive(instruction, row))
