"""Reading what the user named: a kernel image, gzip'ed or not, or a module, as bytes.

Knows files and gzip. Knows no image format and no guest.
"""

from __future__ import annotations

import os
import stat
import zlib
from typing import Final

from vmm.errors import InputError

# No kernel comes near this, debug information included; it bounds what a wrong (or sparse) file can cost.
IMAGE_LIMIT: Final = 1 << 30
_GZIP_MAGIC: Final = b"\x1f\x8b\x08"
_GZIP: Final = 16 + zlib.MAX_WBITS  # zlib's way to say: gzip framing, checksum verified


def mib(size: int) -> str:
    """`size` bytes for a message, in MiB when that is a whole number, else in bytes."""
    return f"{size >> 20} MiB" if size and not size & 0xF_FFFF else f"{size} bytes"


def read_file(path: str, limit: int, beyond: str) -> bytes:
    """The bytes of the regular file `path`, at most `limit` of them.

    Raises InputError when it cannot be read, is no regular file, or is larger: the reason is then `beyond`.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISDIR(mode):
                raise InputError(f"{path}: is a directory")
            if not stat.S_ISREG(mode):
                raise InputError(f"{path}: not a regular file")
            data = file.read(limit + 1)
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory") from None
    except OSError as error:
        raise InputError(f"{path or repr(path)}: {_reason(error)}") from None
    except ValueError:  # a NUL byte or an unencodable character: no such name can exist
        raise InputError(f"{path!r}: not a file name") from None
    if len(data) > limit:
        raise InputError(f"{path}: {beyond}")
    return data


def read_image(path: str, memory_size: int) -> bytes:
    """The bytes of the kernel image `path`, unpacked when it is gzip'ed; `memory_size` bytes is all that it may unpack to.

    Raises InputError for a file that cannot be read, is empty, or is corrupted, truncated or oversized gzip.
    """
    data = read_file(path, IMAGE_LIMIT, f"larger than {mib(IMAGE_LIMIT)}: no kernel image")
    if not data:
        raise InputError(f"{path}: empty file")
    if not data.startswith(_GZIP_MAGIC):
        return data
    unpacked = _gunzip(path, data, memory_size)
    if not unpacked:
        raise InputError(f"{path}: gzip'ed, but nothing is in it")
    return unpacked


def _gunzip(path: str, packed: bytes, limit: int) -> bytes:
    """Unpacks every member, at most `limit` bytes together: a few KiB can hold a thousand times that."""
    unpacked = bytearray()
    while packed.startswith(_GZIP_MAGIC):  # gzip(1) ignores what follows the last member, such as padding to a block; so do we
        member = zlib.decompressobj(_GZIP)
        try:
            unpacked += member.decompress(packed, limit + 1 - len(unpacked))
        except zlib.error:
            raise InputError(f"{path}: corrupted gzip data") from None
        if len(unpacked) > limit:
            raise InputError(f"{path}: unpacks to more than the guest's memory ({mib(limit)})")
        if not member.eof:
            raise InputError(f"{path}: truncated gzip data")
        packed = member.unused_data
    return bytes(unpacked)


def _open_at_once(path: str, flags: int) -> int:
    """Opens without waiting for the other end of a FIFO, which is refused anyway."""
    return os.open(path, flags | os.O_NONBLOCK)


def _reason(error: OSError) -> str:
    reason = error.strerror or str(error)
    return reason[:1].lower() + reason[1:]
