"""The grant table: which of its frames a guest lets its devices' back-ends use.

Version 1 entries {flags, domain, frame} (Xen's public headers, grant_table.h). The table's pages are the VMM's, shared with the guest; it may
hold anything, so everything is checked when it is used.
"""

from __future__ import annotations

import struct
from typing import Final

from vmm.machine import FRAME, Machine
from vmm.mmu.direct import DirectMmu
from vmm.mmu.frames import Errno, Frames, Kind, Refused

_ENTRY: Final = struct.Struct("<HHI")
_PERMIT, _READ_ONLY, _READING, _WRITING = 1, 4, 8, 16
_KIND_MASK: Final = 3
_GENERAL_ERROR: Final = -1


class Grants:
    """The grant table of one domain. most: pages that it may have."""

    most: Final = 32

    def __init__(self, machine: Machine, frames: Frames, mmu: DirectMmu) -> None:
        self.machine, self.frames, self.mmu = machine, frames, mmu
        self.frames_used: list[int] = []

    def table(self, count: int) -> tuple[list[int], int]:
        """The first `count` frames of the table, made if need be, and the status for the guest."""
        if count > self.most:
            return [], _GENERAL_ERROR
        while len(self.frames_used) < count:
            (mfn,) = self.machine.allocate(1)
            self.machine.clear(mfn)
            self.frames.reserve(mfn)
            self.frames_used.append(mfn)
        return self.frames_used[:count], 0

    def access(self, reference: int, write: bool) -> memoryview:
        """The bytes of a granted frame, for one access. Raises Refused for a grant that is none."""
        page, at = divmod(reference * _ENTRY.size, FRAME)
        if page >= len(self.frames_used):
            raise Refused(Errno.INVAL, "a grant beyond the table")
        flags, _, mfn = _ENTRY.unpack_from(self.machine.memory, self.frames_used[page] * FRAME + at)
        if flags & _KIND_MASK != _PERMIT or (write and flags & _READ_ONLY):
            raise Refused(Errno.INVAL, "a grant that does not permit this")
        if write:
            self.frames.take_type(mfn, Kind.WRITABLE)
            self.frames.drop_type(mfn)
            self.mmu.written(mfn)
        else:
            self.frames.take(mfn)
            self.frames.drop(mfn)
        return self.machine.memory[mfn * FRAME : (mfn + 1) * FRAME]
