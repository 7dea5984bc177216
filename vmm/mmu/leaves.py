"""Leaf tables under direct paging: the references that their entries hold, and the VMM's bit in them.

The hot part of validation: a guest pins whole tables. Knows entries and `Frames`; knows no upper level.
"""

from __future__ import annotations

import struct
from typing import Final

from vmm.machine import FRAME, Machine
from vmm.mmu.frames import CHUNK, FOREIGN, IN_USE, Errno, Frames, Kind, Refused
from vmm.x86.bits import Pte

FORBIDDEN: Final = Pte.PWT | Pte.PCD | Pte.PS | Pte.G  # in entries of both lower levels
ADDRESS: Final = (1 << 63) - 1
_NX: Final = Pte.NX
_FORBIDDEN_TEXT: Final = "a forbidden bit in a page-table entry"
_PLAIN: Final = bytes(0 if flags & 0x9B == 3 else 1 for flags in range(256))  # present, writable, nothing forbidden
_ZEROES: Final = bytes(CHUNK)
_PLAIN_HIGH: Final = bytes(4 * CHUNK)  # upper halves of entries without the VMM's bit
_MARKED: Final = b"\0\0\0\x80" * CHUNK  # and with it
_EXECUTABLE_NEVER: Final = memoryview(_MARKED).cast("I")


class Leaves:
    """The leaf tables of one guest. tables: those that are validated."""

    def __init__(self, machine: Machine, frames: Frames) -> None:
        self.frames, self.memory, self.words, self.quads = frames, machine.memory, machine.words, machine.quads
        self.tables: set[int] = set()
        self._patterns: dict[int, bytes] = {}

    def take(self, mfn: int) -> None:
        """The references of all entries of a table. Raises Refused, and then there are none."""
        if not self._take_whole(mfn):
            self._take_each(mfn)
        self.tables.add(mfn)

    def drop(self, mfn: int) -> None:
        """Ends them."""
        self.tables.discard(mfn)
        frames = self.frames
        if frames.drop_whole(mfn):
            return
        typed, untyped = frames.typed, frames.untyped
        for entry in self.quads[mfn * 512 : mfn * 512 + 512].tolist():  # as hot as the way in
            if entry & 1:
                frame, held = (entry & ADDRESS) >> 12, typed if entry & 2 else untyped
                left = held[frame] = held[frame] - 1
                if not left:
                    frames.dropped(frame)

    def _take_whole(self, mfn: int) -> bool:
        """A table that maps a chunk of memory as a whole: a few comparisons of bytes instead of 512 looks (12 us instead of 130)."""
        frames = self.frames
        frame = (self.quads[mfn * 512] & ADDRESS) >> 12
        chunk = frames.chunk[frame] if frame < frames.count else -1
        if chunk < 0 or frames.broken[chunk]:
            return False
        at = mfn * FRAME
        numbers = self.memory[at + 1 : at + FRAME - 3].cast("I")[::2].tobytes()  # each entry's bits 8 to 39
        if numbers != self._pattern(chunk) or self.memory[at : at + FRAME : 8].tobytes().translate(_PLAIN) != _ZEROES:
            return False
        high = self.words[mfn * 1024 + 1 : mfn * 1024 + 1024 : 2]
        bits = high.tobytes()
        if bits != _MARKED:
            if bits != _PLAIN_HIGH:
                return False
            high[:] = _EXECUTABLE_NEVER
        frames.take_whole(mfn, chunk)
        return True

    def _pattern(self, chunk: int) -> bytes:
        found = self._patterns.get(chunk)
        if found is None:
            found = self._patterns[chunk] = struct.pack(f"<{CHUNK}I", *(mfn << 4 for mfn in self.frames.members[chunk]))
        return found

    def _take_each(self, mfn: int) -> None:
        frames, quads, at = self.frames, self.quads, mfn * 512
        owned, kind, typed, untyped, coded, plain = frames.owned, frames.kind, frames.typed, frames.untyped, frames.coded, frames.plain
        entries = quads[at : at + 512].tolist()
        index = -1
        try:
            for index, entry in enumerate(entries):  # hot: 512 times for a pin
                if not entry & 1:
                    continue
                if entry & FORBIDDEN:
                    raise Refused(Errno.INVAL, _FORBIDDEN_TEXT)
                frame = (entry & ADDRESS) >> 12
                if not owned[frame]:
                    raise Refused(Errno.PERM, FOREIGN)
                if entry & 2:
                    if typed[frame]:
                        if kind[frame] != 1:
                            self._reclaimed(frame)
                    if kind[frame] != 1:
                        kind[frame], plain[frame] = 1, not coded[frame]
                    if coded[frame] and not typed[frame] and not untyped[frame]:
                        frames.forget_code(frame)
                    no_execute = not coded[frame]
                    typed[frame] += 1
                else:
                    self.frames.single(frame)
                    no_execute = bool(typed[frame]) and kind[frame] == 1 and not coded[frame]
                    if not no_execute:
                        frames.execute(frame)
                    untyped[frame] += 1
                if no_execute != entry >> 63:
                    quads[at + index] = entry ^ _NX
        except (Refused, IndexError) as reason:
            for entry in entries[:index]:
                self.drop_entry(entry)
            raise reason if isinstance(reason, Refused) else Refused(Errno.PERM, FOREIGN) from None

    def _reclaimed(self, frame: int) -> None:
        """A frame in use as something else: the VMM may be the only one who uses it so. Raises Refused."""
        self.frames.reclaim(frame)
        if self.frames.typed[frame]:
            raise Refused(Errno.BUSY, IN_USE)

    def take_entry(self, entry: int) -> int:
        """The references of one new leaf entry; the result is the entry as it is to be stored. Raises Refused."""
        entry &= ADDRESS
        if not entry & Pte.P:
            return entry
        if entry & FORBIDDEN:
            raise Refused(Errno.INVAL, _FORBIDDEN_TEXT)
        frames, frame = self.frames, entry >> 12
        if frame >= frames.count or not frames.owned[frame]:
            raise Refused(Errno.PERM, FOREIGN)
        if entry & Pte.W:
            frames.take_type(frame, Kind.WRITABLE)
            if frames.coded[frame] and frames.typed[frame] == 1 and not frames.untyped[frame]:
                frames.forget_code(frame)
            no_execute = not frames.coded[frame]
        else:
            frames.single(frame)
            no_execute = frames.typed[frame] > 0 and frames.kind[frame] == Kind.WRITABLE and not frames.coded[frame]
            if not no_execute:
                frames.execute(frame)
            frames.untyped[frame] += 1
        return entry | _NX if no_execute else entry

    def drop_entry(self, entry: int) -> None:
        if entry & Pte.P:
            frame = (entry & ADDRESS) >> 12
            if entry & Pte.W:
                self.frames.drop_type(frame)
            else:
                self.frames.drop(frame)
