"""Guest-linear memory as the virtual CPU itself reads and writes it: descriptor tables, stacks, operands of emulated code.

Walks the guest's tables with the guest's rights, so it raises exactly the page faults that the CPU would. Knows no segment.
"""

from __future__ import annotations

from vmm.memory import GuestMemory
from vmm.mmu.walk import GuestPaging


class LinearMemory:
    """Reads and writes by linear address. user: with user-mode rights; otherwise as the supervisor. All may raise GuestPageFault.

    device(gpa, size, value or None) answers where there is no RAM.
    """

    def __init__(self, memory: GuestMemory, paging: GuestPaging) -> None:
        self.memory, self.paging = memory, paging

    def read(self, gva: int, size: int, user: bool = False, fetch: bool = False) -> bytes:
        """`size` bytes from `gva`."""
        room = 0x1000 - (gva & 0xFFF)
        paging = self.paging
        gva &= paging.mask
        gpa = paging.walk(gva, False, user, fetch).gpa if user or fetch else paging.supervisor(gva, False)
        if size <= room:
            return self.memory.read(gpa, size)
        return self.memory.read(gpa, room) + self.read(gva + room, size - room, user, fetch)

    def write(self, gva: int, data: bytes, user: bool = False) -> None:
        """Writes `data` at `gva`; nothing is written when any of it would fault."""
        room = 0x1000 - (gva & 0xFFF)
        paging = self.paging
        gva &= paging.mask
        gpa = paging.walk(gva, True, user).gpa if user else paging.supervisor(gva, True)
        if len(data) <= room:
            self.memory.write(gpa, data)
            return
        behind = paging.walk(gva + room & paging.mask, True, user).gpa
        self.memory.write(gpa, data[:room])
        self.memory.write(behind, data[room:])

    def check_writable(self, gva: int, size: int, user: bool = False) -> None:
        """Raises the fault that a write of `size` bytes at `gva` would."""
        for page in range(gva & ~0xFFF, gva + size, 0x1000):
            self.paging.walk(max(page, gva) & self.paging.mask, True, user)

    def read_int(self, gva: int, size: int, user: bool = False) -> int:
        """An unsigned little-endian number of `size` bytes."""
        return int.from_bytes(self.read(gva, size, user), "little")

    def write_int(self, gva: int, size: int, value: int, user: bool = False) -> None:
        """Writes the low `size` bytes of a number."""
        self.write(gva, (value & (1 << 8 * size) - 1).to_bytes(size, "little"), user)
