"""Machine frames of a paravirtual guest: whose they are, what type each has, and how often it is referred to.

The accounting under direct paging: a frame is writable memory, a page table of some level or a page of descriptors, and only one of them while
its type is in use; so no page table can be written but through the VMM. Knows no page-table format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vmm.machine import Machine


class Errno:
    """Errors of the ABI (Xen's public headers, errno.h)."""

    PERM, NOENT, SRCH, TOOBIG, AGAIN, NOMEM, ACCES, FAULT, BUSY, EXIST, INVAL, NOSPC, NOSYS = 1, 2, 3, 7, 11, 12, 13, 14, 16, 17, 22, 28, 38


class Refused(Exception):
    """What the guest asked for is refused with an error of the ABI. why: for the counters."""

    def __init__(self, error: int, why: str) -> None:
        super().__init__(error, why)
        self.error, self.why = error, why


class Kind:
    """Types of a frame. LAST_DIRECTORY: a directory for the last GiB, which has the VMM's own entries."""

    NONE, WRITABLE, LEAF, DIRECTORY, LAST_DIRECTORY, TOP, DESCRIPTORS = range(7)


NAMES: Final = ("no type", "writable", "L1", "L2", "L2 of the last GiB", "L3", "descriptors")
CHUNK: Final = 512  # frames: as many as a table has entries
FOREIGN: Final = "a frame that is not the guest's"
IN_USE: Final = "a frame in use as something else"


class Frames:
    """The frames of one guest, by machine frame number.

    Most of a guest's memory is only ever mapped writable, 512 pages at a time, by one table in their own order: such a chunk is counted as a
    whole. Whatever treats one frame of a chunk differently breaks it for good: from then on its frames are counted one by one.

    owned[mfn] is 1 for a frame of the guest's. typed counts references that hold its type: writable mappings, table entries, pins, registers;
    kind is the type they hold, and without any only remembered. untyped counts the others: read-only mappings. coded[mfn] is 1 when the CPU may hold
    code that it compiled from the frame: it is or was executable. plain[mfn] is 1 for a frame of the guest's that is not coded and whose kind is none
    or writable: one that may be mapped writable without another look. changed_type(): a frame that was writable becomes something else, so no stale
    translation may let it be written.
    """

    def __init__(self, machine: Machine) -> None:
        count = machine.size // 4096
        self.count = count
        self.owned, self.kind, self.coded = bytearray(count), bytearray(count), bytearray(count)
        self.plain = bytearray(count)
        self.typed, self.untyped = [0] * count, [0] * count
        self.chunk = [-1] * count  # by frame: which chunk it belongs to
        self.members: list[list[int]] = []  # of a chunk, in order
        self.broken, self.ever = bytearray(), bytearray()  # by chunk: counted one by one; was ever counted as a whole
        self.whole: list[int] = []  # by chunk: tables that map all of it writable
        self.whole_tables: dict[int, int] = {}  # such a table -> its chunk
        self.pinned: set[int] = set()
        self.reserved: set[int] = set()  # the VMM's own pages that the guest may map: never freed, never page tables
        self.given_up: set[int] = set()  # owned no more, waiting for their last reference
        self.free: list[int] = []  # owned by nobody in the guest, kept for it
        self.changed_type: Callable[[], None] = lambda: None
        self.reclaim: Callable[[int], None] = lambda mfn: None  # the VMM may give up its own use of a frame
        self.drop_code: Callable[[int], None] = lambda mfn: None  # the CPU's

    def adopt(self, mfns: list[int]) -> None:
        """Makes frames the guest's, in the order of its own pages."""
        for mfn in mfns:
            self.owned[mfn] = self.plain[mfn] = 1
        for start in range(0, len(mfns) - CHUNK + 1, CHUNK):
            members = mfns[start : start + CHUNK]
            for mfn in members:
                self.chunk[mfn] = len(self.members)
            self.members.append(members)
        self.whole = [0] * len(self.members)
        self.broken, self.ever = bytearray(len(self.members)), bytearray(len(self.members))

    def single(self, mfn: int) -> None:
        """This frame is going to be treated differently from the others of its chunk."""
        chunk = self.chunk[mfn]
        if chunk >= 0 and not self.broken[chunk]:
            self._break(chunk)

    def _break(self, chunk: int) -> None:
        self.broken[chunk] = 1
        if not self.ever[chunk]:
            return
        tables = self.whole[chunk]
        for mfn in self.members[chunk]:  # none of them is or was anything but writable memory
            self.kind[mfn] = Kind.WRITABLE
            self.typed[mfn] += tables
        self.whole[chunk] = 0
        self.whole_tables = {table: other for table, other in self.whole_tables.items() if other != chunk}

    def take_whole(self, table: int, chunk: int) -> None:
        """A table maps all of an unbroken chunk writable."""
        self.whole[chunk] += 1
        self.ever[chunk] = 1
        self.whole_tables[table] = chunk

    def drop_whole(self, table: int) -> bool:
        """It does so no more; False when it did not."""
        chunk = self.whole_tables.pop(table, -1)
        if chunk < 0:
            return False
        self.whole[chunk] -= 1
        return True

    def part(self, table: int) -> None:
        """A table that maps a chunk as a whole is about to change in a part: its entries are counted one by one."""
        chunk = self.whole_tables.get(table)
        if chunk is None:
            return
        self.drop_whole(table)
        for mfn in self.members[chunk]:
            self.kind[mfn] = Kind.WRITABLE
            self.typed[mfn] += 1

    def reserve(self, mfn: int) -> None:
        """Makes a page of the VMM's one that the guest may map, writable too."""
        self.owned[mfn], self.plain[mfn], self.kind[mfn] = 1, 1, Kind.WRITABLE
        self.typed[mfn] = 1
        self.reserved.add(mfn)

    def take(self, mfn: int) -> None:
        """One reference more. Raises Refused for a frame that is not the guest's."""
        if mfn >= self.count or not self.owned[mfn]:
            raise Refused(Errno.PERM, FOREIGN)
        self.single(mfn)
        self.untyped[mfn] += 1

    def drop(self, mfn: int) -> None:
        """One reference less, of those that hold no type."""
        self.untyped[mfn] -= 1
        self.dropped(mfn)

    def dropped(self, mfn: int) -> None:
        """There is a reference less, maybe the last."""
        if not self.untyped[mfn] and not self.typed[mfn]:
            if mfn in self.given_up:
                self.given_up.remove(mfn)
                self.free.append(mfn)

    def execute(self, mfn: int) -> None:
        """The CPU may compile code from a frame from now on."""
        self.coded[mfn], self.plain[mfn] = 1, 0

    def forget_code(self, mfn: int) -> None:
        """A frame that nobody can execute is about to be written: no code of what stands there is left."""
        self.drop_code(mfn)
        self.coded[mfn], self.plain[mfn] = 0, 1

    def take_type(self, mfn: int, kind: int) -> bool:
        """One reference more that holds a type; True when it is the first, so that the contents must be checked. Raises Refused."""
        if mfn >= self.count or not self.owned[mfn]:
            raise Refused(Errno.PERM, FOREIGN)
        if kind != Kind.WRITABLE:
            self.single(mfn)
        if self.typed[mfn] and self.kind[mfn] != kind:
            self.reclaim(mfn)
            if self.typed[mfn]:
                raise Refused(Errno.BUSY, IN_USE)
        first = not self.typed[mfn]
        if first:
            if self.kind[mfn] == Kind.WRITABLE and kind != Kind.WRITABLE:
                self.changed_type()
            self.kind[mfn], self.plain[mfn] = kind, kind == Kind.WRITABLE and not self.coded[mfn]
        self.typed[mfn] += 1
        return first

    def drop_type(self, mfn: int) -> bool:
        """One such reference less; True when it was the last."""
        self.typed[mfn] -= 1
        last = not self.typed[mfn]
        self.dropped(mfn)
        return last

    def give_up(self, mfn: int) -> None:
        """The guest gives a frame back: it is free when nothing refers to it any more. Raises Refused."""
        if mfn >= self.count or not self.owned[mfn] or mfn in self.reserved:
            raise Refused(Errno.PERM, FOREIGN)
        self.single(mfn)
        self.owned[mfn] = self.plain[mfn] = 0
        if self.typed[mfn] or self.untyped[mfn]:
            self.given_up.add(mfn)
        else:
            self.free.append(mfn)
            self.changed_type()

    def give_up_unused(self, mfn: int) -> None:
        """The same at once, of a frame that nothing refers to. Raises Refused for any other."""
        if mfn < self.count and self.owned[mfn]:
            self.single(mfn)
            if self.typed[mfn] or self.untyped[mfn]:
                raise Refused(Errno.BUSY, IN_USE)
        self.give_up(mfn)

    def grow(self) -> int | None:
        """A frame for the guest out of those that it gave up; None when there is none."""
        if not self.free:
            return None
        mfn = self.free.pop()
        self.owned[mfn], self.plain[mfn] = 1, not self.coded[mfn]
        self.kind[mfn] = Kind.WRITABLE  # as far as the TLB knows
        return mfn
