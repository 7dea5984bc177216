"""Gates: where an event of a guest leads, known as long as nothing changes that says so: the gate, the descriptors and the table entries on the way.

For 32-bit gates in protected mode into code at an inner or the same level. What differs from event to event (the stack pointer in the TSS, flags,
the frame) is not remembered. Knows no delivery: the slow one finds out, and says what it found.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmm.faults import GuestFault
from vmm.mmu.footprint import Words, footprint, word_index
from vmm.mmu.linear import LinearMemory
from vmm.vcpu import Vcpu
from vmm.x86.descriptors import Segment, system_type

_MOST = 512
_PATIENCE = 8


@dataclass(slots=True)
class Entry:
    """What a gate leads to. cleared: flags that entering clears. stack: SS of an inner level, whose ESP is the word `esp_at`; None: the level stays.

    tables, pointers: the vCPU's, when it was found, and PAE's. words: what it depends on, and their values then. used: since then.
    """

    code: Segment
    offset: int
    level: int
    cleared: int
    stack: Segment | None
    esp_at: int
    tables: object = None
    pointers: list[int] | None = None
    words: Words = len
    values: object = None
    used: bool = False


class Gates:
    """The gates of one vCPU that are known."""

    def __init__(self, vcpu: Vcpu, linear: LinearMemory) -> None:
        self.vcpu, self.linear, self.quads = vcpu, linear, linear.memory.machine.quads
        self._known: dict[tuple[int, int, bool, int], Entry] = {}
        self._fruitless: dict[tuple[int, int, bool, int], int] = {}  # times that something had changed before an entry was used

    def find(self, vector: int, software: bool) -> Entry | None:
        """The entry for an event at the vCPU's present level, if it is known and still holds."""
        vcpu = self.vcpu
        entry = self._known.get((vector, vcpu.cr3, software, vcpu.cpl))
        if entry is None or entry.tables != vcpu.tables() or entry.words(self.quads) != entry.values or entry.pointers != self.linear.paging.pdptes:
            return None
        entry.used = True
        return entry

    def remember(self, vector: int, software: bool, cpl: int, selector: int, entry: Entry) -> None:
        """An event at level `cpl` went by the code descriptor of `selector`: from now on that is known, if it can be."""
        vcpu, memory, paging = self.vcpu, self.linear.memory, self.linear.paging
        key = vector, vcpu.cr3, software, cpl
        before = self._known.get(key)
        if before is not None and not before.used:
            self._fruitless[key] = self._fruitless.get(key, 0) + 1
        if selector & 4 or self._fruitless.get(key, 0) > _PATIENCE:
            return
        parts = [(vcpu.idt_base + 8 * vector & 0xFFFFFFFF, 8), (vcpu.gdt_base + (selector & 0xFFF8) & 0xFFFFFFFF, 8)]
        try:
            if entry.stack is not None:
                tr = vcpu.tr
                at = tr.base + 4 + 8 * entry.level & 0xFFFFFFFF
                if at & 7 != 4 or not system_type(tr.attributes) & 8:  # else ESP, which changes, would be in the words
                    return
                parts += [(at + 4, 2), (vcpu.gdt_base + (entry.stack.selector & 0xFFF8) & 0xFFFFFFFF, 8)]
                if entry.stack.selector & 4 or entry.stack.base or not entry.stack.wide or (esp_at := word_index(memory, paging, at)) is None:
                    return
                entry.esp_at = esp_at
            words = footprint(memory, paging, parts)
        except GuestFault:
            return
        if words is None:
            return
        if len(self._known) >= _MOST:
            self._known.clear()
            self._fruitless.clear()
        entry.tables, entry.pointers, entry.words, entry.values = vcpu.tables(), list(paging.pdptes), words, words(self.quads)
        self._known[key] = entry
