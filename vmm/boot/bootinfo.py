"""The multiboot 1 information structure: what a kernel finds at EBX.

Knows Multiboot 0.6.96, 3.3 "Boot information format". Knows nothing of files: modules come as bytes that already have their place.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from vmm.boot import elf
from vmm.boot.layout import EBDA, HIGH, PAGE, Layout

LOADER_NAME: Final = b"vmm"
# The first hard disk, no partition: what QEMU says, disk or not.
_BOOT_DEVICE: Final = 0x8000_FFFF
_MEMORY, _DEVICE, _COMMAND_LINE, _MODULES, _ELF, _MAP, _LOADER, _SCREEN = (1 << bit for bit in (0, 1, 2, 3, 5, 6, 9, 12))
_AVAILABLE, _RESERVED = 1, 2
_ENTRY: Final = struct.Struct("<IQQI")
_MODULE: Final = struct.Struct("<4I")
_INFO: Final = struct.Struct("<22IQ3I2B6x")
# VGA text mode: 80 columns and 25 lines of 16-bit cells, 160 bytes each line; type 2 says text.
_TEXT_SCREEN: Final = (0xB_8000, 160, 80, 25, 16, 2)
_NO_SCREEN: Final = (0, 0, 0, 0, 0, 0)
_ROM: Final = (0xF_0000, 0x1_0000)
_BIOS_FLASH: Final = (0xFFFC_0000, 0x4_0000)


class Module(NamedTuple):
    """A boot module at guest-physical `gpa`, `size` bytes, with the string that the kernel is told."""

    gpa: int
    size: int
    text: bytes


class ElfSections(NamedTuple):
    """The kernel's section headers as the kernel is told them: loaded symbol and string tables have their address in them."""

    headers: bytes
    names: int


def place(layout: Layout, command_line: bytes, modules: Sequence[Module], sections: ElfSections | None, video: bool) -> int:
    """Puts the information structure and all that it points to in one piece of `layout`; the result is its guest-physical address.

    With `video` the text screen is described as well. Raises InputError when there is no room.
    """
    memory_map = _memory_map(layout)
    headers = sections.headers if sections else b""
    strings = b"".join(text + b"\0" for text in (command_line, LOADER_NAME, *(module.text for module in modules)))
    # Order of the piece: structure, map, modules, section headers, strings. The first four are of sizes that keep words aligned.
    map_at = _INFO.size
    modules_at = map_at + len(memory_map)
    headers_at = modules_at + len(modules) * _MODULE.size
    strings_at = headers_at + len(headers)
    gpa = layout.for_tables("the multiboot information", strings_at + len(strings))

    loader_at = strings_at + len(command_line) + 1
    text_at = loader_at + len(LOADER_NAME) + 1
    listed = b""
    for module in modules:
        listed += _MODULE.pack(module.gpa, module.gpa + module.size, gpa + text_at, 0)
        text_at += len(module.text) + 1
    flags = _MEMORY | _DEVICE | _COMMAND_LINE | _MODULES | _MAP | _LOADER | (_ELF if sections else 0) | (_SCREEN if video else 0)
    symbols = (len(headers) // elf.SECTION_SIZE, elf.SECTION_SIZE, gpa + headers_at, sections.names) if sections else (0, 0, 0, 0)
    info = _INFO.pack(
        flags,
        layout.low_end // 1024,
        (layout.high_end - HIGH) // 1024,
        _BOOT_DEVICE,
        gpa + strings_at,
        len(modules),
        gpa + modules_at,
        *symbols,
        len(memory_map),
        gpa + map_at,
        *(0, 0),  # drives
        0,  # configuration table
        gpa + loader_at,
        *(0,) * 5,  # APM table, VBE: control, mode, mode and interface, interface length
        *(_TEXT_SCREEN if video else _NO_SCREEN),
    )
    layout.fill(gpa, info + memory_map + listed + headers + strings)
    return gpa


def place_symbols(layout: Layout, image: elf.Elf, data: bytes) -> ElfSections | None:
    """Loads the symbol table and the string tables after everything else, and says where (3.3, `syms`); None when there are none.

    Sections that a segment has loaded keep their address. Debug sections stay out: they can be larger than the guest's memory.
    They are only a service to the kernel: without room for them they are left out.
    """
    if not image.sections or image.long:
        return None
    headers = bytearray(image.section_headers)
    for index, section in enumerate(image.sections):
        wanted = section.kind in (elf.SHT_SYMTAB, elf.SHT_STRTAB) and not section.addr and section.size
        content = elf.contents(section, data) if wanted else b""
        if not wanted or len(content) < section.size:
            continue
        gpa = layout.room(section.size, ((max(layout.end, HIGH), layout.high_end),), PAGE)
        if gpa is None:
            return None
        layout.fill(gpa, content)
        struct.pack_into("<I", headers, index * elf.SECTION_SIZE + 12, gpa)
    return ElfSections(bytes(headers), image.section_names)


def _memory_map(layout: Layout) -> bytes:
    """The map that SeaBIOS has on QEMU: what a kernel prints is the same there and here. What it does not list is no memory."""
    entries = [
        (0, layout.low_end, _AVAILABLE),
        (EBDA, 0xA_0000 - EBDA, _RESERVED),
        (*_ROM, _RESERVED),
        (HIGH, layout.high_end - HIGH, _AVAILABLE),
        (layout.high_end, layout.memory_end - layout.high_end, _RESERVED),
        (*_BIOS_FLASH, _RESERVED),
    ]
    return b"".join(_ENTRY.pack(_ENTRY.size - 4, start, size, kind) for start, size, kind in entries if size > 0)
