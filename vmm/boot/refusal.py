"""What a file is that cannot be loaded, so that the message says more than "unknown".

Knows the marks of other formats. Knows nothing of how any of them is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_MULTIBOOT2: Final = (0xE852_50D6).to_bytes(4, "little")

# The first row that matches says it.
_FORMATS: Final[tuple[tuple[Callable[[bytes], bool], str], ...]] = (
    (lambda image: _MULTIBOOT2 in image[:32768], "a multiboot 2 kernel: only multiboot 1 is known"),
    (lambda image: image[:2] == b"MZ", "a DOS or Windows (PE) program, not a kernel image"),
    (lambda image: image[:4] in (b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe"), "a Mach-O program, not ELF"),
    (lambda image: image[:6] == b"\xfd7zXZ\0", "compressed with xz: unpack it first"),
    (lambda image: image[:4] == b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (lambda image: image[:3] == b"BZh", "compressed with bzip2: unpack it first"),
    (lambda image: image[:4] == b"QFI\xfb", "a qcow2 disk image, not a kernel"),
    (lambda image: image[0x8001:0x8006] == b"CD001", "a CD-ROM image, not a kernel"),
    (lambda image: image[510:512] == b"\x55\xaa", "a boot sector or disk image, not a kernel"),
)


def refusal(image: bytes, otherwise: str) -> str:
    """Why `image`, which is not ELF, is not loaded: what it is, or `otherwise`. One line without the file's name."""
    return next((what for matches, what in _FORMATS if matches(image)), otherwise)
