"""Kernel images and guest memory made for the loader's tests.

Knows the layouts as the specifications have them, written apart from the loader's own code on purpose.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

from vmm.boot import Start, load

MIB = 1 << 20
CODE = bytes.fromhex("fa f4 eb fd".replace(" ", ""))  # cli; hlt; jmp back


class RecordingMemory:
    """Guest memory that starts full of 0xAA, counts writes, and refuses with AssertionError anything outside."""

    def __init__(self, size: int = 2 * MIB) -> None:
        self.size = size
        self.bytes = bytearray(b"\xaa") * size
        self.writes = 0

    def read(self, gpa: int, size: int) -> bytes:
        assert 0 <= gpa <= gpa + size <= self.size
        return bytes(self.bytes[gpa : gpa + size])

    def write(self, gpa: int, data: bytes) -> None:
        assert 0 <= gpa <= gpa + len(data) <= self.size, "write outside memory"
        self.bytes[gpa : gpa + len(data)] = data
        self.writes += 1

    def words(self, gpa: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}I", self.read(gpa, 4 * count))

    def string(self, gpa: int) -> str:
        return self.read(gpa, self.bytes.index(0, gpa) - gpa).decode()


def multiboot_header(flags: int = 3, places: Sequence[int] = (), checksum: int | None = None) -> bytes:
    checksum = -(0x1BADB002 + flags) & 0xFFFF_FFFF if checksum is None else checksum
    return struct.pack(f"<{3 + len(places)}I", 0x1BADB002, flags, checksum, *places)


def elf_file(
    *,
    header: bytes = b"",
    segments: Sequence[tuple[int, int, bytes, int]] = (),
    entry: int | None = None,
    symbols: Sequence[tuple[str, int, int, int, int]] = (),
    kind: int = 2,
    machine: int = 3,
) -> bytes:
    """An ELF32 file. `segments` are (vaddr, paddr, data, memsz); the default is one of `header` and CODE at 1 MiB.

    `symbols` are (name, value, size, info, section index).
    """
    segments = segments or ((MIB, MIB, header + CODE, len(header) + len(CODE) + 64),)
    offset = 52 + 32 * len(segments)
    program_headers, contents = b"", b""
    for vaddr, paddr, data, memsz in segments:
        program_headers += struct.pack("<8I", 1, offset + len(contents), vaddr, paddr, len(data), memsz, 7, 4096)
        contents += data + bytes(-len(data) % 4)
    strings, table = b"\0", bytes(16)
    for name, value, size, info, section in symbols:
        table += struct.pack("<IIIBBH", len(strings), value, size, info, 0, section)
        strings += name.encode() + b"\0"
    section_headers = b""
    tables_at = offset + len(contents)
    if symbols:
        strings_at = tables_at + len(table)
        contents += table + strings + bytes(-len(strings) % 4)
        section_headers = (
            bytes(40)
            + struct.pack("<10I", 0, 1, 6, segments[0][0], 0, 0, 0, 0, 4, 0)
            + struct.pack("<10I", 0, 2, 0, 0, tables_at, len(table), 3, 1, 4, 16)
            + struct.pack("<10I", 0, 3, 0, 0, strings_at, len(strings), 0, 0, 1, 0)
        )
    count = len(section_headers) // 40
    entry = segments[0][1] + len(header) if entry is None else entry
    ident = b"\x7fELF\1\1\1" + bytes(9)
    elf_header = struct.pack(
        "<16sHHIIIIIHHHHHH", ident, kind, machine, 1, entry, 52, offset + len(contents) if count else 0,
        0, 52, 32, len(segments), 40, count, 3 if count else 0,
    )  # fmt: skip
    return elf_header + program_headers + contents + section_headers


def elf64_file(
    segments: Sequence[tuple[int, int, bytes, int]], entry: int, *, symbols: Sequence[tuple[str, int, int, int, int]] = (), kind: int = 2
) -> bytes:
    """An ELF64 file for x86-64, from the same."""
    offset = 64 + 56 * len(segments)
    program_headers, contents = b"", b""
    for vaddr, paddr, data, memsz in segments:
        program_headers += struct.pack("<2I6Q", 1, 7, offset + len(contents), vaddr, paddr, len(data), memsz, 4096)
        contents += data
    strings, table = b"\0", bytes(24)
    for name, value, size, info, section in symbols:
        table += struct.pack("<IBBHQQ", len(strings), info, 0, section, value, size)
        strings += name.encode() + b"\0"
    tables_at = offset + len(contents)
    section_headers = bytes(64) + struct.pack("<2I4Q2I2Q", 0, 1, 6, segments[0][0], 0, 0, 0, 0, 4, 0)
    section_headers += struct.pack("<2I4Q2I2Q", 0, 2, 0, 0, tables_at, len(table), 3, 1, 8, 24)
    section_headers += struct.pack("<2I4Q2I2Q", 0, 3, 0, 0, tables_at + len(table), len(strings), 0, 0, 1, 0)
    contents += table + strings
    ident = b"\x7fELF\2\1\1" + bytes(9)
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, kind, 62, 1, entry, 64, offset + len(contents), 0, 64, 56, len(segments), 64, 4, 3)
    return header + program_headers + contents + section_headers


def boot(
    folder: Path,
    image: bytes,
    memory: RecordingMemory | None = None,
    *,
    append: str = "",
    modules: Sequence[str] = (),
    initrd: str | None = None,
    address: int | None = None,
    long_mode: bool = False,
) -> tuple[Start, RecordingMemory]:
    """Writes `image` to `folder`/kernel and loads it."""
    path = folder / "kernel"
    path.write_bytes(image)
    memory = memory or RecordingMemory()
    return load(str(path), memory, append=append, modules=modules, initrd=initrd, address=address, long_mode=long_mode), memory
