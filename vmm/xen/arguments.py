"""What a hypercall reads and writes by the addresses that it is given: the guest's linear memory, with its kernel's rights.

A wild address is the guest's mistake: it gets -EFAULT. Knows no hypercall.
"""

from __future__ import annotations

import struct

from vmm.faults import GuestPageFault
from vmm.mmu.direct import VMM_START, DirectMmu
from vmm.mmu.frames import Errno, Refused

_WILD = "a wild address"


class Arguments:
    """Access for one domain. Everything may raise Refused with -EFAULT."""

    def __init__(self, mmu: DirectMmu) -> None:
        self.mmu = mmu

    def read(self, gva: int, size: int) -> bytes:
        """`size` bytes."""
        if gva + size > VMM_START:
            raise Refused(Errno.FAULT, _WILD)
        try:
            return self.mmu.read(gva, size)
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

    def write_words(self, gva: int, *values: int) -> None:
        """Writes 32-bit words."""
        self.write(gva, struct.pack(f"<{len(values)}I", *(value & 0xFFFFFFFF for value in values)))
