"""What a hypercall reads and writes by the addresses that it is given: the guest's linear memory, with its kernel's rights.

A wild address is the guest's mistake: it gets -EFAULT. Knows no hypercall.
"""

from __future__ import annotations

import struct
from typing import Final

from vmm.faults import GuestPageFault
from vmm.mmu.direct import VMM_START, DirectMmu
from vmm.mmu.frames import Errno, Refused

_REQUEST: Final = struct.Struct("<4I")
_WILD = "a wild address"


class Arguments:
    """Access for one domain. Everything may raise Refused with -EFAULT."""

    def __init__(self, mmu: DirectMmu) -> None:
        self.mmu, self.memory, self.memory_words = mmu, mmu.machine.memory, mmu.machine.words

    def read(self, gva: int, size: int) -> bytes:
        """`size` bytes."""
        if gva + size > VMM_START:
            raise Refused(Errno.FAULT, _WILD)
        try:
            if (gva & 0xFFF) + size <= 0x1000:
                at = self.mmu.translate(gva)
                return bytes(self.memory[at : at + size])
            return self.mmu.read(gva, size)
        except GuestPageFault:
            raise Refused(Errno.FAULT, _WILD) from None

    def view(self, gva: int, size: int) -> memoryview | bytes:
        """`size` bytes to be looked at before anything changes: those of one page are not copied."""
        if (gva & 0xFFF) + size > 0x1000 or gva >= VMM_START:
            return self.read(gva, size)
        try:
            at = self.mmu.translate(gva)
        except GuestPageFault:
            raise Refused(Errno.FAULT, _WILD) from None
        return self.memory[at : at + size]

    def request(self, gva: int) -> tuple[int, int, int, int]:
        """Two 64-bit words in halves: a request of mmu_update."""
        if gva & 0xFFF > 0xFF0 or gva >= VMM_START:
            return _REQUEST.unpack(self.read(gva, 16))
        try:
            return _REQUEST.unpack_from(self.memory, self.mmu.translate(gva))
        except GuestPageFault:
            raise Refused(Errno.FAULT, _WILD) from None

    def words(self, gva: int, count: int) -> tuple[int, ...]:
        """`count` 32-bit words."""
        return struct.unpack(f"<{count}I", self.read(gva, 4 * count))

    def quads(self, gva: int, count: int) -> tuple[int, ...]:
        """`count` 64-bit words."""
        return struct.unpack(f"<{count}Q", self.read(gva, 8 * count))

    def write(self, gva: int, data: bytes) -> None:
        """Writes bytes."""
        if gva + len(data) > VMM_START:
            raise Refused(Errno.FAULT, _WILD)
        try:
            self.mmu.write(gva, data)
        except GuestPageFault:
            raise Refused(Errno.FAULT, _WILD) from None

    def write_word(self, gva: int, value: int) -> None:
        """Writes one 32-bit word."""
        if gva & 3 or gva >= VMM_START:
            self.write_words(gva, value)
            return
        try:
            at = self.mmu.translate(gva, True)
        except GuestPageFault:
            raise Refused(Errno.FAULT, _WILD) from None
        self.memory_words[at >> 2] = value & 0xFFFFFFFF
        mfn, frames = at >> 12, self.mmu.frames
        if frames.coded[mfn]:
            self.mmu.written(mfn)

    def write_words(self, gva: int, *values: int) -> None:
        """Writes 32-bit words."""
        self.write(gva, struct.pack(f"<{len(values)}I", *(value & 0xFFFFFFFF for value in values)))
