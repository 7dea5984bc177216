"""The Linux boot protocol for bzImages: what the image asks for, the kernel inside it, and what a kernel finds at ESI.

Knows the setup header and the "zero page" (Linux, Documentation/arch/x86/boot.rst "The Linux/x86 Boot Protocol", zero-page.rst). The kernel inside is
unpacked here where its compression is one that Python knows, and is started at its own entry: faster than its decompressor in a VM.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vmm.boot import elf
from vmm.boot.layout import EBDA, HIGH, PAGE, Layout
from vmm.boot.symbols import Range, Symbols
from vmm.errors import InputError
from vmm.start import Start

CODE_SELECTOR: Final = 0x10
DATA_SELECTOR: Final = 0x18
GDT: Final = struct.pack("<4Q", 0, 0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)

_MAGIC: Final = b"HdrS"
_MAGIC_AT: Final = 0x202
_HEADER: Final = 0x1F1  # the setup header begins here, in the image and in the zero page
_OLDEST: Final = 0x206  # the first protocol that says how long a command line may be
_PAYLOAD_SINCE: Final = 0x208
_INIT_SIZE_SINCE: Final = 0x20A
_LOADED_HIGH: Final = 1
_UNDEFINED_LOADER: Final = 0xFF
_USABLE, _RESERVED = 1, 2
_UNPACKERS: Final[tuple[tuple[bytes, Callable[[bytes], bytes]], ...]] = (
    (b"\x1f\x8b", lambda data: zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(data)),
    (b"\xfd7zXZ\0", lambda data: lzma.LZMADecompressor().decompress(data)),
    (b"\x5d\0\0", lambda data: lzma.LZMADecompressor(format=lzma.FORMAT_ALONE).decompress(data)),
    (b"BZh", lambda data: bz2.BZ2Decompressor().decompress(data)),
)


@dataclass(frozen=True, slots=True)
class Header:
    """The setup header of a bzImage. protected: offset of the protected-mode part. preferred, room: where the kernel runs, bytes needed there."""

    version: int
    protected: int
    size: int
    code32_start: int
    longest_command_line: int
    initrd_end: int
    preferred: int
    room: int
    payload: bytes


def is_linux(image: bytes) -> bool:
    """Whether `image` has a Linux setup header."""
    return image[_MAGIC_AT : _MAGIC_AT + 4] == _MAGIC


def parse(name: str, image: bytes) -> Header:
    """The header of the bzImage `image`. Raises InputError when it is truncated, too old or no bzImage."""
    if len(image) < 0x268:
        raise InputError(f"{name}: truncated Linux setup header")

    def field(offset: int, form: str) -> int:
        value: int = struct.unpack_from("<" + form, image, offset)[0]
        return value

    version = field(0x206, "H")
    if version < _OLDEST:
        raise InputError(f"{name}: Linux boot protocol {version >> 8}.{version & 0xFF:02}: at least 2.06 is needed")
    if not field(0x211, "B") & _LOADED_HIGH:
        raise InputError(f"{name}: a Linux zImage, which is loaded low: only bzImages are loaded")
    protected = (field(0x1F1, "B") or 4) * 512 + 512
    size = 16 * field(0x1F4, "I")
    if len(image) < protected + size - 16:  # signatures may follow, and the last paragraph may not be full
        raise InputError(f"{name}: truncated: {len(image)} bytes of {protected + size}")
    payload = b""
    if version >= _PAYLOAD_SINCE:
        start = protected + field(0x248, "I")
        payload = image[start : start + field(0x24C, "I")]
    code32_start = field(0x214, "I")
    modern = version >= _INIT_SIZE_SINCE
    return Header(
        version, protected, size, code32_start, field(0x238, "I"), field(0x22C, "I") + 1,
        field(0x258, "Q") if modern else code32_start, field(0x260, "I") if modern else 3 * size, payload,
    )  # fmt: skip


def load(path: str, image: bytes, layout: Layout, command_line: bytes, initrd: bytes | None) -> Start:
    """Places the kernel, the zero page, the command line and the initial RAM disk. Raises InputError."""
    header = parse(path, image)
    if len(command_line) > header.longest_command_line:
        raise InputError(f"{path}: --append: {len(command_line)} bytes: the kernel takes {header.longest_command_line}")
    inside = _unpacked(header)
    if inside is not None:
        parsed = elf.parse(path, inside)
        for segment in parsed.segments:
            layout.put("the segment", segment.paddr, inside[segment.offset : segment.offset + segment.filesz], segment.memsz)
        entry = parsed.physical_entry()
        symbols = Symbols(path, ranges=[Range(segment.vaddr, segment.paddr, segment.memsz) for segment in parsed.segments])
    else:
        entry = header.code32_start
        layout.put("the kernel", entry, image[header.protected :], header.size)
        symbols = Symbols(path, ranges=[Range(entry, entry, header.size)])
    layout.take("the kernel", header.preferred, header.room)
    gdt_base = layout.for_descriptors(len(GDT))
    layout.fill(gdt_base, GDT)
    line = layout.for_tables("the command line", len(command_line) + 1)
    layout.fill(line, command_line + b"\0")
    disk = (0, 0)
    if initrd:
        disk = layout.highest("the initial RAM disk (--initrd)", len(initrd), header.initrd_end), len(initrd)
        layout.fill(disk[0], initrd)
    zero_page = layout.for_tables("the zero page", PAGE, PAGE)
    layout.fill(zero_page, _zero_page(image, layout, line, disk))
    return Start(
        entry=entry, kind="linux", symbols=symbols, gdt_base=gdt_base, gdt_limit=len(GDT) - 1, cs=CODE_SELECTOR, ds=DATA_SELECTOR, esi=zero_page
    )


def _unpacked(header: Header) -> bytes | None:
    """The 32-bit vmlinux inside, or None where it cannot be unpacked here."""
    for magic, unpack in _UNPACKERS:
        if header.payload.startswith(magic):
            try:
                inside = unpack(header.payload)
            except (zlib.error, lzma.LZMAError, OSError, EOFError):
                return None  # the kernel's own decompressor will say what is wrong
            return inside if elf.is_elf(inside) and inside[4] == 1 else None
    return None


def _zero_page(image: bytes, layout: Layout, line: int, disk: tuple[int, int]) -> bytes:
    page = bytearray(PAGE)
    end = _MAGIC_AT + image[0x201]
    page[_HEADER:end] = image[_HEADER:end]
    page[0x06:0x08] = bytes((3, 80))  # the VGA's text mode, as firmware leaves it
    page[0x0E:0x12] = bytes((25, 1, 16, 0))
    page[0x210] = _UNDEFINED_LOADER
    struct.pack_into("<II", page, 0x218, *disk)
    struct.pack_into("<I", page, 0x228, line)
    struct.pack_into("<I", page, 0x1E0, max(0, layout.high_end - HIGH) >> 10)
    ranges = [(0, EBDA, _USABLE), (EBDA, 0xA_0000, _RESERVED), (0xF_0000, HIGH, _RESERVED)]
    ranges += [(HIGH, layout.high_end, _USABLE), (layout.high_end, layout.memory_end, _RESERVED)]
    present = [(low, high - low, kind) for low, high, kind in ranges if low < high <= max(layout.memory_end, HIGH)]
    page[0x1E8] = len(present)
    for at, entry in enumerate(present):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * at, *entry)
    return bytes(page)
