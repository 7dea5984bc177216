"""Host-physical memory without a CPU, for tests of what only needs frames: the part of the machine that the MMU uses.

Counts TLB flushes, and knows nothing else of an engine.
"""

from typing import cast

from vmm.cpu_state import Cpu
from vmm.machine import FRAME, Machine, OutOfFrames


class PlainMachine:
    """`frames` frames of memory. on_flush: called at every TLB flush."""

    def __init__(self, frames: int, run: int = 80) -> None:
        self.size = frames * FRAME
        self.memory = memoryview(bytearray(self.size))
        self.words, self.quads = self.memory.cast("I"), self.memory.cast("Q")
        self._free = [hfn for start in range(1, 4) for hfn in range(start, frames - run, 3)]
        self._top = frames
        self.state = [0] * (Cpu.CR4 + 2)
        self.flushes = 0
        self.dropped: list[int] = []

    def machine(self) -> Machine:
        """Itself, as what the MMU takes it for."""
        return cast(Machine, self)

    def allocate(self, count: int) -> list[int]:
        if count > len(self._free):
            raise OutOfFrames(f"{count} wanted, {len(self._free)} free")
        taken, self._free = self._free[-count:], self._free[:-count]
        return taken

    def allocate_run(self, count: int) -> int:
        self._top -= count
        return self._top

    def release(self, frames: list[int]) -> None:
        assert not set(frames) & set(self._free), "released twice"
        self._free += frames

    def clear(self, hfn: int) -> None:
        self.memory[hfn * FRAME : (hfn + 1) * FRAME] = bytes(FRAME)

    def set_cr3(self, value: int) -> None:
        self.flushes += 1

    def flush_tlb(self) -> None:
        self.flushes += 1

    def drop_code(self, linear: int, size: int) -> None:
        self.dropped.append(linear)
