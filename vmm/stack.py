"""A stack: pushes and reads at the top that a segment and a stack pointer make, 16 or 32 bits wide (SDM 3A 3.4.5, the B flag).

Knows descriptors' hidden parts and guest-linear memory. Changes no register: `esp` is what the stack pointer becomes.
"""

from __future__ import annotations

from vmm.mmu.linear import LinearMemory
from vmm.x86.descriptors import Segment


class Stack:
    """The stack of `segment` at `esp`. user: with user-mode rights. A 16-bit stack wraps at 64 KiB and leaves ESP's upper half alone."""

    def __init__(self, linear: LinearMemory, segment: Segment, esp: int, user: bool) -> None:
        self.linear, self.segment, self.esp, self.user = linear, segment, esp, user
        self._mask = 0xFFFFFFFF if segment.wide else 0xFFFF

    def push(self, *values: int, size: int = 4) -> None:
        """Pushes values of `size` bytes, the first one first. Raises GuestPageFault, with nothing written."""
        esp = self._moved(-size * len(values))
        image = b"".join((value & (1 << 8 * size) - 1).to_bytes(size, "little") for value in reversed(values))
        parts = self._parts(esp, len(image))
        for address, length in parts[1:]:
            self.linear.check_writable(address, length, self.user)
        for address, length in parts:
            self.linear.write(address, image[:length], self.user)
            image = image[length:]
        self.esp = esp

    def peek(self, count: int, size: int = 4, *, skip: int = 0) -> list[int]:
        """The `count` topmost values behind `skip` bytes; they stay there. Raises GuestPageFault."""
        image = b"".join(self.linear.read(address, length, self.user) for address, length in self._parts(self._moved(skip), size * count))
        return [int.from_bytes(image[n : n + size], "little") for n in range(0, len(image), size)]

    def drop(self, size: int) -> None:
        """Moves the stack pointer over `size` bytes."""
        self.esp = self._moved(size)

    def _moved(self, by: int) -> int:
        return self.esp & ~self._mask | self.esp + by & self._mask

    def _parts(self, esp: int, size: int) -> list[tuple[int, int]]:
        """(linear address, bytes) of `size` bytes at `esp`: two parts where the pointer wraps between them."""
        start, base = esp & self._mask, self.segment.base
        room = self._mask + 1 - start
        if size <= room:
            return [(base + start & 0xFFFFFFFF, size)]
        return [(base + start & 0xFFFFFFFF, room), (base, size - room)]
