"""Guest memory by frames: which of them hold something, and which have changed since they were looked at last.

A frame has changed when its digest has: a keyed one of 64 bits, so that no guest can make two frames look alike on purpose. That works the same
under every back-end, and costs the guest nothing between two looks (docs/adr/0024). Knows no back-end and no file.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

from vmm.machine import FRAME
from vmm.memory import GuestMemory

_ZERO = bytes(FRAME)


class Watch:
    """What the frames of one memory held when each was looked at last; before the first look `frames` by gfn, and zeroes."""

    def __init__(self, memory: GuestMemory, frames: Mapping[int, bytes]) -> None:
        self.memory = memory
        self._digests = array("q", [hash(_ZERO)]) * memory.count
        for gfn, held in frames.items():
            self._digests[gfn] = hash(held)

    def changed(self) -> dict[int, bytes]:
        """The frames that are not as they were at the last look, by gfn, with what they hold now: this is a look at them."""
        return self.look_at(self.changed_numbers())

    def changed_numbers(self) -> list[int]:
        """The same frames, without a look at them: they stay changed."""
        memory, digests = self.memory.memory, self._digests
        found: list[int] = []
        for gfn, hfn in enumerate(self.memory.ram):
            at = hfn * FRAME
            if hash(bytes(memory[at : at + FRAME])) != digests[gfn]:
                found.append(gfn)
        return found

    def look_at(self, gfns: Sequence[int]) -> dict[int, bytes]:
        """What frames hold now; they have changed when they hold something else later."""
        memory, frames = self.memory.memory, self.memory.ram
        found = {gfn: bytes(memory[frames[gfn] * FRAME : (frames[gfn] + 1) * FRAME]) for gfn in gfns}
        for gfn, held in found.items():
            self._digests[gfn] = hash(held)
        return found


def fill(memory: GuestMemory, frames: Mapping[int, bytes]) -> None:
    """Makes these frames, and zeroes elsewhere, all that a memory holds that nothing has been derived from yet."""
    everything = memory.memory
    for gfn, hfn in enumerate(memory.ram):
        at = hfn * FRAME
        held = frames.get(gfn)
        if held is not None:
            everything[at : at + FRAME] = held
        elif bytes(everything[at : at + FRAME]) != _ZERO:  # a frame of the host's that was never written stays unallocated
            everything[at : at + FRAME] = _ZERO
