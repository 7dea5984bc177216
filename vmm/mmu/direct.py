"""Direct paging: the guest's own page tables drive the CPU, and every entry in them was validated.

A table may only hold frames of the guest's, and no frame is writable while it is a page table (`Frames`); so tables are read-only to the guest, and
change by what is asked of here. The top two levels that the CPU walks are the VMM's: they point at the guest's directories.
Bit 63 of the lowest entries is the VMM's: writable pages are not executable until they are executed (docs/adr/0006).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from operator import length_hint
from typing import Final

from vmm.faults import GuestPageFault
from vmm.machine import FRAME, Machine
from vmm.mmu.frames import FOREIGN, IN_USE, Errno, Frames, Kind, Refused
from vmm.mmu.host import TABLE_ENTRY, HostSpace
from vmm.mmu.leaves import ADDRESS, FORBIDDEN, Leaves
from vmm.x86.bits import Fault, Pte

VMM_START: Final = 0xF580_0000  # linear: from here on the VMM's, which the guest may read
VMM_SLOT: Final = VMM_START >> 21 & 511
_FORBIDDEN_TOP: Final = FORBIDDEN | Pte.NX
_NX: Final = Pte.NX
_NOT_QUICK: Final = FORBIDDEN | Pte.P | Pte.W  # of which must be P and W alone
_REQUEST: Final = struct.Struct("<4I")
_NOT_PLAIN: Final = bytes(flags & _NOT_QUICK & 0xFF != 3 for flags in range(256))  # by the lowest byte of an entry
_GLOBAL: Final = bytes((_NOT_QUICK >> 8 & byte) != 0 for byte in range(256))  # by the next
_READ_ONLY: Final = 0x61 | Pte.NX  # a page of the VMM's that the guest's kernel may read


class DirectMmu:
    """Direct paging of one guest. lenient: plain stores into directories in use are emulated as into lower tables.

    fills, dropped: entries that were validated, and those of tables that are none any more.
    """

    def __init__(self, machine: Machine, frames: Frames, host: HostSpace, visible: list[int]) -> None:
        """visible: frames that the guest's kernel may read from VMM_START on."""
        self.machine, self.frames, self.host, self.quads = machine, frames, host, machine.quads
        self.fills = self.dropped = 0
        self.lenient = True
        self.base = -1  # the top-level table in use
        self.directories = [-1, -1, -1, -1]  # quads index of each directory in use, -1 for none
        self.leaves = Leaves(machine, frames)
        self._hot = (frames.kind, frames.typed, frames.owned, frames.plain, machine.words, self.leaves.tables)
        self._roots = roots = machine.allocate(2 + -(-len(visible) // 512))
        for hfn in roots:
            machine.clear(hfn)
        self.cr3, self._pointers = roots[0] << 12, roots[1] * 512
        self.quads[roots[0] * 512] = roots[1] << 12 | TABLE_ENTRY
        self.quads[roots[0] * 512 + 1] = host.top_entry
        self._own = [0] * (512 - VMM_SLOT)
        for n, hfn in enumerate(visible):
            self.quads[roots[2 + n // 512] * 512 + n % 512] = hfn << 12 | _READ_ONLY
        for n, hfn in enumerate(roots[2:]):
            self._own[n] = hfn << 12 | TABLE_ENTRY & ~(Pte.U | Pte.W)
        frames.changed_type, frames.drop_code = machine.flush_tlb, host.drop_code
        self._take: dict[int, Callable[[int], None]] = {
            Kind.LEAF: self.leaves.take,
            Kind.DIRECTORY: lambda mfn: self._take_directory(mfn, 512),
            Kind.LAST_DIRECTORY: self._take_last_directory,
            Kind.TOP: self._take_top,
        }

    # -- the contract of an MMU ----------------------------------------------------------------------------------------------------

    def load(self, user: bool) -> None:
        """Nothing: a guest loads its tables by `use`."""

    def drop_roots(self) -> None:
        """Nothing is derived from guest tables."""

    def invalidate(self, gva: int) -> None:
        """INVLPG."""
        self.machine.flush_tlb()

    def map_scratch(self, gva: int, hfn: int, user: bool) -> Callable[[], None]:
        """Maps a frame at `gva`, where the guest has a page, for one instruction; the result undoes that."""
        at, entry = self.leaf_entry(gva)
        self.quads[at] = hfn << 12 | Pte.P | Pte.W | Pte.A | Pte.D | entry & Pte.U | _NX
        self.machine.flush_tlb()

        def undo() -> None:
            self.quads[at] = entry
            self.machine.flush_tlb()

        return undo

    def close(self) -> None:
        """Gives the VMM's own tables back to the machine."""
        self.machine.release(self._roots)

    # -- references to tables ------------------------------------------------------------------------------------------------------

    def hold(self, mfn: int, kind: int) -> None:
        """A reference to a table of some level, validated by the first. Raises Refused."""
        if self.frames.take_type(mfn, kind):
            try:
                self._take[kind](mfn)
                self.fills += 512
            except Refused:
                self.frames.drop_type(mfn)
                raise

    def release(self, mfn: int) -> None:
        """Ends a reference to a table; with the last its entries' own references end."""
        frames = self.frames
        kind = frames.kind[mfn]
        if frames.typed[mfn] == 1:
            self._drop_entries(mfn, kind)
            self.dropped += 512
        frames.drop_type(mfn)

    def pin(self, mfn: int, kind: int) -> None:
        """Keeps a table validated until it is unpinned. Raises Refused."""
        if mfn in self.frames.pinned:
            raise Refused(Errno.INVAL, "a second pin")
        self.hold(mfn, kind)
        self.frames.pinned.add(mfn)

    def unpin(self, mfn: int) -> None:
        """Ends a pin. Raises Refused."""
        if mfn not in self.frames.pinned:
            raise Refused(Errno.INVAL, "an unpin without a pin")
        self.frames.pinned.remove(mfn)
        self.release(mfn)

    def use(self, mfn: int) -> None:
        """Makes a top-level table the current one. Raises Refused."""
        if mfn != self.base:
            self.hold(mfn, Kind.TOP)
            old, self.base = self.base, mfn
            self._point()
            if old >= 0:
                self.release(old)
        self.machine.flush_tlb()

    def _point(self) -> None:
        """The CPU's second level follows the guest's top-level table."""
        for n in range(4):
            entry = self.quads[self.base * 512 + n]
            self.quads[self._pointers + n] = entry & ADDRESS & ~0xFFF | TABLE_ENTRY if entry & Pte.P else 0
            self.directories[n] = (entry & ADDRESS) >> 12 << 9 if entry & Pte.P else -1

    def _take_directory(self, mfn: int, count: int) -> None:
        entries = self.quads[mfn * 512 : mfn * 512 + count].tolist()
        taken: list[int] = []
        try:
            for entry in entries:
                if entry & Pte.P:
                    self._take_directory_entry(entry)
                    taken.append(entry)
        except Refused:
            for entry in taken:
                self.release((entry & ADDRESS) >> 12)
            raise

    def _take_last_directory(self, mfn: int) -> None:
        self._take_directory(mfn, VMM_SLOT)
        for n, entry in enumerate(self._own):
            self.quads[mfn * 512 + VMM_SLOT + n] = entry

    def _take_directory_entry(self, entry: int) -> None:
        if entry & (FORBIDDEN | _NX):
            raise Refused(Errno.INVAL, "a forbidden bit in a page-table entry")
        self.hold(entry >> 12, Kind.LEAF)

    def _take_top(self, mfn: int) -> None:
        taken: list[int] = []
        try:
            for n in range(4):
                entry = self.quads[mfn * 512 + n]
                if entry & Pte.P:
                    self._take_top_entry(n, entry)
                    taken.append(entry)
        except Refused:
            for entry in taken:
                self.release(entry >> 12)
            raise

    def _take_top_entry(self, n: int, entry: int) -> None:
        if entry & _FORBIDDEN_TOP:
            raise Refused(Errno.INVAL, "a forbidden bit in a page-table entry")
        self.hold(entry >> 12, Kind.LAST_DIRECTORY if n == 3 else Kind.DIRECTORY)

    def _drop_entries(self, mfn: int, kind: int) -> None:
        quads, at = self.quads, mfn * 512
        if kind == Kind.LEAF:
            self.leaves.drop(mfn)
            return
        count = {Kind.DIRECTORY: 512, Kind.LAST_DIRECTORY: VMM_SLOT, Kind.TOP: 4}[kind]
        for entry in quads[at : at + count].tolist():
            if entry & Pte.P:
                self.release((entry & ADDRESS) >> 12)
        if kind == Kind.LAST_DIRECTORY:  # what is left of the VMM's would make the page look foreign to a later validation
            for n in range(VMM_SLOT, 512):
                quads[at + n] = 0

    # -- updates -------------------------------------------------------------------------------------------------------------------

    def update(self, address: int, entry: int, *, keep_marks: bool = False) -> None:
        """Writes one 64-bit entry at a machine address. keep_marks: with the A and D bits that are there. Raises Refused."""
        frames, mfn, at = self.frames, address >> 12, address >> 3
        if mfn >= frames.count or not frames.owned[mfn]:
            raise Refused(Errno.PERM, FOREIGN)
        kind = frames.kind[mfn] if frames.typed[mfn] else Kind.NONE
        old = self.quads[at]
        if keep_marks and old & Pte.P:
            entry |= old & (Pte.A | Pte.D)
        self.fills += 1
        if kind == Kind.LEAF:
            self._update_leaf(at, old, entry)
        elif kind in (Kind.DIRECTORY, Kind.LAST_DIRECTORY):
            self._update_directory(at, old, entry, last=kind == Kind.LAST_DIRECTORY)
        elif kind == Kind.TOP:
            self._update_top(mfn, at, old, entry)
        elif kind == Kind.DESCRIPTORS:
            raise Refused(Errno.BUSY, IN_USE)
        else:
            self.quads[at] = entry
            self.written(mfn)

    def update_leaf(self, address: int, above: int, entry: int, high: int) -> bool:
        """An update of a leaf entry to a writable page, address and entry in halves, done; False: it is none, and for `update`.

        A hot path: what `update` would do, without its calls. Python's numbers of 32 bits are faster than those of 64.
        """
        kind, typed, owned, plain, words, tables = self._hot
        mfn, frame, at = address >> 12, entry >> 12, address >> 2
        try:
            if above or high or address & 7 or mfn not in tables or not owned[mfn] or mfn in self.frames.whole_tables:
                return False
            old = words[at]
            if entry & _NOT_QUICK != 3 or not plain[frame] or old & 3 == 1:
                return False
        except IndexError:  # no such frame: the guest's mistake, for the other way to refuse
            return False
        self.fills += 1
        words[at] = entry
        words[at + 1] = 0x80000000
        if not typed[frame]:
            kind[frame] = 1
        typed[frame] += 1
        if old & 1:
            before = old >> 12
            if typed[before] > 1:
                typed[before] -= 1
            else:
                self.frames.drop_type(before)
        return True

    def update_leaves(self, requests: bytes) -> int:
        """Does {address, value} requests, the first ones that are such updates; returns how many.

        As hot: what concerns every request is looked at for all at once, and the rest is `update_leaf` without its calls (0.26 us instead of 0.7).
        """
        count, halves = len(requests) >> 4, memoryview(requests).cast("I")
        if halves[1::2].tobytes() != bytes(8 * count) or any(requests[8::16].translate(_NOT_PLAIN)) or any(requests[9::16].translate(_GLOBAL)):
            return next((n for n in range(count) if not self.update_leaf(*_REQUEST.unpack_from(requests, 16 * n))), count)
        kind, typed, owned, plain, words, tables = self._hot
        quads = self.quads
        base, left = -1, iter(halves[::4].tolist())
        try:
            for address, entry in zip(left, halves[2::4].tolist(), strict=True):
                if address & ~0xFF8 != base:
                    mfn = address >> 12
                    if address & 7 or mfn not in tables or not owned[mfn] or mfn in self.frames.whole_tables:
                        break
                    base = mfn << 12
                frame, at = entry >> 12, address >> 2
                old = words[at]
                if not plain[frame] or old & 3 == 1:
                    break
                quads[address >> 3] = entry | _NX
                held = typed[frame]
                typed[frame] = held + 1
                if not held:
                    kind[frame] = 1
                if old & 1:
                    before = old >> 12
                    held = typed[before]
                    if held > 1:
                        typed[before] = held - 1
                    else:
                        self.frames.drop_type(before)
            else:
                self.fills += count
                return count
        except IndexError:
            pass
        finished = count - length_hint(left) - 1
        self.fills += finished
        return finished

    def _update_leaf(self, at: int, old: int, entry: int) -> None:
        if self.frames.whole_tables:
            self.frames.part(at >> 9)
        if (old ^ entry) & (ADDRESS & ~0xFFF | Pte.P | Pte.W) == 0 and not entry & FORBIDDEN:
            self.quads[at] = entry & ADDRESS | old & _NX  # only its flags change
            return
        new = self.leaves.take_entry(entry)
        self.quads[at] = new
        self.leaves.drop_entry(old)

    def _update_directory(self, at: int, old: int, entry: int, *, last: bool) -> None:
        if last and at & 511 >= VMM_SLOT:
            raise Refused(Errno.PERM, "an entry that is the VMM's")
        if entry & Pte.P:
            self._take_directory_entry(entry)
        self.quads[at] = entry
        if old & Pte.P:
            self.release((old & ADDRESS) >> 12)

    def _update_top(self, mfn: int, at: int, old: int, entry: int) -> None:
        if at & 511 >= 4:
            raise Refused(Errno.INVAL, "an entry beyond the four of a top-level table")
        if entry & Pte.P:
            self._take_top_entry(at & 3, entry)
        self.quads[at] = entry
        if mfn == self.base:
            self._point()
            self.machine.flush_tlb()
        if old & Pte.P:
            self.release((old & ADDRESS) >> 12)

    def update_mapping(self, gva: int, entry: int) -> None:
        """Writes the leaf entry that maps `gva`. Raises Refused."""
        at = self._leaf_at(gva)
        if gva >= VMM_START or at < 0:
            raise Refused(Errno.INVAL, "no page table at that address")
        self.fills += 1
        self._update_leaf(at, self.quads[at], entry)

    # -- walks -----------------------------------------------------------------------------------------------------------------------

    def _leaf_at(self, gva: int) -> int:
        """Quads index of the leaf entry for `gva`, -1 where no table is."""
        directory = self.directories[gva >> 30]
        if directory < 0:
            return -1
        entry = self.quads[directory + (gva >> 21 & 511)]
        return (entry & ADDRESS) >> 12 << 9 | gva >> 12 & 511 if entry & Pte.P else -1

    def leaf_entry(self, gva: int) -> tuple[int, int]:
        """(quads index, entry) for `gva`; (-1, 0) where no table is."""
        at = self._leaf_at(gva)
        return (at, self.quads[at]) if at >= 0 else (-1, 0)

    def translate(self, gva: int, write: bool = False, user: bool = False) -> int:
        """The machine address behind `gva`, for the guest's kernel or, with `user`, its user code. Raises GuestPageFault."""
        quads, present = self.quads, 0  # hot: for every argument of a hypercall that is an address
        gva &= 0xFFFFFFFF
        directory = self.directories[gva >> 30]
        upper = quads[directory + (gva >> 21 & 511)] if directory >= 0 else 0
        if upper & 1:
            at = (upper & 0xFFFFFFF000) >> 3 | gva >> 12 & 511
            entry = quads[at]
            if entry & 1:
                rights = upper & entry
                if (not write or rights & 2) and (not user or rights & 4):
                    marks = 0x60 if write else 0x20
                    if entry & marks != marks:
                        quads[at] = entry | marks
                    return entry & 0xFFFFFF000 | gva & 0xFFF
                present = 1
        raise GuestPageFault(gva, (Fault.P if present else 0) | (Fault.W if write else 0) | (Fault.U if user else 0))

    def read(self, gva: int, size: int, user: bool = False) -> bytes:
        """Bytes of the guest's linear memory. Raises GuestPageFault."""
        room = FRAME - (gva & 0xFFF)
        at = self.translate(gva, False, user)
        if size <= room:
            return bytes(self.machine.memory[at : at + size])
        return bytes(self.machine.memory[at : at + room]) + self.read(gva + room, size - room, user)

    def write(self, gva: int, data: bytes) -> None:
        """Writes the guest's linear memory with its kernel's rights; nothing is written when any of it would fault. Raises GuestPageFault."""
        places = []
        while data:
            at = self.translate(gva, True)
            part = data[: FRAME - (gva & 0xFFF)]
            places.append((at, part))
            gva, data = gva + len(part), data[len(part) :]
        for at, part in places:
            self.machine.memory[at : at + len(part)] = part
            self.written(at >> 12)

    def written(self, mfn: int) -> None:
        """The VMM wrote to a frame: what was compiled of it is dropped if any may be (erratum 6)."""
        frames = self.frames
        if frames.coded[mfn]:
            self.host.drop_code(mfn)

    # -- faults -----------------------------------------------------------------------------------------------------------------------

    def executed(self, gva: int) -> bool:
        """A fetch faulted on a page that is present. True when only the VMM's own bit was in the way: it is gone for all mappings of that frame."""
        at, entry = self.leaf_entry(gva)
        if at < 0 or not entry & Pte.P or not entry & _NX:
            return False
        frame = (entry & ADDRESS) >> 12
        frames = self.frames
        frames.single(frame)
        frames.execute(frame)
        self.quads[at] = entry & ADDRESS
        if frames.typed[frame] + frames.untyped[frame] > 1:
            wanted = (entry & ~0xFFF) | _NX
            for leaf in self.leaves.tables:
                table = self.quads[leaf * 512 : leaf * 512 + 512].tolist()
                for n, other in enumerate(table):
                    if other & ~0xFFF == wanted and other & Pte.P:
                        self.quads[leaf * 512 + n] = other & ADDRESS
        self.machine.flush_tlb()  # or stores that the CPU has a translation for would not be noticed
        return True

    def table_written(self, gva: int) -> bool:
        """Whether a write fault of the guest's kernel was a store into a page table that it may have emulated."""
        _, entry = self.leaf_entry(gva)
        if not entry & Pte.P or entry & Pte.W:
            return False
        frames, frame = self.frames, (entry & ADDRESS) >> 12
        if frame >= frames.count or not frames.owned[frame] or not frames.typed[frame]:
            return False
        kind = frames.kind[frame]
        return kind == Kind.LEAF or self.lenient and kind in (Kind.DIRECTORY, Kind.LAST_DIRECTORY, Kind.TOP)
