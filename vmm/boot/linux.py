"""The Linux boot protocol for bzImages: what the image asks for, the kernel inside it, and what a kernel finds at ESI.

Knows the setup header and the "zero page" (Linux, Documentation/arch/x86/boot.rst "The Linux/x86 Boot Protocol", zero-page.rst). The kernel inside is
unpacked here where its compression is one that Python knows, and is started at its own entry: faster than its decompressor in a VM. A 64-bit kernel
is entered in long mode, in a bzImage at the 64-bit entry where it has one.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from vmm.boot import elf
from vmm.boot.layout import EBDA, HIGH, PAGE, Layout
from vmm.boot.symbols import Range, Symbols
from vmm.errors import InputError
from vmm.start import Start
from vmm.x86.bits import Pte

CODE_SELECTOR: Final = 0x10
DATA_SELECTOR: Final = 0x18
GDT: Final = struct.pack("<4Q", 0, 0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
LONG_GDT: Final = struct.pack("<4Q", 0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)

_MAGIC: Final = b"HdrS"
_MAGIC_AT: Final = 0x202
_HEADER: Final = 0x1F1  # the setup header begins here, in the image and in the zero page
_OLDEST: Final = 0x206  # the first protocol that says how long a command line may be
_PAYLOAD_SINCE: Final = 0x208
_INIT_SIZE_SINCE: Final = 0x20A
_XLOADFLAGS_SINCE: Final = 0x20C
_HAS_LONG_ENTRY: Final = 1
_LONG_ENTRY: Final = 0x200  # behind the 32-bit one
_LOADED_HIGH: Final = 1
_INITRD_END: Final = 0x3800_0000
# What a setup header says for a kernel that has none (boot flag, magic, version; the rest is 0).
_NO_SETUP: Final = bytes(0x1FE - _HEADER) + b"\x55\xaa" + bytes(2) + _MAGIC + struct.pack("<H", 0x20F) + bytes(0x5F)
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
    """The setup header of a bzImage. protected: offset of the protected-mode part. preferred, room: where the kernel runs, bytes needed there.

    long: it has a 64-bit entry. raw: its bytes, which the kernel finds again.
    """

    version: int
    protected: int
    size: int
    code32_start: int
    longest_command_line: int
    initrd_end: int
    preferred: int
    room: int
    payload: bytes
    long: bool
    raw: bytes


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
        version >= _XLOADFLAGS_SINCE and bool(field(0x236, "H") & _HAS_LONG_ENTRY), image[_HEADER : _MAGIC_AT + image[0x201]],
    )  # fmt: skip


def load(path: str, image: bytes, layout: Layout, command_line: bytes, initrd: bytes | None, *, long_mode: bool) -> Start:
    """Places the kernel, the zero page, the command line and the initial RAM disk. long_mode: the CPU has it. Raises InputError."""
    header = parse(path, image)
    if len(command_line) > header.longest_command_line:
        raise InputError(f"{path}: --append: {len(command_line)} bytes: the kernel takes {header.longest_command_line}")
    inside = _unpacked(header)
    if inside is not None:
        kernel = _place(path, inside, layout, long_mode=long_mode)
    else:
        if header.long and not long_mode:
            elf.refuse_long(path)
        start = header.code32_start
        layout.put("the kernel", start, image[header.protected :], header.size)
        kernel = _Kernel(start + _LONG_ENTRY if header.long else start, Symbols(path, ranges=[Range(start, start, header.size)]), header.long)
    layout.take("the kernel", header.preferred, header.room)
    return _start(layout, kernel, header.raw, command_line, initrd, header.initrd_end)


def load_vmlinux(path: str, image: bytes, layout: Layout, command_line: bytes, initrd: bytes | None) -> Start:
    """Places an x86-64 ELF kernel that no bzImage is around, and what a bzImage's finds. Raises InputError."""
    return _start(layout, _place(path, image, layout, long_mode=True), _NO_SETUP, command_line, initrd, _INITRD_END)


class _Kernel(NamedTuple):
    """A kernel that has its place. long: it is entered in long mode."""

    entry: int
    symbols: Symbols
    long: bool


def _place(path: str, image: bytes, layout: Layout, *, long_mode: bool) -> _Kernel:
    parsed = elf.parse(path, image, long_mode=long_mode)
    for segment in parsed.segments:
        layout.put("the segment", segment.paddr, image[segment.offset : segment.offset + segment.filesz], segment.memsz)
    ranges = [Range(segment.vaddr, segment.paddr, segment.memsz) for segment in parsed.segments]
    return _Kernel(parsed.physical_entry(), Symbols(path, *elf.symbol_table(parsed, image), ranges, long=parsed.long), parsed.long)


def _start(layout: Layout, kernel: _Kernel, setup: bytes, command_line: bytes, initrd: bytes | None, initrd_end: int) -> Start:
    gdt = LONG_GDT if kernel.long else GDT
    gdt_base = layout.for_descriptors(len(gdt))
    layout.fill(gdt_base, gdt)
    line = layout.for_tables("the command line", len(command_line) + 1)
    layout.fill(line, command_line + b"\0")
    disk = (0, 0)
    if initrd:
        disk = layout.highest("the initial RAM disk (--initrd)", len(initrd), initrd_end), len(initrd)
        layout.fill(disk[0], initrd)
    zero_page = layout.for_tables("the zero page", PAGE, PAGE)
    layout.fill(zero_page, _zero_page(setup, layout, line, disk))
    return Start(
        entry=kernel.entry, kind="linux", symbols=kernel.symbols, gdt_base=gdt_base, gdt_limit=len(gdt) - 1,
        cs=CODE_SELECTOR, ds=DATA_SELECTOR, esi=zero_page, long_tables=_identity_tables(layout) if kernel.long else 0,
    )  # fmt: skip


def _identity_tables(layout: Layout) -> int:
    """Page tables that map the first 4 GiB to themselves, in pages of 1 GiB; returns where they are."""
    top = layout.for_tables("the page tables", 2 * PAGE, PAGE)
    layout.fill(top, struct.pack("<Q", top + PAGE | Pte.P | Pte.W).ljust(PAGE, b"\0"))
    layout.fill(top + PAGE, struct.pack("<4Q", *(gib << 30 | Pte.P | Pte.W | Pte.PS for gib in range(4))).ljust(PAGE, b"\0"))
    return top


def _unpacked(header: Header) -> bytes | None:
    """The vmlinux inside, or None where it cannot be unpacked here."""
    for magic, unpack in _UNPACKERS:
        if header.payload.startswith(magic):
            try:
                inside = unpack(header.payload)
            except (zlib.error, lzma.LZMAError, OSError, EOFError):
                return None  # the kernel's own decompressor will say what is wrong
            return inside if elf.is_elf(inside) else None
    return None


def _zero_page(setup: bytes, layout: Layout, line: int, disk: tuple[int, int]) -> bytes:
    page = bytearray(PAGE)
    page[_HEADER : _HEADER + len(setup)] = setup
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
