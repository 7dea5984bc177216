"""Sections: how a snapshot is cut into named, compressed parts with a checksum each, in a file or on the way to another host.

Knows the form of one section. Must not know what is in it.
"""

from __future__ import annotations

import hashlib
import struct

import zstandard

HEADER = struct.Struct("<4sQQ16s")  # name, bytes, bytes as they stand here, checksum of name, bytes and what stands here
_LARGEST = 16 << 20  # bytes of a section, and more than any has


class Damaged(Exception):
    """A section is not as it was when it was packed: the message says how."""


def pack(name: bytes, data: bytes) -> bytes:
    """A section, its header included. name: four bytes."""
    packed = zstandard.ZstdCompressor(level=1).compress(data)
    return HEADER.pack(name, len(data), len(packed), _checksum(name, len(data), packed)) + packed


def stored(head: bytes) -> int:
    """How many bytes follow a header. Raises Damaged."""
    _, size, stored, _ = HEADER.unpack(head)
    if size > _LARGEST or stored > _LARGEST:
        raise Damaged(f"a section of {max(size, stored)} bytes")
    return int(stored)


def unpack(head: bytes, packed: bytes) -> tuple[bytes, bytes]:
    """Name and data. Raises Damaged."""
    name, size, _, checksum = HEADER.unpack(head)
    if _checksum(name, size, packed) != checksum:
        raise Damaged("a checksum is wrong")
    try:
        data = zstandard.ZstdDecompressor().decompress(packed, max_output_size=size) if size else b""
    except zstandard.ZstdError:
        raise Damaged("a section cannot be decompressed") from None
    if len(data) != size:
        raise Damaged("a section of another size")
    return name, data


def _checksum(name: bytes, size: int, packed: bytes) -> bytes:
    return hashlib.blake2b(packed, digest_size=16, salt=name + size.to_bytes(8, "little")).digest()
