"""The multiboot 1 header of a kernel image: finding it, checking it, and what it asks for.

Knows Multiboot 0.6.96, 3.1 "OS image format". Knows nothing of memory or of the information handed over (`bootinfo`).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from vmm.errors import InputError

HEADER_MAGIC: Final = 0x1BAD_B002
LOADER_MAGIC: Final = 0x2BAD_B002  # what the kernel finds in EAX
# 3.1.1 "The layout of Multiboot header": wholly within the first 8192 bytes of the image, at a multiple of 4.
SEARCHED: Final = 8192
_ADDRESSES: Final = 1 << 16
_VIDEO: Final = 1 << 2
# Bits 0 to 15 are requirements: a loader that does not know one must give up. 0: page-aligned modules, 1: memory information (both are
# always given), 2: a video mode, which like QEMU we take as a wish: the text screen is what there is.
_KNOWN: Final = 0b111
_REQUIREMENTS: Final = 0xFFFF
_MAGIC: Final = HEADER_MAGIC.to_bytes(4, "little")
_FIXED: Final = struct.Struct("<3I")
_PLACES: Final = struct.Struct("<5I")


class Flat(NamedTuple):
    """The part of an image that its header says to load as it is: file bytes [offset, offset + size) to `gpa`, then zeros up to `total` bytes."""

    offset: int
    gpa: int
    size: int
    total: int
    entry: int


class Header(NamedTuple):
    """A checked header. `flat` is set when the header gives addresses; then they count and not the ELF headers (bit 16)."""

    video: bool
    flat: Flat | None


def find(name: str, image: bytes) -> Header | None:
    """The header of `image`, or None when it has none.

    Raises InputError for a header that is broken, in a place where no loader looks, or asks for what we do not have.
    """
    offset, bad_checksum = _search(image, 0, SEARCHED)
    if offset is not None:
        return _parse(name, image, offset)
    if bad_checksum is not None:
        raise InputError(f"{name}: multiboot header at {bad_checksum:#x}: bad checksum")
    beyond, _ = _search(image, SEARCHED, len(image))
    if beyond is not None:
        raise InputError(f"{name}: multiboot header at {beyond:#x}: beyond the first 8 KiB of the file, where loaders look for it")
    return None


def _search(image: bytes, start: int, stop: int) -> tuple[int | None, int | None]:
    """The offset of the first header in [start, stop) with a good checksum, and that of the first with a bad one.

    The region before `start` may hold the beginning of a header that straddles it.
    """
    bad: int | None = None
    position = max(0, start - _FIXED.size + 4)
    while (position := image.find(_MAGIC, position, stop)) >= 0:
        if position % 4 == 0 and position + _FIXED.size <= min(stop, len(image)):
            if sum(_FIXED.unpack_from(image, position)) & 0xFFFF_FFFF == 0:
                return position, bad
            bad = position if bad is None else bad
        position += 1
    return None, bad


def _parse(name: str, image: bytes, offset: int) -> Header:
    _, flags, _ = _FIXED.unpack_from(image, offset)
    unknown = [str(bit) for bit in range(16) if flags & _REQUIREMENTS & ~_KNOWN & 1 << bit]
    if unknown:
        raise InputError(f"{name}: multiboot header requires what this loader does not know (flag bits {', '.join(unknown)})")
    return Header(bool(flags & _VIDEO), _flat(name, image, offset) if flags & _ADDRESSES else None)


def _flat(name: str, image: bytes, offset: int) -> Flat:
    """The address fields (3.1.3): where the bytes of the file go when it is not to be read as ELF."""
    if offset + _FIXED.size + _PLACES.size > min(len(image), SEARCHED):
        raise InputError(f"{name}: multiboot header at {offset:#x}: truncated: its address fields are missing")
    header_at, load, load_end, bss_end, entry = _PLACES.unpack_from(image, offset + _FIXED.size)
    first = offset - (header_at - load)
    if load > header_at or first < 0:
        raise InputError(f"{name}: multiboot header: load address {load:#x} does not match header address {header_at:#x}")
    load_end = load_end or load + len(image) - first  # 0: to the end of the file
    if load_end < load or (bss_end and bss_end < load_end):  # bss_end 0: no bss
        raise InputError(f"{name}: multiboot header: addresses out of order (load {load:#x} to {load_end:#x}, bss to {bss_end:#x})")
    if first + load_end - load > len(image):
        raise InputError(f"{name}: truncated: its multiboot header loads {load_end - load} bytes, the file has {len(image) - first}")
    return Flat(first, load, load_end - load, (bss_end or load_end) - load, entry)
