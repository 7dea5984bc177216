"""The ELF file of a small Xen guest: what it says of itself, and parts at fixed addresses.

Knows the file's format and the notes. Knows no VM.

Linear memory from BASE: the hypercall page, then CODE; LOG is memory for what a test wants to know; STACK grows down from there; TABLE and DATA are
pages for what a guest prepares. All of it is mapped writable by the domain builder.
"""

import struct
from collections.abc import Mapping

from tests.assembly import assemble

BASE = 0xC0000000
HYPERCALLS, CODE, LOG, STACK, TABLE, DATA, USER, END = (BASE + at for at in (0, 0x1000, 0x8000, 0x9000, 0xA000, 0xB000, 0xC000, 0xE000))
HANDLERS = BASE + 0x4000  # 256 bytes for each vector below 64


def note(kind: int, value: bytes, owner: bytes = b"Xen\0") -> bytes:
    """One ELF note."""
    return struct.pack("<3I", len(owner), len(value), kind) + owner.ljust(len(owner) + 3 & ~3, b"\0") + value.ljust(len(value) + 3 & ~3, b"\0")


def notes(**changed: bytes | None) -> bytes:
    """The notes of a sound kernel, but for what is changed: entry, hypercall, base, offset, pae; None leaves one out."""
    sound: dict[str, tuple[int, bytes]] = {
        "entry": (1, struct.pack("<I", CODE)),
        "hypercall": (2, struct.pack("<I", HYPERCALLS)),
        "base": (3, struct.pack("<I", BASE)),
        "offset": (4, struct.pack("<I", BASE)),
        "pae": (9, b"yes\0"),
    }
    values = {name: changed.get(name, value) for name, (_, value) in sound.items()}
    return b"".join(note(sound[name][0], value) for name, value in values.items() if value is not None)


def elf(contents: bytes, area: bytes, *, size: int = END - BASE, address: int = BASE) -> bytes:
    """A 32-bit ELF file with one segment, and notes unless `area` is empty."""
    count = 2 if area else 1
    at = 52 + 32 * count
    header = struct.pack("<16sHHIIIIIHHHHHH", b"\x7fELF\1\1\1", 2, 3, 1, CODE, 52, 0, 0, 52, 32, count, 40, 0, 0)
    load = struct.pack("<8I", 1, at, address, address, len(contents), size, 7, 4096)
    described = struct.pack("<8I", 4, at + len(contents), 0, 0, len(area), 0, 4, 4) if area else b""
    return header + load + described + contents + area


def kernel(parts: Mapping[int, str | bytes]) -> bytes:
    """The ELF file of a guest: parts at their linear addresses, text is assembled."""
    image = bytearray(END - BASE)
    for at, part in parts.items():
        data = part if isinstance(part, bytes) else assemble(part, at)
        assert at - BASE + len(data) <= len(image)
        image[at - BASE : at - BASE + len(data)] = data
    return elf(bytes(image), notes())
