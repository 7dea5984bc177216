"""32-bit ELF images for the i386: the headers, the segments to load, and the raw symbol table.

Knows the file format (System V ABI, "Object Files", and its Intel386 supplement). Knows nothing of memory or of multiboot.

Read here with `struct`, because importing pyelftools takes about 55 ms, which is much of what `vmm run hello` may take on top of Python.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from vmm.errors import InputError

MAGIC: Final = b"\x7fELF"
SECTION_SIZE: Final = 40
SHT_SYMTAB: Final = 2
SHT_STRTAB: Final = 3
_CLASS32, _CLASS64 = 1, 2
_LITTLE: Final = 1
_EM_386, _EM_X86_64 = 3, 62
_ET_EXEC: Final = 2
_PT_LOAD: Final = 1
_PF_X: Final = 1
_HEADER: Final = struct.Struct("<16sHHIIIIIHHHHHH")
_SEGMENT: Final = struct.Struct("<8I")
_SECTION: Final = struct.Struct("<10I")

# Only to say what a refused file is.
_MACHINES: Final = {
    2: "SPARC", 4: "m68k", 6: "IAMCU", 8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "S/390", 40: "ARM", 43: "SPARC64",
    50: "Itanium", _EM_X86_64: "x86-64", 183: "AArch64", 243: "RISC-V", 258: "LoongArch",
}  # fmt: skip
_OTHER_TYPES: Final = {
    0: "an ELF file of no type",
    1: "a relocatable object file: link it first",
    3: "a position-independent executable or shared library: link it at a fixed address (-no-pie)",
    4: "a core dump",
}


class Segment(NamedTuple):
    """One PT_LOAD entry: file bytes [offset, offset + filesz) go to guest-physical `paddr`, zeros follow up to `memsz` bytes."""

    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    executable: bool


class Section(NamedTuple):
    """One section header; only the fields in use. `offset` and `size` are bytes in the file, `addr` is where the section is linked."""

    kind: int
    addr: int
    offset: int
    size: int
    link: int


class Elf(NamedTuple):
    """A checked image: every segment lies inside the file. `section_headers` is the raw table, empty when the file has no sound one."""

    entry: int
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]
    section_headers: bytes
    section_names: int

    def physical_entry(self) -> int:
        """The entry point with paging off, as QEMU and GRUB have it.

        Most kernels linked high (GNU Mach) give a virtual entry address, which is moved as its segment is; some (xv6) give the physical one.
        """
        for segment in self.segments:
            if segment.executable and 0 <= self.entry - segment.vaddr < segment.memsz:
                return segment.paddr + self.entry - segment.vaddr
        return self.entry


def is_elf(image: bytes) -> bool:
    return image.startswith(MAGIC)


def check_machine(name: str, image: bytes) -> None:
    """Raises InputError unless the ELF file says that it is for a 32-bit little-endian x86; the message says what it is for."""
    if len(image) < 20:
        raise InputError(f"{name}: truncated ELF header")
    width, order = image[4], image[5]
    machine = int.from_bytes(image[18:20], "little" if order == _LITTLE else "big")
    if width == _CLASS64 and machine == _EM_X86_64:
        raise InputError(f"{name}: 64-bit x86-64 kernel: binary translation runs 32-bit kernels")
    if (width, order, machine) != (_CLASS32, _LITTLE, _EM_386):
        bits = {_CLASS32: "32-bit ", _CLASS64: "64-bit "}.get(width, "")
        raise InputError(f"{name}: {bits}ELF file for {_MACHINES.get(machine, f'machine {machine}')}: not a 32-bit x86 kernel")


def parse(name: str, image: bytes) -> Elf:
    """The headers of `image`. Raises InputError for anything but a sound i386 executable with something to load."""
    check_machine(name, image)
    if not is_elf(image) or len(image) < _HEADER.size:
        raise InputError(f"{name}: truncated ELF header")
    _, kind, _, _, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, shstrndx = _HEADER.unpack_from(image)
    if kind != _ET_EXEC:
        raise InputError(f"{name}: {_OTHER_TYPES.get(kind, f'an ELF file of type {kind}')}")
    segments = _segments(name, image, phoff, phentsize, phnum)
    headers = image[shoff : shoff + shnum * SECTION_SIZE] if shoff and shentsize == SECTION_SIZE else b""
    if len(headers) != shnum * SECTION_SIZE or shstrndx >= shnum:  # cut off or stripped: only symbols are lost, the kernel runs without
        headers = b""
    sections = tuple(Section(row[1], row[3], row[4], row[5], row[6]) for row in _SECTION.iter_unpack(headers))
    return Elf(entry, segments, sections, headers, shstrndx if sections else 0)


def symbol_table(elf: Elf, image: bytes) -> tuple[bytes, bytes]:
    """The raw symbol table and the strings that it refers to; both empty when the image has none."""
    for section in elf.sections:
        if section.kind == SHT_SYMTAB and section.link < len(elf.sections):
            return contents(section, image), contents(elf.sections[section.link], image)
    return b"", b""


def contents(section: Section, image: bytes) -> bytes:
    """The bytes of `section`, fewer when the file is cut off."""
    return image[section.offset : section.offset + section.size]


def program_headers(name: str, image: bytes) -> list[tuple[int, int, int]]:
    """(type, offset, bytes in the file) of every program header. Raises InputError as `parse` does."""
    check_machine(name, image)
    if len(image) < _HEADER.size:
        raise InputError(f"{name}: truncated ELF header")
    phoff, phentsize, phnum = (_HEADER.unpack_from(image)[n] for n in (5, 9, 10))
    _check_program_headers(name, image, phoff, phentsize, phnum)
    return [(row[0], row[1], row[4]) for row in (_SEGMENT.unpack_from(image, phoff + n * phentsize) for n in range(phnum))]


def named_sections(image: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, offset, size, name) of every section; none where the table or the names are cut off or stripped."""
    if len(image) < _HEADER.size:
        return []
    shoff, shentsize, shnum, names = (_HEADER.unpack_from(image)[n] for n in (6, 11, 12, 13))
    table = image[shoff : shoff + shnum * SECTION_SIZE]
    if shentsize != SECTION_SIZE or len(table) != shnum * SECTION_SIZE or names >= shnum:
        return []
    rows = list(_SECTION.iter_unpack(table))
    strings = image[rows[names][4] : rows[names][4] + rows[names][5]]
    return [(row[1], row[4], row[5], strings[row[0] : max(row[0], strings.find(b"\0", row[0]))]) for row in rows]


