"""How often each guest instruction was carried out: the counters in translated code, and what interrupts their runs.

Translated code counts at the head of a run of instructions. An instruction further on is carried out as often, less the times
that the guest left the run before it: for an exception, an interrupt, or a step. All of these come through two doors of the
machine, where the place before is compared with the place after. So the counts are exact, and nobody else pays for it.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter
from typing import TYPE_CHECKING, Final

from bt.block import CLEAN, SHADOWED, Translation
from bt.cache import TranslationCache
from bt.window import CODE, DOORBELL
from vmm.cpu_state import Cpu
from vmm.x86.bits import Vector

if TYPE_CHECKING:
    from vmm.vm import Vm

LARGE: Final = 1 << 30
_LOOK: Final = 2.0  # seconds between looks at the counters, which have 32 bits: none goes from LARGE round to 0 in that time


_Places = dict[int, dict[int, int]]  # start of a translation -> index of a map entry -> times


class Heat:
    """The counts of one VM, whose back-end counts. `attach` before it runs."""

    def __init__(self) -> None:
        self.caches: list[CacheHeat] = []
        self._state: memoryview
        self._stopped_at: int | None = None
        self._look = 0.0  # when the counters are to be looked at

    def attach(self, vm: Vm) -> None:
        """Watches `vm` from now on; what was counted before is forgotten."""
        machine = vm.machine
        self._state = state = machine.state
        self.caches = [CacheHeat(cache) for cache in vm.backend.caches.values()]
        interrupt, invalid, run = machine.on_interrupt, machine.on_invalid, machine.run
        def on_interrupt(vector: int) -> None:
            before, address = state[Cpu.EIP], state[Cpu.CR2]
            trap = state[machine.is_int]
            interrupt(vector)
            if not trap:
                self._exit(before, address if vector == Vector.PF else None)

        def on_invalid() -> None:
            before = state[Cpu.EIP]
            invalid()
            self._exit(before, None)

        def run_and_compare() -> None:
            if self._stopped_at != state[Cpu.EIP]:
                self._leave()
            self._keep_small()
            try:
                run()
            finally:
                self._stopped_at = state[Cpu.EIP]

        machine.on_interrupt, machine.on_invalid = on_interrupt, on_invalid
        name = "run"  # the instance's own name goes before the class's
        setattr(machine, name, run_and_compare)

    def of(self, cache: TranslationCache, translation: Translation) -> Counts:
        """The counts of a translation in `cache`, the run being over."""
        self._leave()
        return next(known for known in self.caches if known.cache is cache).counts(translation)

    def _leave(self) -> None:
        """The guest does not go on where the machine stopped."""
        if self._stopped_at is not None:
            for cache in self.caches:
                cache.left(self._stopped_at)
            self._stopped_at = None

    def _exit(self, before: int, faulted: int | None) -> None:
        moved = self._state[Cpu.EIP] != before
        for cache in self.caches:
            cache.exit(before, faulted, moved)

    def _keep_small(self) -> None:
        """Takes large counts out of their words, when the guest is not just counting."""
        now = time.monotonic()
        if now > self._look:
            if self._look:
                for cache in self.caches:
                    cache.fold(self._state[Cpu.EIP])
            self._look = now + _LOOK


class Counts:
    """The counts of one translation. entered: at its head. executed, exits: by guest EIP; exits are those for exceptions and page
    faults, hidden ones included, and for IF while an interrupt waits: those of trapping stubs stand in their sites."""

    def __init__(self) -> None:
        self.entered = 0
        self.executed: dict[int, int] = {}
        self.exits: dict[int, int] = {}
        self.emulated: dict[int, int] = {}  # of `executed`: carried out by the VMM, since an interrupt waited


class CacheHeat:
    """What is known of one translation cache beside its counters, by cache address."""

    def __init__(self, cache: TranslationCache) -> None:
        self.cache = cache
        self._forget()

    def _forget(self) -> None:
        self._flushes = self.cache.flushes
        self._exits: Counter[int] = Counter()
        self._left: Counter[int] = Counter()  # times that the guest left there before it was done
        self._rung: Counter[int] = Counter()  # the same by the doorbell: the VMM carried the instruction out
        self._folded: Counter[int] = Counter()  # counter -> what was taken out of its word
        self._placed: tuple[_Places, _Places, _Places] | None = None

    def exit(self, address: int, faulted: int | None, moved: bool) -> None:
        """An exit at a linear address, for a page fault at `faulted` if that is not None. moved: the guest goes on elsewhere."""
        cache = self.cache
        if cache.flushes != self._flushes:
            self._forget()
        elif 0 <= address - cache.base - CODE < len(cache.code):
            self._exits[address] += 1
            if moved:
                bell = faulted is not None and faulted - cache.base & ~0xFFF == DOORBELL
                (self._rung if bell else self._left)[address] += 1

    def left(self, address: int) -> None:
        """The guest was at a linear address, between exits, and goes on elsewhere."""
        if self.cache.flushes == self._flushes and 0 <= address - self.cache.base - CODE < len(self.cache.code):
            self._left[address] += 1

    def fold(self, address: int) -> None:
        """Makes room in the counters, unless code at `address`, where the guest will go on, holds a count in a register."""
        cache = self.cache
        if cache.flushes != self._flushes:
            self._forget()
        translation = cache.translation_at(address)
        if translation is not None and translation.locate(address)[1] not in (CLEAN, SHADOWED):
            return
        for known in cache.translations:
            for counter in known.counters.values():
                if cache.words[counter // 4] >= LARGE:
                    self._folded[counter] += cache.words[counter // 4]
                    cache.words[counter // 4] = 0

    def counts(self, translation: Translation) -> Counts:
        """Walks the map: a run's count from its counter on, less what left on the way."""
        if self._placed is None:
            if self.cache.flushes != self._flushes:
                self._forget()
            self._placed = self._place(self._exits), self._place(self._left), self._place(self._rung)
        exits, left, rung = (places.get(translation.start, {}) for places in self._placed)
        found, count, counters = Counts(), 0, translation.counters
        counted: set[int] = set()
        for at in range(translation.body):
            guest, flags = translation.guests[at], translation.recovery[at]
            if guest in counters and guest not in counted:
                if flags in (CLEAN, SHADOWED):  # where the counter stands; the instruction follows
                    counted.add(guest)
                    count = self._read(counters[guest])
                continue
            count -= left.get(at, 0)
            found.executed[guest] = count
            for places, by_guest in ((exits, found.exits), (rung, found.emulated)):
                if at in places:
                    by_guest[guest] = by_guest.get(guest, 0) + places[at]
        entry = counters.get(translation.block.entry)
        found.entered = self._read(entry) if entry is not None else 0
        return found

    def _read(self, counter: int) -> int:
        return self.cache.words[counter // 4] + self._folded[counter]

    def _place(self, counter: Counter[int]) -> _Places:
        found: _Places = {}
        for address, times in counter.items():
            translation = self.cache.translation_at(address)
            if translation is not None:
                here = found.setdefault(translation.start, {})
                at = bisect_right(translation.marks, address) - 1
                here[at] = here.get(at, 0) + times
        return found
