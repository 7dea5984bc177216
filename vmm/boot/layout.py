"""Where everything goes in guest memory, decided in full before a byte of it is written.

Knows ranges of guest-physical addresses and which of them a PC has as memory. Knows no image format.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from vmm.boot.image import mib
from vmm.bus import Memory
from vmm.errors import InputError
from vmm.start import STACK

PAGE: Final = 0x1000
EBDA: Final = 0x9_FC00  # conventional memory ends where the extended BIOS data area begins
HIGH: Final = 0x10_0000  # the first address above the video memory and the ROMs
# SeaBIOS keeps its tables (ACPI) in the last 128 KiB of memory, so QEMU's memory map has them reserved. Ours does as well: GNU Mach and
# others print the map.
FIRMWARE_TABLES: Final = 0x2_0000
_OPTION_ROMS: Final = (0xC_8000, 0xF_0000)
_LOW: Final = (0x9000, EBDA)
_LOWEST: Final = (STACK, 0x9000)  # never page 0: the interrupt vectors and BIOS data lie there, and nothing should be at address 0
_ADDRESS_SPACE: Final = 1 << 32
_ZEROS: Final = bytes(1 << 20)


class _Piece(NamedTuple):
    gpa: int
    data: bytes
    size: int  # bytes; zeros follow `data`


class Layout:
    """The future contents of `memory_size` bytes of guest memory for the image `name` (which every message names)."""

    def __init__(self, name: str, memory_size: int) -> None:
        self._name = name
        self._limit = min(memory_size, _ADDRESS_SPACE)
        self._pieces: list[_Piece] = []
        self._taken: list[tuple[int, int]] = []
        self._total = 0

    @property
    def high_end(self) -> int:
        """The end of the memory above 1 MiB that a guest may use; HIGH when there is none."""
        return max(HIGH, self._limit - FIRMWARE_TABLES)

    @property
    def memory_end(self) -> int:
        """The end of the guest's memory, in bytes from 0."""
        return self._limit

    @property
    def low_end(self) -> int:
        """The end of conventional memory."""
        return min(EBDA, self._limit)

    @property
    def end(self) -> int:
        """The address after everything that is placed so far."""
        return max((end for _, end in self._taken), default=0)

    def put(self, what: str, gpa: int, data: bytes, size: int) -> None:
        """Puts `what`, `data` and zeros up to `size` bytes, at `gpa` where it must go. Raises InputError when that is not all memory."""
        if not 0 <= gpa <= gpa + size <= self._limit:
            raise InputError(f"{self._name}: {what} at {gpa:#x} ({size} bytes) lies outside the guest's memory ({mib(self._limit)})")
        self._total += size
        if self._total > self._limit:  # only overlaps add up to this; thousands of them would take for ever to write
            raise InputError(f"{self._name}: its segments overlap and add up to more than the guest's memory ({mib(self._limit)})")
        self._pieces.append(_Piece(gpa, data, size))
        self._taken.append((gpa, gpa + size))

    def room(self, size: int, ranges: Iterable[tuple[int, int]], align: int) -> int | None:
        """The lowest aligned address with `size` free bytes in the first of `ranges` that has them; taken from now on. None: no room."""
        for low, high in ranges:
            gpa = self._lowest(size, low, min(high, self._limit), align)
            if gpa is not None:
                self._taken.append((gpa, gpa + size))
                return gpa
        return None

    def after_kernel(self, what: str, size: int, align: int = PAGE) -> int:
        """Room for a module: above all that is placed, else in any free memory above 1 MiB. Raises InputError when there is none."""
        ranges = ((self.end, self.low_end), (max(self.end, HIGH), self.high_end), (HIGH, self.high_end))
        return self._found(self.room(size, ranges, align), what, size)

    def for_tables(self, what: str, size: int, align: int = 16) -> int:
        """Room for what the loader hands over: in conventional memory, where QEMU has it, else above 1 MiB, else wherever there is room."""
        ranges = (_LOW, _LOWEST, (HIGH, self.high_end), (PAGE, self._limit))
        return self._found(self.room(size, ranges, align), what, size)

    def for_descriptors(self, size: int) -> int:
        """Room for the GDT: among the option ROMs, where QEMU's is. No guest's memory map has that, so it outlives careless kernels."""
        found = self.room(size, (_OPTION_ROMS,), 16)
        return self.for_tables("the descriptor table", size) if found is None else found

    def take(self, what: str, gpa: int, size: int) -> None:
        """Keeps a range free of anything else: the kernel will use it. Raises InputError when it is not all memory."""
        self.put(what, gpa, b"", 0)
        if gpa + size > self._limit:
            raise InputError(f"{self._name}: too little memory ({mib(self._limit)}): {what} needs {size} bytes at {gpa:#x}")
        self._taken.append((gpa, gpa + size))

    def highest(self, what: str, size: int, end: int, align: int = PAGE) -> int:
        """The highest room below `end` that lies above all that is placed. Raises InputError when there is none."""
        gpa = (min(end, self.high_end) - size) // align * align
        if gpa < max(self.end, HIGH):
            raise InputError(f"{self._name}: too little memory ({mib(self._limit)}): no room for {what} ({size} bytes)")
        self._taken.append((gpa, gpa + size))
        return gpa

    def fill(self, gpa: int, data: bytes) -> None:
        """Settles the contents of an address that `room`, `after_kernel` or the like has given out."""
        self._pieces.append(_Piece(gpa, data, len(data)))

    def write(self, memory: Memory) -> None:
        """Writes everything, in the order in which it was put. Nothing can be wrong with it any more."""
        for piece in self._pieces:
            if piece.data:
                memory.write(piece.gpa, piece.data)
            for gpa in range(piece.gpa + len(piece.data), piece.gpa + piece.size, len(_ZEROS)):
                memory.write(gpa, _ZEROS[: piece.gpa + piece.size - gpa])

    def _lowest(self, size: int, low: int, high: int, align: int) -> int | None:
        gpa = -(-low // align) * align
        for start, end in sorted(self._taken):
            if gpa < end and start < gpa + size:
                gpa = -(-end // align) * align
        return gpa if gpa + size <= high else None

    def _found(self, gpa: int | None, what: str, size: int) -> int:
        if gpa is None:
            raise InputError(f"{self._name}: too little memory ({mib(self._limit)}): no room for {what} ({size} bytes)")
        return gpa
