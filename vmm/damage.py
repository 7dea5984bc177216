"""Damage to a guest from outside: random bytes at random places of its memory, as a stray write by hardware or a mad driver would leave them.

Knows guest memory. What was derived from it (translations, shadow entries) ends by the way that the memory is written. Knows no guest.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from vmm.memory import GuestMemory


def scribble(memory: GuestMemory, count: int, seed: int) -> Iterator[tuple[int, int, int]]:
    """Writes `count` bytes; yields (gpa, before, after) of each. The same seed damages memory of the same size in the same places."""
    chance = random.Random(seed)
    for _ in range(count):
        gpa, after = chance.randrange(memory.size), chance.randrange(256)
        before = memory.read(gpa, 1)[0]
        memory.write(gpa, bytes((after,)))
        yield gpa, before, after