def _check_program_headers(name: str, image: bytes, phoff: int, phentsize: int, phnum: int) -> None:
    if phnum and phentsize < _SEGMENT.size:
        raise InputError(f"{name}: corrupted ELF header: program headers of {phentsize} bytes")
    if phoff + phnum * phentsize > len(image):
        raise InputError(f"{name}: truncated: the program headers lie beyond the end of the file")


def _segments(name: str, image: bytes, phoff: int, phentsize: int, phnum: int) -> tuple[Segment, ...]:
    _check_program_headers(name, image, phoff, phentsize, phnum)
    rows = (_SEGMENT.unpack_from(image, phoff + index * phentsize) for index in range(phnum))
    found = tuple(Segment(row[1], row[2], row[3], row[4], row[5], bool(row[6] & _PF_X)) for row in rows if row[0] == _PT_LOAD and row[5])
    for segment in found:
        if segment.filesz > segment.memsz:
            raise InputError(f"{name}: corrupted ELF file: the segment at {segment.paddr:#x} is larger in the file than in memory")
        if segment.offset + segment.filesz > len(image):
            raise InputError(f"{name}: truncated: the segment at {segment.paddr:#x} lies beyond the end of the file")
    if not found:
        raise InputError(f"{name}: ELF file with nothing to load")
    return found
