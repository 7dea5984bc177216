"""fw_cfg: how firmware made for virtual machines asks what machine this is, as on QEMU.

Knows selectors, the file directory and transfers by memory. Must not know who reads it, nor what is in the items beyond the first two. Source: QEMU
documentation, "QEMU Firmware Configuration (fw_cfg) Device".
"""

import struct
from collections.abc import Mapping
from typing import Final

from vmm.bus import Memory

SELECTOR, DATA, DMA = 0, 1, 4
"""Offsets from 510h; the transfer's address is big-endian, and its low half starts it."""
SIGNATURE, IDENTITY, CPUS, MOST_CPUS, FILE_DIRECTORY, FIRST_FILE = 0x00, 0x01, 0x05, 0x0F, 0x19, 0x20
_TRADITIONAL, _BY_MEMORY = 1, 2
_DMA_SIGNATURE = b"QEMU CFG"
_ERROR, _READ, _SKIP, _SELECT, _WRITE = 1, 2, 4, 8, 16
_LONGEST_NAME = 55
_CHUNK = 1 << 16


class FwCfg:
    """Items by selector and files by name, all read-only; what there is not reads as zeros. memory: where transfers go."""

    def __init__(self, memory: Memory, items: Mapping[int, bytes], files: Mapping[str, bytes]) -> None:
        self._memory = memory
        self._items: Final = {SIGNATURE: b"QEMU", IDENTITY: struct.pack("<I", _TRADITIONAL | _BY_MEMORY), **items}
        directory = struct.pack(">I", len(files))
        for number, (name, data) in enumerate(sorted(files.items()), FIRST_FILE):
            assert len(name) <= _LONGEST_NAME, name
            directory += struct.pack(">IHH56s", len(data), number, 0, name.encode())
            self._items[number] = data
        self._items[FILE_DIRECTORY] = directory
        self.selected, self.at = SIGNATURE, 0
        self.dma_high = 0

    def access(self, offset: int, size: int, value: int | None) -> int:
        if offset >= DMA:
            return self._access_dma(offset - DMA, size, value)
        if value is None:
            return int.from_bytes(self._take(size), "little") if offset == DATA else 0
        if offset == SELECTOR:
            self.selected, self.at = value & 0xFFFF, 0
        return 0

    def _take(self, size: int) -> bytes:
        data = self._items.get(self.selected, b"")[self.at : self.at + size]
        self.at += size
        return data.ljust(size, b"\0")

    def _access_dma(self, offset: int, size: int, value: int | None) -> int:
        if value is None:
            return int.from_bytes(_DMA_SIGNATURE[offset : offset + size], "little")
        if size != 4:
            return 0
        swapped = int.from_bytes(value.to_bytes(4, "little"), "big")
        if offset == 0:
            self.dma_high = swapped
        elif offset == 4:
            self._transfer(self.dma_high << 32 | swapped)
            self.dma_high = 0
        return 0

    def _transfer(self, at: int) -> None:
        """What the descriptor at `at` asks for: its first word is 0 behind it, or has the error bit set."""
        control, length, address = struct.unpack(">IIQ", self._inside(at, 16))
        if control & _SELECT:
            self.selected, self.at = control >> 16, 0
        failed = bool(control & _WRITE)
        if control & _READ:
            for done in range(0, length, _CHUNK):
                if address + done >= self._memory.size:
                    failed = True
                    break
                part = self._take(min(_CHUNK, length - done))
                self._memory.write(address + done, part[: self._memory.size - address - done])
        elif control & _SKIP:
            self.at += length
        if at < self._memory.size:
            self._memory.write(at, struct.pack(">I", _ERROR * failed)[: self._memory.size - at])

    def _inside(self, gpa: int, size: int) -> bytes:
        """Guest memory; zeros outside."""
        if gpa >= self._memory.size:
            return bytes(size)
        return self._memory.read(gpa, min(size, self._memory.size - gpa)).ljust(size, b"\0")
