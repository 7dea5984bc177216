"""What a Xen guest kernel says of itself: its ELF notes, or the older `__xen_guest` section.

Knows the two forms (Xen's public headers, elfnote.h) and which answers this VMM can serve. Knows no memory and builds nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vmm.boot import elf
from vmm.errors import InputError

OWNER: Final = b"Xen\0"
GUEST_SECTION: Final = b"__xen_guest"
_PT_NOTE, _SHT_NOTE = 4, 7
_ENTRY, _HYPERCALL_PAGE, _VIRT_BASE, _PADDR_OFFSET, _PAE_MODE = 1, 2, 3, 4, 9
_PVH_ENTRY: Final = 18
_PARAVIRTUAL: Final = frozenset((_ENTRY, _VIRT_BASE))  # a PVH kernel has notes too, but neither of these
_NUMBERS: Final = {
    _ENTRY: "entry", _HYPERCALL_PAGE: "hypercall page", _VIRT_BASE: "virtual base", _PADDR_OFFSET: "physical offset",
}  # fmt: skip
_NOTE: Final = struct.Struct("<3I")
_SPACE: Final = 1 << 32
VMM_START: Final = 0xF580_0000  # from here on linear addresses are the VMM's


@dataclass(frozen=True, slots=True)
class XenNotes:
    """The answers. entry: None where the ELF header's counts. hypercall_page: a virtual address, None for a guest that uses INT 82h itself.

    virt_base: virtual address of the first page of the guest's memory. paddr_offset: what the ELF file's physical addresses lie above theirs.
    """

    virt_base: int
    paddr_offset: int
    entry: int | None
    hypercall_page: int | None


def has_xen_notes(image: bytes) -> bool:
    """Whether a 32-bit ELF file names itself a paravirtual Xen guest, soundly or not. Never raises."""
    try:
        return not elf.is_long(image) and (not _PARAVIRTUAL.isdisjoint(_notes("", image)) or _guest_section(image) is not None)
    except (InputError, struct.error, IndexError):
        return False


def read_xen_notes(name: str, image: bytes) -> XenNotes:
    """The notes of `image`. Raises InputError for a kernel that has none, is not PAE, or contradicts itself."""
    notes = _notes(name, image)
    section = None if notes else _guest_section(image)
    if _PVH_ENTRY in notes and _PARAVIRTUAL.isdisjoint(notes):
        raise InputError(f"{name}: a kernel for Xen's PVH mode only: --backend pv runs paravirtual ones (32-bit PAE)")
    if notes:
        found = _from_notes(name, notes)
    elif section is not None:
        found = _from_section(name, section)
    else:
        raise InputError(f"{name}: neither Xen notes nor a __xen_guest section: not a kernel for --backend pv (32-bit PAE Xen)")
    if found.virt_base & 0xFFF or found.virt_base >= VMM_START:
        raise InputError(f"{name}: bad Xen note: the virtual base {found.virt_base:#x} is no page below {VMM_START:#x}")
    if found.hypercall_page is not None and (found.hypercall_page & 0xFFF or found.hypercall_page < found.virt_base):
        raise InputError(f"{name}: bad Xen note: the hypercall page {found.hypercall_page:#x} is no page above the virtual base")
    return found


def _from_notes(name: str, notes: dict[int, bytes]) -> XenNotes:
    _check_pae(name, notes.get(_PAE_MODE, b"no").split(b"\0", 1)[0])
    numbers: dict[int, int] = {}
    for kind, what in _NUMBERS.items():
        value = notes.get(kind)
        if value is not None:
            if len(value) not in (4, 8) or int.from_bytes(value, "little") >= _SPACE:
                raise InputError(f"{name}: bad Xen note: the {what} is {value.hex() or 'empty'}, not a 32-bit address")
            numbers[kind] = int.from_bytes(value, "little")
    return XenNotes(numbers.get(_VIRT_BASE, 0), numbers.get(_PADDR_OFFSET, 0), numbers.get(_ENTRY), numbers.get(_HYPERCALL_PAGE))


def _from_section(name: str, text: bytes) -> XenNotes:
    """"KEY=VALUE,KEY=VALUE": the hypercall page is a page number above the virtual base."""
    values = dict(item.split(b"=", 1) for item in text.split(b"\0", 1)[0].split(b",") if b"=" in item)
    _check_pae(name, values.get(b"PAE", b"no"))

    def number(key: bytes) -> int | None:
        if key not in values:
            return None
        try:
            value = int(values[key], 0)
        except ValueError:
            value = -1
        if not 0 <= value < _SPACE:
            raise InputError(f"{name}: bad __xen_guest section: {key.decode()}={values[key].decode(errors='replace')!r} is not a 32-bit number")
        return value

    base = number(b"VIRT_BASE") or 0
    offset, page = number(b"ELF_PADDR_OFFSET"), number(b"HYPERCALL_PAGE")
    hypercall_page = None if page is None else base + (page << 12)
    if hypercall_page is not None and hypercall_page >= _SPACE:
        raise InputError(f"{name}: bad __xen_guest section: HYPERCALL_PAGE={page:#x} lies above 4 GiB")
    return XenNotes(base, base if offset is None else offset, number(b"VIRT_ENTRY"), hypercall_page)


def _check_pae(name: str, mode: bytes) -> None:
    if not mode.startswith((b"yes", b"bimodal")):
        raise InputError(f"{name}: a Xen kernel without PAE (its notes say {mode.decode(errors='replace')!r}): only 32-bit PAE ones are supported")


def _notes(name: str, image: bytes) -> dict[int, bytes]:
    """Xen's notes by type: of the program headers, or, when none is Xen's, of the sections."""
    for area in (_program_notes(name, image), _section_notes(image)):
        found = {kind: value for owner, kind, value in area if owner == OWNER}
        if found:
            return found
    return {}


def _program_notes(name: str, image: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    for kind, offset, size in elf.program_headers(name, image):
        if kind == _PT_NOTE:
            yield from _entries(image[offset : offset + size])


def _section_notes(image: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    for kind, offset, size, _ in elf.named_sections(image):
        if kind == _SHT_NOTE:
            yield from _entries(image[offset : offset + size])


def _entries(area: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """The notes of one area. Of a value that is cut off there is what there is: GRUB counts its last note's padding without having it."""
    at = 0
    while at + _NOTE.size <= len(area):
        owner_size, size, kind = _NOTE.unpack_from(area, at)
        owner = at + _NOTE.size
        value = owner + (owner_size + 3 & ~3)
        yield area[owner : owner + owner_size], kind, area[value : value + size]
        at = value + (size + 3 & ~3)


def _guest_section(image: bytes) -> bytes | None:
    for _, offset, size, section in elf.named_sections(image):
        if section == GUEST_SECTION:
            return image[offset : offset + size]
    return None
