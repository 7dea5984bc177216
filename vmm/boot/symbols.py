"""The symbol table of a guest kernel: names for addresses and addresses for names.

Knows ELF symbol entries. Knows no file and no guest; it parses nothing until it is asked for the first time, and then only once.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from vmm.errors import InputError

_SYMBOL: Final = struct.Struct("<IIIBBH")
_LONG_SYMBOL: Final = struct.Struct("<IBBHQQ")
_NOTYPE, _OBJECT, _FUNC = 0, 1, 2
_FUNCTION: Final = 4  # rank of the names of functions, and more for global ones
_UNDEFINED: Final = 0
_RESERVED_SECTIONS: Final = 0xFF00  # SHN_ABS and SHN_COMMON lie from here: constants, not places


class Range(NamedTuple):
    """A loaded segment: `size` bytes linked at `vaddr`, loaded at guest-physical `paddr`."""

    vaddr: int
    paddr: int
    size: int


class Symbols:
    """The symbols of one image.

    `table` and `strings` are the raw contents of its symbol table and string table, both empty for an image without; `long` says that it is
    an ELF64 one; `ranges` says where the image is linked and loaded; `source` is the file's name, for messages.
    """

    def __init__(self, source: str, table: bytes = b"", strings: bytes = b"", ranges: Sequence[Range] = (), *, long: bool = False) -> None:
        self.source, self._long = source, long
        self._raw = (table, strings)
        self._ranges = tuple(ranges)
        self._places: list[tuple[int, int, int, str]] | None = None
        self._addresses: dict[str, int] = {}

    def name(self, address: int) -> str:
        """`address` as "function", "function+0x12", or in hexadecimal where nothing has a name.

        Takes a virtual address of the image or, for code that runs before paging is on, the guest-physical one.
        """
        address = self._linked(address)
        places = self._parsed()
        index = bisect_right(places, address, key=lambda place: place[0])
        if index and self._covered(address):
            start, _, size, name = places[index - 1]
            if address == start:
                return name
            if not size or address < start + size:  # a label in assembly has no size: it names all up to the next one
                return f"{name}+{address - start:#x}"
        return f"{address:#x}"

    def address(self, name: str) -> int:
        """The linked (usually virtual) address of the symbol `name`. Raises InputError, with near matches, when there is none."""
        self._parsed()
        if name in self._addresses:
            return self._addresses[name]
        if not self._addresses:
            raise InputError(f"{name}: no such symbol: {self.source} has no symbols")
        from difflib import get_close_matches  # only a mistake needs it

        near = get_close_matches(name, self._addresses, n=3)
        raise InputError(f"{name}: no such symbol in {self.source}" + (f" (did you mean {', '.join(near)}?)" if near else ""))

    def functions(self) -> list[int]:
        """The addresses of all functions, in order; labels in assembly are none."""
        return sorted({address for address, rank, _, _ in self._parsed() if rank >= _FUNCTION})

    def loaded(self, address: int) -> int | None:
        """The guest-physical address at which what belongs at `address`, linked or guest-physical, was loaded; None outside the image."""
        linked = self._linked(address)
        return next((linked - vaddr + paddr for vaddr, paddr, size in self._ranges if 0 <= linked - vaddr < size), None)

    def extent(self) -> str:
        """In words, where the image is linked and loaded."""
        parts = [f"{vaddr:#x} to {vaddr + size:#x}" + (f" (loaded at {paddr:#x})" if paddr != vaddr else "") for vaddr, paddr, size in self._ranges]
        return ", ".join(parts) or "nowhere known"

    def nearest(self, address: int) -> str:
        """The named place that lies nearest to `address`; nothing when there is none."""
        places = self._parsed()
        if not places:
            return ""
        start, _, _, name = min(places, key=lambda place: abs(place[0] - address))
        return f"{name} at {start:#x}"

    def __len__(self) -> int:
        """How many names there are."""
        self._parsed()
        return len(self._addresses)

    def _linked(self, address: int) -> int:
        """The linked address for a guest-physical one; others stay as they are."""
        if self._covered(address):
            return address
        for vaddr, paddr, size in self._ranges:
            if 0 <= address - paddr < size:
                return address - paddr + vaddr
        return address

    def _covered(self, address: int) -> bool:
        return any(0 <= address - item.vaddr < item.size for item in self._ranges)

    def _parsed(self) -> list[tuple[int, int, int, str]]:
        """The named places, (address, rank, size, name) in order: of several names for an address the last is the best."""
        if self._places is None:
            self._places = self._parse()
            self._raw = (b"", b"")
        return self._places

    def _entries(self, table: bytes) -> Iterator[tuple[int, int, int, int, int]]:
        """Name, value, size, type and binding, and section of each entry."""
        form = _LONG_SYMBOL if self._long else _SYMBOL
        for row in form.iter_unpack(table[: len(table) - len(table) % form.size]):
            yield (row[0], row[4], row[5], row[1], row[3]) if self._long else (row[0], row[1], row[2], row[3], row[5])

    def _parse(self) -> list[tuple[int, int, int, str]]:
        table, strings = self._raw
        places = []
        for offset, value, size, info, section in self._entries(table):
            kind, bound = info & 0xF, info >> 4
            if section == _UNDEFINED or kind > _FUNC or offset >= len(strings):
                continue
            name = strings[offset : strings.find(b"\0", offset)].decode("utf-8", "replace")
            if not name:
                continue
            if bound or name not in self._addresses:  # a global symbol goes before a local one of the same name
                self._addresses[name] = value
            if section < _RESERVED_SECTIONS:
                rank = {_FUNC: _FUNCTION, _NOTYPE: 2, _OBJECT: 0}[kind] + (1 if bound else 0)
                places.append((value, rank, size, name))
        places.sort()
        return places
