"""Footprints: the words in host memory that what was read through a guest's tables depends on, table entries included.

Whoever reads the same things again and again remembers what came of it, and looks at those words only: that takes a twentieth of the walks.
Knows frames and the walk; knows nothing of what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter

from vmm.memory import GuestMemory
from vmm.mmu.walk import GuestPaging

Words = Callable[[memoryview], object]
"""Gets the words out of the machine's `quads`, as something that can be compared."""


def footprint(memory: GuestMemory, paging: GuestPaging, parts: Iterable[tuple[int, int]]) -> Words | None:
    """The words behind `parts`, pairs of a linear address and a size in bytes; None where one crosses a page or leaves RAM.

    Raises GuestFault where nothing is mapped. A bits are set before, as reading sets them.
    """
    places = []
    for linear, size in parts:
        last = linear + size - 1
        if (linear ^ last) >> 12:
            return None
        gpa = paging.walk(linear).gpa
        places += [*paging.trail(linear), *range(gpa & ~7, gpa + size, 8)]
    if any(at >> 12 >= memory.count for at in places):
        return None
    return itemgetter(*{memory.frames[at >> 12] << 9 | (at & 0xFFF) >> 3 for at in places})


def word_index(memory: GuestMemory, paging: GuestPaging, linear: int) -> int | None:
    """Index into the machine's `words` of an aligned 32-bit word that is mapped; None when it is not aligned or not in RAM."""
    gpa = paging.walk(linear).gpa
    return None if linear & 3 or gpa >> 12 >= memory.count else memory.frames[gpa >> 12] << 10 | (gpa & 0xFFF) >> 2
