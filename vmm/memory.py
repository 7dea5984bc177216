"""Guest-physical memory of one VM: scattered frames of the host-physical memory, seen as one range from gpa 0.

Knows which frame stands behind which guest frame, and what each guest frame is currently used for (its state). Knows no
page table: whoever protects a frame registers its use here, and whoever writes on behalf of the guest asks here.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.machine import FRAME, Machine

# Uses of a guest frame that forbid a plain writable mapping: bits of `GuestMemory.state`.
TABLE = 1  # a guest page table with a shadow (a trace)
CODE = 2  # translated code was made of it
EXECUTED = 4  # user code on it is executed directly
MIXED = 8  # executed and written by the same mapping
DESCRIPTORS = 16  # a descriptor table with shadow descriptors


class GuestMemory:
    """`size` bytes of RAM (a multiple of the frame size) from gpa 0. identical: gpa and hpa are the same.

    frames[gfn] is the hfn behind a guest frame; ram[gfn] is that of the RAM there, whatever is read in its place. state[gfn] holds the uses that
    forbid writing to it unnoticed. When the VMM writes for the guest (`write`), `before_write(gfn)` is called first for a frame whose state is not
    0: it must end those uses. When it could not (False), `after_write(gfn)` is called behind the write.
    """

    def __init__(self, machine: Machine, size: int, *, identical: bool = False) -> None:
        self.machine = machine
        self.size = size
        self.identical = identical
        self.frames = list(range(size // FRAME)) if identical else machine.allocate(size // FRAME)
        self.ram = self.frames  # of its own where there is ROM
        self.count = len(self.frames)
        self.state = bytearray(self.count)
        self.memory, self.words = machine.memory, machine.words
        self.before_write: Callable[[int], bool] = lambda gfn: True
        self.after_write: Callable[[int], None] = lambda gfn: None
        self.rom: dict[int, int] = {}  # gfn -> hfn of what is read there and not written; inside RAM it stands in `frames` as well
        self.read_only: dict[int, int] = {}  # gfn outside RAM -> hfn of a frame that may be read in its place

    def close(self) -> None:
        """Gives the frames back to the machine."""
        if not self.identical:  # those are the guest's by their place
            self.machine.release(self.frames)
        self.frames = []
        self.count = 0

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes from guest-physical memory; outside RAM and ROM all ones."""
        first, offset = gpa >> 12, gpa & 0xFFF
        if offset + size <= FRAME and first < self.count:
            at = self.frames[first] << 12 | offset
            return bytes(self.memory[at : at + size])
        parts = []
        while size > 0:
            part = min(size, FRAME - offset)
            if first < self.count:
                at = self.frames[first] << 12 | offset
                parts.append(bytes(self.memory[at : at + part]))
            else:
                parts.append(self._outside(first, offset, part))
            size, first, offset = size - part, first + 1, 0
        return b"".join(parts)

    def _outside(self, gfn: int, offset: int, size: int) -> bytes:
        hfn = self.rom.get(gfn)
        return b"\xff" * size if hfn is None else bytes(self.memory[hfn << 12 | offset : (hfn << 12 | offset) + size])

    def write(self, gpa: int, data: bytes) -> None:
        """Writes guest-physical memory; what lies outside RAM is dropped."""
        gfn, offset, done = gpa >> 12, gpa & 0xFFF, 0
        while done < len(data) and gfn < self.count:
            part = min(len(data) - done, FRAME - offset)
            if gfn in self.rom:
                gfn, offset, done = gfn + 1, 0, done + part
                continue
            opened = not self.state[gfn] or self.before_write(gfn)
            at = self.frames[gfn] << 12 | offset
            self.memory[at : at + part] = data[done : done + part]
            if not opened:
                self.after_write(gfn)
            gfn, offset, done = gfn + 1, 0, done + part

    def read32(self, gpa: int) -> int:
        """An aligned 32-bit word; all ones outside RAM and ROM."""
        gfn = gpa >> 12
        if gfn < self.count:
            return self.words[self.frames[gfn] << 10 | (gpa & 0xFFF) >> 2]
        return int.from_bytes(self._outside(gfn, gpa & 0xFFF, 4), "little")

    def read64(self, gpa: int) -> int:
        """An aligned 64-bit word; all ones outside RAM and ROM."""
        gfn = gpa >> 12
        if gfn < self.count:
            return self.machine.quads[self.frames[gfn] << 9 | (gpa & 0xFFF) >> 3]
        return int.from_bytes(self._outside(gfn, gpa & 0xFFF, 8), "little")

    def set_bits(self, gpa: int, bits: int) -> None:
        """Ors bits into the aligned 32-bit word of a page-table entry, as the page walker does: no use of the frame ends by it."""
        gfn = gpa >> 12
        if gfn < self.count and gfn not in self.rom:
            self.words[self.frames[gfn] << 10 | (gpa & 0xFFF) >> 2] |= bits
