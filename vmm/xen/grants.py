"""The grant table: which of its frames a guest lets its devices' back-ends use.

Version 1 entries {flags, domain, frame} (Xen's public headers, grant_table.h). The table's pages are the VMM's, shared with the guest; it may
hold anything, so everything is checked when it is used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from vmm.machine import FRAME, Machine, OutOfFrames
from vmm.mmu.direct import DirectMmu
from vmm.mmu.frames import Errno, Frames, Kind, Refused

_ENTRY: Final = struct.Struct("<HHI")
_PERMIT, _READ_ONLY, _READING, _WRITING = 1, 4, 8, 16
_KIND_MASK: Final = 3
_GENERAL_ERROR: Final = -1
_BACKENDS: Final = 0  # the domain that they are in, as the store tells the guest


@dataclass(frozen=True, slots=True)
class Mapping:
    """A granted frame that the guest has mapped at a linear address, or by the entry at a machine address."""

    reference: int
    mfn: int
    address: int
    in_entry: bool
    writable: bool


class Grants:
    """The grant table of one domain. most: pages that it may have. mappings: those that the guest has of its own grants, by handle."""

    most: Final = 32

    def __init__(self, machine: Machine, frames: Frames, mmu: DirectMmu) -> None:
        self.machine, self.frames, self.mmu = machine, frames, mmu
        self.frames_used: list[int] = []
        self.mappings: dict[int, Mapping] = {}
        self.handles = 0  # that were ever given

    def table(self, count: int) -> tuple[list[int], int]:
        """The first `count` frames of the table, made if need be, and the status for the guest."""
        if count > self.most:
            return [], _GENERAL_ERROR
        while len(self.frames_used) < count:
            try:
                (mfn,) = self.machine.allocate(1)
            except OutOfFrames:
                return [], _GENERAL_ERROR
            self.machine.clear(mfn)
            self.frames.reserve(mfn)
            self.frames_used.append(mfn)
        return self.frames_used[:count], 0

    def take_over(self, mfns: list[int]) -> None:
        """The table, of a guest that knows its frames. Raises OutOfFrames."""
        self.machine.claim(mfns)
        for mfn in mfns:
            self.frames.reserve(mfn)
        self.frames_used = mfns

    def frame(self, reference: int, domid: int, write: bool) -> int:
        """The frame that a grant lets a domain use. Raises Refused: -EINVAL for a grant that is none, -EPERM for one that does not permit this."""
        flags, to, mfn = _ENTRY.unpack_from(self.machine.memory, self.entry(reference))
        if flags & _KIND_MASK != _PERMIT:
            raise Refused(Errno.INVAL, "a grant that is none")
        if to != domid or (write and flags & _READ_ONLY):
            raise Refused(Errno.PERM, "a grant that does not permit this")
        return int(mfn)

    def entry(self, reference: int) -> int:
        """The machine address of an entry. Raises Refused beyond the table."""
        page, at = divmod(reference * _ENTRY.size, FRAME)
        if page >= len(self.frames_used):
            raise Refused(Errno.INVAL, "a grant beyond the table")
        return self.frames_used[page] * FRAME + at

    def remember(self, mapping: Mapping) -> int:
        """A handle for a mapping that was made; the entry says that it is in use."""
        self.handles += 1
        self.mappings[self.handles] = mapping
        self._show_use(mapping.reference)
        return self.handles

    def forget(self, handle: int) -> None:
        """The mapping is gone."""
        self._show_use(self.mappings.pop(handle).reference)

    def _show_use(self, reference: int) -> None:
        uses = [mapping for mapping in self.mappings.values() if mapping.reference == reference]
        in_use = (_READING if uses else 0) | (_WRITING if any(mapping.writable for mapping in uses) else 0)
        at = self.entry(reference)
        self.machine.memory[at] = self.machine.memory[at] & ~(_READING | _WRITING) | in_use

    def access(self, reference: int, write: bool) -> memoryview:
        """The bytes of a frame that is granted to the VMM's back-ends, for one access. Raises Refused for a grant that is none."""
        mfn = self.frame(reference, _BACKENDS, write)
        if write:
            self.frames.take_type(mfn, Kind.WRITABLE)
            self.frames.drop_type(mfn)
            self.mmu.written(mfn)
        else:
            self.frames.take(mfn)
            self.frames.drop(mfn)
        return self.machine.memory[mfn * FRAME : (mfn + 1) * FRAME]
