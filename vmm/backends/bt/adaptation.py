"""Adaptive translation: moves that keep faulting are translated again, as callouts, and back when what they reach has become plain memory.

A store into a device or a guest directory costs a page fault, the look at what it reached, and a single step. Where an instruction does that
often, the VMM makes the access itself: start innocent, adapt. Knows translations and counts; no memory and no exits.
"""

from __future__ import annotations

from bt.block import Block, Mode, Site, Translation
from bt.cache import TranslationCache
from bt.sensitive import ADAPTED, can_adapt

_FAULTS = 16  # of one instruction, before it is adapted
_PLAIN = 16  # accesses that would not have exited, more than those that would, before it is taken back
_PATIENCE = 16  # times as many faults before one that was taken back is adapted again
_MOST = 4096  # instructions that are counted


class Adaptation:
    """Which moves of the guest's code in one cache are callouts. enabled: without it none is. sites: linear address of each to how many of
    its accesses were plain, less those that were not."""

    def __init__(self, cache: TranslationCache, *, enabled: bool) -> None:
        self.cache, self.enabled = cache, enabled
        self.sites: dict[int, int] = {}
        self._faults: dict[int, int] = {}

    def faulted(self, translation: Translation, eip: int) -> None:
        """The instruction at `eip` exited because of what it accesses. Its translation is out of use when it is to be adapted."""
        mode = translation.mode
        if not self.enabled or translation.single or mode.careful or not translation.alive:
            return
        linear = mode.cs_base + eip & 0xFFFFFFFF
        if linear not in self.sites:
            if len(self._faults) > _MOST:
                self._faults.clear()
            count = self._faults[linear] = self._faults.get(linear, 0) + 1
            if count < _FAULTS:
                return
        rows = zip(translation.block.instructions, translation.block.rows, strict=True)
        if any(instruction.address == eip and row is None and can_adapt(instruction) for instruction, row in rows):
            self.sites.setdefault(linear, 0)
            self.cache.retire(translation)

    def mark(self, block: Block, mode: Mode) -> None:
        """Gives adapted instructions of a block that is to be translated their row."""
        if mode.careful:
            return
        for n, instruction in enumerate(block.instructions):
            if mode.cs_base + instruction.address & 0xFFFFFFFF in self.sites and block.rows[n] is None and can_adapt(instruction):
                block.rows[n] = ADAPTED

    def made(self, site: Site, plain: bool) -> None:
        """An adapted access was made. plain: it would not have exited. The site is taken back when that is the rule."""
        translation = site.translation
        linear = translation.mode.cs_base + site.address & 0xFFFFFFFF
        if linear in self.sites:
            balance = self.sites[linear] = max(self.sites[linear] + (1 if plain else -1), -_PLAIN)
            if balance < _PLAIN:
                return
            del self.sites[linear]
            self._faults[linear] = -_PATIENCE * _FAULTS
        if translation.alive:
            self.cache.retire(translation)
