"""The two address spaces in which devices answer: the 64 KiB of ports and guest-physical memory outside RAM.

Knows who answers where and how wide an access a device takes. Must not know what any device does, nor guest RAM: the
memory side is asked only for guest-physical addresses (gpa) that RAM does not claim.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

PAGE_SHIFT = 12


class Device(Protocol):
    """Anything that answers at ports or at device memory. It knows offsets into its own range, never its address."""

    def access(self, offset: int, size: int, value: int | None) -> int:
        """One access of `size` bytes (1, 2 or 4) at `offset` in the device's range; `value` None is a read and returns the value,
        otherwise a write, which returns 0. Never raises, whatever a guest asks."""
        ...


class Memory(Protocol):
    """Guest RAM as a device sees it: addressed by gpa, `size` bytes in all."""

    @property
    def size(self) -> int: ...

    def read(self, gpa: int, size: int) -> bytes: ...

    def write(self, gpa: int, data: bytes) -> None: ...


Access = Callable[[int, int, int | None], int]


class _Port(NamedTuple):
    access: Access
    offset: int
    widest: int


class _Window(NamedTuple):
    access: Access
    first: int
    end: int


class Bus:
    """Ports and device memory of one VM. What nobody answers reads all ones and swallows writes, like an ISA bus with pull-ups."""

    def __init__(self) -> None:
        self._ports: dict[int, _Port] = {}
        self._pages: dict[int, _Window] = {}

    def attach_ports(self, first: int, count: int, device: Device, *, offset: int = 0, widest: int = 1) -> None:
        """Let `device` answer at `count` ports from `first`; the first is `offset` in the device's own range.

        Accesses wider than `widest` bytes (1, 2 or 4) are split into bytes at successive ports. A later attachment replaces an
        earlier one. Raises ValueError for ports outside 0..FFFFh: that is a mistake in a board, not in a guest.
        """
        if first < 0 or count < 1 or first + count > 0x10000:
            raise ValueError(f"ports {first:#x}+{count}: outside the port space")
        for i in range(count):
            self._ports[first + i] = _Port(device.access, offset + i, widest)

    def move_ports(self, first: int, device: Device, layout: Sequence[tuple[int, int, int]]) -> None:
        """Take `device` from all ports where it answers and attach it from `first` on: for each (offset, count, widest) where nobody else is."""
        for port in [port for port, found in self._ports.items() if found.access == device.access]:
            del self._ports[port]
        for offset, count, widest in layout:
            for port in range(offset, offset + count):
                if first + port <= 0xFFFF:
                    self._ports.setdefault(first + port, _Port(device.access, port, widest))

    def attach_memory(self, gpa: int, size: int, device: Device) -> None:
        """Let `device` answer for `size` bytes from `gpa` (page-aligned; one device a page, a later one replaces an earlier one)."""
        if gpa & ((1 << PAGE_SHIFT) - 1) or size < 1:
            raise ValueError(f"device memory {gpa:#x}+{size}: not page-aligned or empty")
        window = _Window(device.access, gpa, gpa + size)
        for page in range(gpa >> PAGE_SHIFT, (gpa + size - 1 >> PAGE_SHIFT) + 1):
            self._pages[page] = window

    def port(self, port: int, size: int, value: int | None) -> int:
        """IN or OUT of `size` bytes (1, 2, 4) at `port`: `value` None reads. Hot: 0.25 us for a byte-wide device besides its own work."""
        found = self._ports.get(port)
        if found is not None:
            access, offset, widest = found
            if size <= widest:
                return access(offset, size, value)
        if size == 1:
            return 0xFF if value is None else 0
        result = 0
        for i in range(size):
            part = self.port(port + i & 0xFFFF, 1, None if value is None else value >> 8 * i & 0xFF)
            result |= part << 8 * i
        return result

    def memory(self, gpa: int, size: int, value: int | None) -> int:
        """Read (`value` None) or write `size` bytes (1, 2, 4, 8) of device memory at `gpa`. Nobody there: all ones."""
        window = self._pages.get(gpa >> PAGE_SHIFT)
        if window is None and (gpa & 0xFFF) + size <= 0x1000:
            return (1 << 8 * size) - 1 if value is None else 0
        if window is not None and size <= 4 and gpa + size <= window.end:
            return window.access(gpa - window.first, size, value)
        if size == 1:
            return 0xFF if value is None else 0
        half = size // 2
        low, high = (None, None) if value is None else (value & (1 << 8 * half) - 1, value >> 8 * half)
        return self.memory(gpa, half, low) | self.memory(gpa + half, size - half, high) << 8 * half

    def devices(self) -> Iterator[object]:
        """Whoever answers, by ports and then by device memory; one that answers in several places comes several times."""
        for _, port in sorted(self._ports.items()):
            yield getattr(port.access, "__self__", None)
        for _, window in sorted(self._pages.items()):
            yield getattr(window.access, "__self__", None)

    def memory_device(self, gpa: int, size: int = 1) -> bool:
        """Is a memory-mapped device on any page of the `size` bytes from `gpa`?"""
        first, last = gpa >> PAGE_SHIFT, gpa + size - 1 >> PAGE_SHIFT
        return any(first <= page <= last for page in self._pages)
