"""Mistakes put into our own code on purpose, one at a time: what the harness must notice.

Each is a context manager that replaces one piece of binary translation by a wrong one. Knows the pieces by name: when one is renamed its
mutant fails, and is to be put where the code went.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from unittest.mock import patch

from bt.block import Translation
from bt.cache import TranslationCache
from bt.emit import _ROUTINES, Emitter
from bt.sensitive import Treatment
from vmm.emulate import ROUTINES
from vmm.events import Events
from vmm.mmu.shadow import ShadowMmu
from vmm.mmu.walk import GuestPaging
from vmm.vcpu import DeprivilegedVcpu
from vmm.x86.bits import Cr0, Fault, Flag

Mutant = Callable[[], Any]


def no_invalidation() -> Any:
    """Translated code stays when the guest writes it."""
    return patch.object(TranslationCache, "invalidate", lambda self, gfn: None)


def no_invlpg() -> Any:
    """INVLPG and loads of CR3 leave shadow tables that are out of sync as they are."""
    return patch.multiple(ShadowMmu, invalidate=lambda self, gva: None, _resync=lambda self: None)


def lost_interrupt_flag() -> Any:
    """CLI, translated to nothing."""
    return patch.dict(_ROUTINES, {Treatment.CLEAR_IF: Emitter.nothing})


def lost_dirty_bit() -> Any:
    """A write sets A but not D."""
    mark = GuestPaging._mark

    def marked(self: GuestPaging, pde_gpa: int, pde: int, entry_gpa: int, entry: int, write: bool) -> bool:
        mark(self, pde_gpa, pde, entry_gpa, entry, False)
        return True

    return patch.object(GuestPaging, "_mark", marked)


def wrong_error_code() -> Any:
    """Page faults always say that the page was not there."""
    error = GuestPaging._error
    return patch.object(GuestPaging, "_error", lambda self, *how: error(self, *how) & ~Fault.P)


def eip_off_by_one() -> Any:
    """An exception is reported one byte behind its instruction."""
    locate = Translation.locate

    def located(self: Translation, address: int) -> tuple[int, int, bool]:
        guest, recovery, exact = locate(self, address)
        return guest + 1, recovery, exact

    return patch.object(Translation, "locate", located)


def popf_keeps_if() -> Any:
    """POPF changes every flag but IF."""
    pop = ROUTINES["popf"]

    def popped(vm: Any, instruction: Any) -> Any:
        before = vm.vcpu.virtual_flags
        result = pop(vm, instruction)
        vm.vcpu.virtual_flags = vm.vcpu.virtual_flags & ~Flag.IF | before & Flag.IF
        return result

    return patch.dict(ROUTINES, {"popf": popped})


def no_write_protection() -> Any:
    """The guest's CR0.WP is taken to be clear."""

    load = GuestPaging.load

    def loaded(self: GuestPaging, cr0: int, cr3: int, cr4: int, efer: int, **how: bool) -> bool:
        return load(self, cr0 & ~Cr0.WP, cr3, cr4, efer, **how)

    return patch.object(GuestPaging, "load", loaded)


def trap_flag_kept() -> Any:
    """The handler of an exception runs with TF set."""
    deliver = Events._deliver

    def delivered(self: Events, *args: Any, **how: Any) -> None:
        trap_flag = self.vcpu.flags() & Flag.TF
        deliver(self, *args, **how)
        if trap_flag:
            self.vcpu.set_flags(self.vcpu.flags() | Flag.TF)

    return patch.object(Events, "_deliver", delivered)


def stale_selector() -> Any:
    """What a guest reads of CS is the selector that it had first."""
    return patch.object(DeprivilegedVcpu, "cs", property(lambda self: self._cs, lambda self, segment: setattr(self, "_cs", segment)))


MUTANTS: Final[tuple[Mutant, ...]] = (
    no_invalidation,
    no_invlpg,
    lost_interrupt_flag,
    lost_dirty_bit,
    wrong_error_code,
    eip_off_by_one,
    popf_keeps_if,
    no_write_protection,
    trap_flag_kept,
    stale_selector,
)
