"""ELF images for the i386 and for x86-64: the headers, the segments to load, and the raw symbol table.

Knows the file format (System V ABI, "Object Files", and its Intel386 and AMD64 supplements). Knows nothing of memory or of multiboot.

Read here with `struct`, because importing pyelftools takes about 55 ms, which is much of what `vmm run hello` may take on top of Python.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, NoReturn

from vmm.errors import InputError

MAGIC: Final = b"\x7fELF"
SECTION_SIZE: Final = 40  # bytes of a section header in a 32-bit file
SHT_SYMTAB: Final = 2
SHT_STRTAB: Final = 3
_CLASS32, _CLASS64 = 1, 2
_LITTLE: Final = 1
_EM_386, _EM_X86_64 = 3, 62
_ET_EXEC: Final = 2
_PT_LOAD: Final = 1
_PF_X: Final = 1


class _Form(NamedTuple):
    """How headers look in one class of files. order: where in a program header type, offset, vaddr, paddr, filesz, memsz and flags stand."""

    header: struct.Struct
    segment: struct.Struct
    section: struct.Struct
    order: tuple[int, int, int, int, int, int, int]


_FORM_32: Final = _Form(struct.Struct("<16sHHIIIIIHHHHHH"), struct.Struct("<8I"), struct.Struct("<10I"), (0, 1, 2, 3, 4, 5, 6))
_FORM_64: Final = _Form(struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<2I6Q"), struct.Struct("<2I4Q2I2Q"), (0, 2, 3, 4, 5, 6, 1))

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
    """A checked image: every segment lies inside the file. `section_headers` is the raw table, empty when the file has no sound one.

    long: it is for x86-64.
    """

    entry: int
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]
    section_headers: bytes
    section_names: int
    long: bool

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


def is_long(image: bytes) -> bool:
    """Whether the ELF file `image` is one for x86-64."""
    return image[4:6] == bytes((_CLASS64, _LITTLE)) and image[18:20] == _EM_X86_64.to_bytes(2, "little")


def refuse_long(name: str) -> NoReturn:
    """Raises the InputError for a kernel that needs long mode."""
    raise InputError(f"{name}: 64-bit x86-64 kernel, which only --backend hw runs (with --mmu nested, the default for it)")


def check_machine(name: str, image: bytes, *, long_mode: bool = False) -> None:
    """Raises InputError unless the ELF file says that it is for a 32-bit little-endian x86, or with `long_mode` for x86-64; it says what it is."""
    if len(image) < 20:
        raise InputError(f"{name}: truncated ELF header")
    width, order = image[4], image[5]
    machine = int.from_bytes(image[18:20], "little" if order == _LITTLE else "big")
    if is_long(image):
        if long_mode:
            return
        refuse_long(name)
    if (width, order, machine) != (_CLASS32, _LITTLE, _EM_386):
        bits = {_CLASS32: "32-bit ", _CLASS64: "64-bit "}.get(width, "")
        raise InputError(f"{name}: {bits}ELF file for {_MACHINES.get(machine, f'machine {machine}')}: not a 32-bit x86 kernel")


def parse(name: str, image: bytes, *, long_mode: bool = False) -> Elf:
    """The headers of `image`. Raises InputError for anything but a sound executable with something to load, for a CPU that there is."""
    check_machine(name, image, long_mode=long_mode)
    form = _form(image)
    if not is_elf(image) or len(image) < form.header.size:
        raise InputError(f"{name}: truncated ELF header")
    _, kind, _, _, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, shstrndx = form.header.unpack_from(image)
    if kind != _ET_EXEC:
        raise InputError(f"{name}: {_OTHER_TYPES.get(kind, f'an ELF file of type {kind}')}")
    segments = _segments(name, image, phoff, phentsize, phnum)
    size = form.section.size
    headers = image[shoff : shoff + shnum * size] if shoff and shentsize == size else b""
    if len(headers) != shnum * size or shstrndx >= shnum:  # cut off or stripped: only symbols are lost, the kernel runs without
        headers = b""
    sections = tuple(Section(row[1], row[3], row[4], row[5], row[6]) for row in form.section.iter_unpack(headers))
    return Elf(entry, segments, sections, headers, shstrndx if sections else 0, is_long(image))


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
    if len(image) < _form(image).header.size:
        raise InputError(f"{name}: truncated ELF header")
    phoff, phentsize, phnum = (_form(image).header.unpack_from(image)[n] for n in (5, 9, 10))
    return [(kind, offset, filesz) for kind, offset, _, _, filesz, _, _ in _program_headers(name, image, phoff, phentsize, phnum)]


def named_sections(image: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, offset, size, name) of every section; none where the table or the names are cut off or stripped."""
    form = _form(image)
    if len(image) < form.header.size:
        return []
    shoff, shentsize, shnum, names = (form.header.unpack_from(image)[n] for n in (6, 11, 12, 13))
    table = image[shoff : shoff + shnum * form.section.size]
    if shentsize != form.section.size or len(table) != shnum * form.section.size or names >= shnum:
        return []
    rows = list(form.section.iter_unpack(table))
    strings = image[rows[names][4] : rows[names][4] + rows[names][5]]
    return [(row[1], row[4], row[5], strings[row[0] : max(row[0], strings.find(b"\0", row[0]))]) for row in rows]


def _form(image: bytes) -> _Form:
    return _FORM_64 if is_long(image) else _FORM_32


def _program_headers(name: str, image: bytes, phoff: int, phentsize: int, phnum: int) -> list[tuple[int, ...]]:
    """Type, offset, vaddr, paddr, filesz, memsz and flags of each."""
    form = _form(image)
    if phnum and phentsize < form.segment.size:
        raise InputError(f"{name}: corrupted ELF header: program headers of {phentsize} bytes")
    if phoff + phnum * phentsize > len(image):
        raise InputError(f"{name}: truncated: the program headers lie beyond the end of the file")
    rows = (form.segment.unpack_from(image, phoff + index * phentsize) for index in range(phnum))
    return [tuple(row[at] for at in form.order) for row in rows]


def _segments(name: str, image: bytes, phoff: int, phentsize: int, phnum: int) -> tuple[Segment, ...]:
    rows = _program_headers(name, image, phoff, phentsize, phnum)
    found = tuple(Segment(row[1], row[2], row[3], row[4], row[5], bool(row[6] & _PF_X)) for row in rows if row[0] == _PT_LOAD and row[5])
    for segment in found:
        if segment.filesz > segment.memsz:
            raise InputError(f"{name}: corrupted ELF file: the segment at {segment.paddr:#x} is larger in the file than in memory")
        if segment.offset + segment.filesz > len(image):
            raise InputError(f"{name}: truncated: the segment at {segment.paddr:#x} lies beyond the end of the file")
    if not found:
        raise InputError(f"{name}: ELF file with nothing to load")
    return found
