"""The walk of a guest's page tables once more, as the manual tells it, one table of levels for both formats: slow and plain on purpose.

SDM 3A 4.3 "32-Bit Paging", 4.4 "PAE Paging", 4.6 "Access Rights", 4.7 "Page-Fault Exceptions". Shares no code with vmm/.
"""

from collections.abc import Callable
from dataclasses import dataclass

Read = Callable[[int, int], int]  # (gpa, bytes) -> value
P, W, U, A, D, PS = 1, 2, 4, 0x20, 0x40, 0x80
NX = 1 << 63


@dataclass(frozen=True)
class Paging:
    """The control registers' part in it. pdptes: the four latched ones, for PAE. Physical addresses have 36 bits."""

    cr3: int
    pae: bool
    pse: bool = True
    write_protect: bool = True
    no_execute: bool = True
    pdptes: tuple[int, ...] = (0, 0, 0, 0)


@dataclass(frozen=True)
class Found:
    """A translation and its rights, and the entries that led to it: (gpa, value), the leaf last."""

    gpa: int
    user: bool
    writable: bool
    executable: bool
    dirty: bool
    entries: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Absent:
    """No translation: bits P and RSVD of the error code."""

    code: int


def _field(value: int, high: int, low: int) -> int:
    return value >> low & (1 << high - low + 1) - 1


def translate(read: Read, paging: Paging, gva: int) -> Found | Absent:
    """What the tables say of `gva`, whoever asks."""
    size = 8 if paging.pae else 4
    index_bits = 9 if paging.pae else 10
    low = 12 + index_bits  # of the directory's index
    if paging.pae:
        pdpte = paging.pdptes[_field(gva, 31, 30)]
        if not pdpte & P:
            return Absent(0)
        table = _field(pdpte, 35, 12) << 12
    else:
        table = _field(paging.cr3, 31, 12) << 12
    entries: list[tuple[int, int]] = []
    for level in (2, 1):
        index = _field(gva, low + index_bits - 1, low) if level == 2 else _field(gva, low - 1, 12)
        at = table + index * size
        entry = read(at, size)
        entries.append((at, entry))
        if not entry & P:
            return Absent(0)
        large = level == 2 and bool(entry & PS) and (paging.pae or paging.pse)
        if _reserved(entry, paging, large):
            return Absent(1 | 8)
        if large or level == 1:
            break
        table = _field(entry, 35 if paging.pae else 31, 12) << 12
    if not large:
        base, offset = _field(entry, 35 if paging.pae else 31, 12) << 12, gva & 0xFFF
    elif paging.pae:
        base, offset = _field(entry, 35, 21) << 21, gva & 0x1FFFFF
    else:
        base, offset = _field(entry, 31, 22) << 22 | _field(entry, 20, 13) << 32, gva & 0x3FFFFF
    values = [value for _, value in entries]
    return Found(
        base + offset,
        all(value & U for value in values),
        all(value & W for value in values),
        not any(value & NX for value in values),
        bool(values[-1] & D),
        tuple(entries),
    )


def _reserved(entry: int, paging: Paging, large: bool) -> bool:
    if not paging.pae:
        return large and bool(entry & 1 << 21)
    bits = [*range(36, 63), *(range(13, 21) if large else ()), *(() if paging.no_execute else (63,))]
    return any(entry >> bit & 1 for bit in bits)


def access(found: Found | Absent, paging: Paging, write: bool, user: bool, fetch: bool) -> int | None:
    """The error code of an access that these tables forbid; None when they allow it."""
    about = 2 * write | 4 * user | 16 * (fetch and paging.pae and paging.no_execute)
    if isinstance(found, Absent):
        return found.code | about
    forbidden = user and not found.user
    forbidden |= write and not found.writable and (user or paging.write_protect)
    forbidden |= fetch and not found.executable
    return 1 | about if forbidden else None


def marked(found: Found, write: bool) -> dict[int, int]:
    """The entries that an allowed access changes: gpa to the new value. A in each, D in the leaf for a write."""
    last = len(found.entries) - 1
    return {at: value | A | (D if write and n == last else 0) for n, (at, value) in enumerate(found.entries)}
