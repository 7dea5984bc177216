"""Shadow page tables: what the CPU really walks, built on demand from the guest's tables.

One `Root` per guest page-table pointer (two with `--ring 3`: one each for virtual user and kernel mode), and one `Leaf` per
guest page table, shared by all roots that use it (docs/adr/0003). Guest tables are write-protected (traced). The first write
to a leaf table lets it go out of sync, as a TLB may, until INVLPG or a page-table pointer load; a directory of the current
root is kept exact by stepping over each write. Accessed and dirty bits are exact: an entry is made when the guest's A is
set, and is writable only when its D is. Every leaf entry carries all rights; upper entries forbid nothing.

Knows the guest's walk, frames and their uses. Must not know what runs the guest; the window's tables are handed to it.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.machine import BUS, FRAME, Machine, OutOfFrames
from vmm.memory import CODE, DESCRIPTORS, EXECUTED, MIXED, TABLE, GuestMemory
from vmm.mmu.host import NX, TABLE_ENTRY, Host
from vmm.mmu.reverse_map import HFN_BITS, ReverseMap
from vmm.mmu.tables import DeviceAccess, Leaf, Root, StepOver
from vmm.mmu.walk import GuestPaging, Mapping
from vmm.x86.bits import Pte

_P, _W, _U = Pte.P, Pte.W, Pte.U
_PRESENT = 0x61  # P A D: the physical A and D bits are of no interest
_AROUND = 16  # entries filled around a fault
_AROUND_LARGE = 128
_BARREN = 4  # fruitless looks at a table's entries before there are no more
_MANY_CHANGES = 64  # entries changed behind our back after which a table is built anew


class ShadowMmu:
    """The shadow tables of one guest.

    deprivileged: the guest's kernel runs at CPL 3 too, so its table differs from the user's by mode (`--ring 3`).
    kernel_executes: kernel mode runs the guest's own code, so what it fetches is executable; else nothing is (it is translated).
    legacy: the CPU is in legacy mode. made_writable(gfn, uses): called before a frame in the state of CODE or DESCRIPTORS is opened for writing.
    """

    def __init__(
        self,
        machine: Machine,
        memory: GuestMemory,
        paging: GuestPaging,
        host: Host,
        *,
        deprivileged: bool,
        kernel_executes: bool = False,
        legacy: bool = False,
    ) -> None:
        self.machine, self.memory, self.paging, self.host, self.legacy = machine, memory, paging, host, legacy
        self.deprivileged, self.kernel_executes = deprivileged, kernel_executes
        self.quads = machine.quads
        self.roots: dict[tuple[int, ...], Root] = {}
        self.leaves: dict[tuple[int, ...], Leaf] = {}
        self.leaves_of: dict[int, list[Leaf]] = {}
        self.roots_of: dict[int, list[Root]] = {}
        self.out_of_sync: dict[int, bytes] = {}  # guest leaf table -> what it held when it was last in sync
        self.copies: dict[int, bytes] = {}  # guest directory being stepped over -> what it held
        self.devices: dict[int, set[int]] = {}  # gfn of device memory -> entries that lead to the bus
        self.reverse = ReverseMap(machine, memory, host)
        self.windows: tuple[dict[int, int], dict[int, int]] = {}, {}  # kernel code's window, user code's: region -> upper entry
        self.made_writable: Callable[[int, int], None] = lambda gfn, uses: None
        self.unchecked_directories = False  # set when a directory that the window check has not seen came into use
        self.fills = self.entries = 0
        self._last_page = self._run = 0
        memory.before_write, memory.after_write = self.written, self.retrace
        self.traces, self.raw_pointer = True, False  # mistakes to be looked at (docs/EXERCISES.md): no traces; gpas taken for hpas
        self.goes_out_of_sync = True  # a leaf table at its first write; else each write is stepped over
        self.current = self._root(user=False)

    # -- roots -------------------------------------------------------------------------------------------------------------

    def _key(self, user: bool) -> tuple[int, ...]:
        paging = self.paging
        if not paging.enabled:
            return (user, -1)
        if paging.pae:
            return (user, *paging.pdptes)
        return (user, paging.cr3 & 0xFFFFF000)

    def _root(self, user: bool) -> Root:
        """The root of the guest's present tables, made when there is none."""
        key = self._key(user)
        root = self.roots.pop(key, None)
        if root is None:
            frames = self._frames(6)
            top, pointers, *directories = frames
            root = Root(key, frames, [hfn << 9 for hfn in directories], user, legacy=self.legacy)
            self.quads[top << 9] = pointers << 12 | TABLE_ENTRY
            self.quads[(top << 9) + 1] = self.host.top_entry
            for n, hfn in enumerate(directories):
                self.quads[(pointers << 9) + n] = hfn << 12 | TABLE_ENTRY
                # Behind the end of the 4 GiB a long-mode CPU goes on: there a 32-bit guest finds its pages again.
                self.quads[(pointers << 9) + 4 + n] = hfn << 12 | TABLE_ENTRY
            for window, of_user in zip(self.windows, (False, True), strict=True):
                if self._has_window(root, of_user):
                    for region, entry in window.items():
                        self.quads[root.directories[region >> 9] + (region & 511)] = entry
            if not user:
                self.unchecked_directories = True
            if self.paging.enabled:
                root.watched = sorted({gfn for gfn in self._directory_gfns() if gfn < self.memory.count})
                for gfn in root.watched:
                    self.roots_of.setdefault(gfn, []).append(root)
                    self._trace(gfn)
        self.roots[key] = root  # the most recently used last
        return root

    def _directory_gfns(self) -> list[int]:
        paging = self.paging
        if not paging.pae:
            return [paging.cr3 >> 12]
        return [(pdpte & 0xFFFFFFFFFF000) >> 12 for pdpte in paging.pdptes if pdpte & _P]

    def load(self, user: bool) -> None:
        """The guest loaded its page-table pointer (or changed the paging mode): set_ptp(table, kmode) of the lecture.

        Everything out of sync is brought back into sync, the root of the new tables is made current and loaded.
        """
        before, self.current = self.current, self._root(user and self.deprivileged)
        self._resync()
        if not self.current.leaves:
            self._inherit(self.current, before)
        self.machine.set_cr3(self.current.cr3)

    def _inherit(self, root: Root, before: Root) -> None:
        """A new root gets the regions for which its directories say what those of the root before it say: nearly always the guest's kernel.

        Such an entry has its accessed bit. Without this, each new process of Linux takes some 20 faults to find its kernel again.
        """
        if self.copies or before.late or before.user != root.user or len(before.key) != len(root.key) or not self.paging.enabled:
            return
        for region, leaf in before.leaves.items():
            if (leaf.guest >= 0 or leaf.gfn < 0) and self._entry(root.key, region) == self._entry(before.key, region):
                leaf.links.add((root, region))
                root.leaves[region] = leaf
                self.quads[root.directories[region >> 9] + (region & 511)] = leaf.hfn << 12 | TABLE_ENTRY

    def switch(self, user: bool) -> None:
        """Changes between the user's and the kernel's table of the same guest table (`--ring 3`)."""
        if self.deprivileged and self.current.user != user:
            self.current = self._root(user)
            self.machine.set_cr3(self.current.cr3)

    def drop_roots(self) -> None:
        """Forgets all shadow tables, for a change that concerns them all (CR0.WP, CR4.PAE, ...). `load` must follow."""
        for root in list(self.roots.values()):
            self._drop_root(root)
        for leaf in list(self.leaves.values()):
            self._drop_leaf(leaf)
        self.out_of_sync.clear()
        self.reverse.clear()

    def _has_window(self, root: Root, user: bool) -> bool:
        """Whether user code, or kernel code, runs under a root."""
        return not self.deprivileged or root.user == user

    def set_window(self, entries: dict[int, int], user: bool) -> None:
        """Maps the window of user or kernel code, by region and upper entry, where such code runs; the former one is unmapped."""
        window = self.windows[user]
        for root in self.roots.values():
            if self._has_window(root, user):
                for region in window:
                    self.quads[root.directories[region >> 9] + (region & 511)] = 0
                for region, entry in entries.items():
                    self._unlink_region(root, region)
                    self.quads[root.directories[region >> 9] + (region & 511)] = entry
        window.clear()
        window.update(entries)
        self.machine.flush_tlb()

    def _frames(self, count: int) -> list[int]:
        """Zeroed frames for tables; when the machine has none left, all but the current root are given up for them."""
        try:
            frames = self.machine.allocate(count)
        except OutOfFrames:
            self._give_up()
            frames = self.machine.allocate(count)
        for hfn in frames:
            self.machine.clear(hfn)
        return frames

    def _give_up(self) -> None:
        for root in list(self.roots.values()):
            if root is not self.current:
                self._drop_root(root)
        for leaf in list(self.leaves.values()):
            self._drop_leaf(leaf)
        self.machine.flush_tlb()

    def _drop_root(self, root: Root) -> None:
        for region in list(root.leaves):
            self._unlink_region(root, region)
        for gfn in root.watched:
            self.roots_of[gfn].remove(root)
        if self.roots.get(root.key) is root:
            del self.roots[root.key]
        self.machine.release(root.frames)

    def _drop_leaf(self, leaf: Leaf) -> None:
        for root, region in leaf.links:
            del root.leaves[region]
            self.quads[root.directories[region >> 9] + (region & 511)] = 0
        leaf.links.clear()
        del self.leaves[leaf.key]
        if leaf in self.leaves_of.get(leaf.gfn, ()):
            self.leaves_of[leaf.gfn].remove(leaf)
        self.machine.clear(leaf.hfn)  # what the reverse map remembers of it must not look alive
        self.machine.release([leaf.hfn])

    def _unlink_region(self, root: Root, region: int) -> None:
        leaf = root.leaves.pop(region, None)
        if leaf is not None:
            leaf.links.discard((root, region))
            self.quads[root.directories[region >> 9] + (region & 511)] = 0

    def _is_current(self, root: Root) -> bool:
        """Whether a root belongs to the guest tables now loaded, in either mode."""
        return root.key[1:] == self.current.key[1:]

    # -- traces ----------------------------------------------------------------------------------------------------------------

    def _trace(self, gfn: int) -> None:
        """Write-protects a guest table."""
        if self.traces and not self.memory.state[gfn] & TABLE:
            self.memory.state[gfn] |= TABLE
            self.reverse.protect(gfn)


    def written(self, gfn: int) -> bool:
        """A frame whose state is not 0 is about to be written: ends its uses. False: it stays protected, and `retrace` must follow the write."""
        memory = self.memory
        uses = memory.state[gfn]
        if uses & (EXECUTED | MIXED):
            self.reverse.end_execution(gfn)
        if uses & (CODE | DESCRIPTORS):
            self.made_writable(gfn, uses)
        if not uses & TABLE:
            memory.state[gfn] = 0
            return True
        for root in [root for root in self.roots_of.get(gfn, ()) if not self._is_current(root)]:
            self._drop_root(root)
        for leaf in list(self.leaves_of.get(gfn, ())):
            if not any(self._is_current(root) for root, _ in leaf.links):
                self._drop_leaf(leaf)
        if self.roots_of.get(gfn) or not self.goes_out_of_sync and self.leaves_of.get(gfn):
            self.copies.setdefault(gfn, memory.read(gfn << 12, FRAME))
            memory.state[gfn] = TABLE
            return False
        if self.leaves_of.get(gfn):
            self.out_of_sync[gfn] = memory.read(gfn << 12, FRAME)
        memory.state[gfn] = 0
        return True

    def retrace(self, gfn: int) -> None:
        """A directory of the current root was written: drops what its changed entries led to, and protects it again."""
        before, now = self.copies.pop(gfn), self.memory.read(gfn << 12, FRAME)
        if before != now:
            self.unchecked_directories = True
        for root in list(self.roots_of.get(gfn, ())):
            if before != now or root.late:
                self._drop_changed_regions(root, gfn, before, now)
        if self.leaves_of.get(gfn):  # a table that maps itself
            self._resync_leaves(gfn, before, now)
            self.machine.flush_tlb()
        self.reverse.protect(gfn)

    def _drop_changed_regions(self, root: Root, gfn: int, before: bytes, now: bytes) -> None:
        """Unlinks what a directory does not lead to any more: its entry differs, and not because the region was linked by the new one."""
        width = 8 if self.paging.pae else 4
        changed, entries = _changed_entries(before, now, width), memoryview(now).cast("Q" if width == 8 else "I")
        if self.paging.pae:
            slots = [slot for slot, pdpte in enumerate(root.key[1:]) if pdpte & _P and (pdpte & 0xFFFFFFFFFF000) >> 12 == gfn]
            regions = {slot << 9 | index for slot in slots for index in changed}
            late = {region: root.late.pop(region) for region in list(root.late) if region >> 9 in slots}
        else:
            regions = {2 * index + half for index in changed for half in (0, 1)}
            late, root.late = root.late, {}
        for region in regions | late.keys():
            if late.get(region) != entries[region & 511 if width == 8 else region >> 1]:
                self._unlink_region(root, region)

    def _resync(self) -> None:
        """Brings tables that went out of sync back; those that the current root does not use, or that changed a lot, are given up."""
        if not self.out_of_sync:
            return
        pending, self.out_of_sync = self.out_of_sync, {}
        for gfn, before in pending.items():
            leaves = self.leaves_of.get(gfn, ())
            if leaves and any(self._is_current(root) for leaf in leaves for root, _ in leaf.links):
                self._resync_leaves(gfn, before, self.memory.read(gfn << 12, FRAME))
            else:
                for leaf in list(leaves):
                    self._drop_leaf(leaf)
            if self.leaves_of.get(gfn):
                self._trace(gfn)

    def _resync_leaves(self, gfn: int, before: bytes, now: bytes, *, stays_open: bool = False) -> None:
        """Takes away what a guest table, which once held `before`, does not say any more. stays_open: its leaves remain out of sync."""
        width = 8 if self.paging.pae else 4
        changed, entries = _changed_entries(before, now, width), memoryview(now).cast("Q" if width == 8 else "I")
        for leaf in list(self.leaves_of[gfn]):
            late, first = leaf.late, leaf.half << 9
            if not changed and not late:
                continue
            slots = {index & 511 for index in changed if index >> 9 == leaf.half} | late.keys()
            stale = [slot for slot in slots if late.get(slot) != entries[first | slot]]
            if len(stale) > _MANY_CHANGES:
                self._drop_leaf(leaf)
                continue
            for slot in stale:
                self.quads[leaf.at + slot] = 0
                late.pop(slot, None)
            if not stays_open:
                leaf.late = {}
            if not leaf.watched.isdisjoint(stale):
                leaf.changes += 1

    def watch(self, gva: int, user: bool) -> int:
        """The gfn that a fetch at `gva` leads to, whose change the leaf table of that region will count. Raises GuestPageFault."""
        return self._watched(gva, user, self.paging.walk(gva, False, user, True))

    def look(self, gva: int, user: bool) -> int:
        """The same without setting an accessed bit: -1 where there is a fault, or such a bit to be set."""
        mapping = self.paging.look(gva, user)
        return -1 if mapping is None else self._watched(gva, user, mapping)

    def _watched(self, gva: int, user: bool, mapping: Mapping) -> int:
        leaf, slot = self._leaf(gva, mapping, user), gva >> 12 & 511
        leaf.watched.add(slot)
        if leaf.guest >= 0:
            self._note_late(leaf, slot)
        return mapping.gpa >> 12

    def _note_late(self, leaf: Leaf, slot: int) -> None:
        """Remembers by which entry of the guest's a slot was filled, if the guest writes that table unnoticed."""
        if leaf.gfn in self.out_of_sync or leaf.gfn in self.copies:
            leaf.late[slot] = (self.quads if self.paging.pae else self.memory.words)[leaf.guest + slot]

    def invalidate(self, gva: int) -> None:
        """INVLPG."""
        self.paging.forget()
        for root in self.roots.values():
            if self._is_current(root):
                leaf = root.leaves.get(gva >> 21)
                if leaf is not None and self.quads[leaf.at + (gva >> 12 & 511)]:
                    self.quads[leaf.at + (gva >> 12 & 511)] = 0
                    self.machine.flush_tlb()

    def directory_entry(self, region: int) -> int:
        """The guest's current directory entry for a region of 2 MiB; with paging off one that maps it to itself."""
        return self._entry(self._key(False), region) if self.paging.enabled else region << 21 | _P | Pte.PS

    def _entry(self, key: tuple[int, ...], region: int) -> int:
        """The guest's directory entry for a region under the root of a key."""
        if not self.paging.pae:
            return self.memory.read32(key[1] + 4 * (region >> 1))
        pdpte = key[1 + (region >> 9)]
        return self.memory.read64((pdpte & 0xFFFFFFFFFF000) + 8 * (region & 511)) if pdpte & _P else 0

    # -- fills -----------------------------------------------------------------------------------------------------------------

    def fault(self, gva: int, write: bool, user: bool, fetch: bool) -> DeviceAccess | StepOver | None:
        """A page fault of the CPU: hidden (None: repaired, go on), or one of the other outcomes. Raises GuestPageFault for a true one."""
        if not fetch and self.refill(gva, write, user):
            return None
        mapping = self.paging.walk(gva, write, user, fetch)
        gfn = mapping.gpa >> 12
        memory = self.memory
        step = read_only = None
        raw = self.raw_pointer and self.paging.enabled
        if gfn >= memory.count or raw:
            hfn = self._any_frame(gfn) if raw else memory.read_only.get(gfn)
            if hfn is None or write or fetch:
                return DeviceAccess(mapping.gpa)
            leaf = self._leaf(gva, mapping, user)
            entry = hfn << 12 | _PRESENT | NX | (_U if mapping.user or self.deprivileged and not user else 0)
            read_only = hfn
        else:
            leaf = self._leaf(gva, mapping, user)  # before the rights: it may trace the very frame
            both = False
            if memory.state[gfn] and write:
                both = (user or self.kernel_executes) and mapping.executable and self.reverse.becomes_both(gfn)
                if not both and not self.written(gfn):
                    step = StepOver(gfn)
            elif fetch and (user or self.kernel_executes):
                self.reverse.make_executable(gfn)
            entry = memory.frames[gfn] << 12 | self._rights(mapping, gfn, write, user)
            if both:
                entry |= _W
                memory.state[gfn] |= MIXED
            if step:
                entry |= _W
        index = leaf.at + (gva >> 12 & 511)
        self.quads[index] = entry
        if leaf.guest >= 0:
            self._note_late(leaf, gva >> 12 & 511)
        self.fills += 1
        if read_only is not None:
            self.reverse.borrowed.setdefault(read_only, []).append(index)
            return None
        self.reverse.add(gfn, entry, index)
        if mapping.large or not self.paging.enabled:
            self._fill_large(gva, mapping, leaf, user)
        elif leaf.guest >= 0:
            self._fill_around(gva >> 12, leaf, user)
        return step

    def _any_frame(self, number: int) -> int | None:
        """Whatever lies at a host-physical frame, if there is memory: what the CPU would reach by a guest's tables as they are. To be read only."""
        return number if number < self.machine.size // FRAME else None

    def refill(self, gva: int, write: bool, user: bool) -> bool:
        """The common case of `fault`, by itself for speed: an allowed access to RAM through a leaf that exists. False: not that.

        57,000 of these in an xv6 boot, which touches each page once: 6 us each here, 14 by the walk (docs/PERFORMANCE.md).
        """
        leaf = self.current.leaves.get(gva >> 21)
        paging = self.paging
        if leaf is None or leaf.guest < 0 or not paging.write_protect or self.copies:
            return False
        slot = gva >> 12 & 511
        memory = self.memory
        if paging.pae:
            table, entry = self.quads, self.quads[leaf.guest + slot]
            if entry & paging.reserved or (entry | leaf.directory) >> 63:
                return False
        else:
            table, entry = memory.words, memory.words[leaf.guest + slot]
        rights = entry & leaf.directory
        if not entry & _P or user and not rights & _U or write and not rights & _W:
            return False
        gfn = (entry & HFN_BITS) >> 12
        if gfn >= memory.count:
            return False
        state = memory.state[gfn]
        if state and (write or state & (EXECUTED | MIXED)):
            return False
        wanted = entry | (Pte.A | Pte.D if write else Pte.A)
        if entry != wanted:
            table[leaf.guest + slot] = wanted
        shadow = memory.frames[gfn] << 12 | _PRESENT | NX | (rights & _U or (_U if self.deprivileged and not user else 0))
        index = leaf.at + slot
        if rights & _W and wanted & Pte.D and not state:
            shadow |= _W
            self.quads[index] = shadow
            self.reverse.add(gfn, shadow, index)
        else:
            self.quads[index] = shadow
        if leaf.gfn in self.out_of_sync or leaf.gfn in self.copies:
            leaf.late[slot] = wanted
        self.fills += 1
        page = gva >> 12
        self._run = self._run + 1 if page - self._last_page in (0, 1) else 0
        self._last_page = page
        if not write or not self._run:  # a run of writes would fault again on what is filled without D
            self._fill_around(page, leaf, user)
        return True

    def map_device(self, gva: int, write: bool, user: bool) -> None:
        """Leads an address of device memory to the machine's bus, with the guest's rights, until its tables change."""
        mapping = self.paging.walk(gva, write, user)
        rights = _PRESENT | NX | (_U if mapping.user else 0)
        if mapping.dirty and (mapping.writable or not self.paging.write_protect and not mapping.user):
            rights |= _W
        leaf = self._leaf(gva, mapping, user)
        index = leaf.at + (gva >> 12 & 511)
        self.quads[index] = BUS + (mapping.gpa & ~0xFFF) | rights
        if leaf.guest >= 0:
            self._note_late(leaf, gva >> 12 & 511)
        self.devices.setdefault(mapping.gpa >> 12, set()).add(index)

    def lend(self, gfn: int, hfn: int) -> None:
        """A device's page that may be read in memory: the next read finds it there."""
        for index in self.devices.pop(gfn, ()):
            if self.quads[index] & HFN_BITS == BUS + (gfn << 12):
                self.quads[index] = 0
        self.machine.flush_tlb()

    def forget_borrowed(self, hfn: int) -> None:
        """Takes away all mappings of a frame that stood in for a device's registers."""
        self.reverse.forget_borrowed(hfn)

    def code_frame(self, gva: int, user: bool) -> int | None:
        """The frame (hfn) that the CPU fetches from at `gva`, through an entry that is made if need be; None where there is no RAM.

        Raises GuestPageFault where the guest's own tables forbid the fetch.
        """
        while True:
            leaf = self.current.leaves.get(gva >> 21)
            if leaf is not None:
                entry = self.quads[leaf.at + (gva >> 12 & 511)]
                if entry & _P and not entry & NX and (not user or entry & _U):
                    return (entry & HFN_BITS) >> 12
            if self.fault(gva, False, user, True) is not None:
                return None

    def map_scratch(self, gva: int, hfn: int, user: bool) -> Callable[[], None]:
        """Maps a frame of the VMM's at `gva`, writable, for one instruction; returns what takes it away again."""
        mapping = self.paging.walk(gva, False, user)
        index = self._leaf(gva, mapping, user).at + (gva >> 12 & 511)
        self.quads[index] = hfn << 12 | _PRESENT | NX | _W | (_U if user or self.deprivileged else 0)

        def unmap() -> None:
            if self.quads[index] & HFN_BITS == hfn << 12:
                self.quads[index] = 0
            self.machine.flush_tlb()

        self.machine.flush_tlb()
        return unmap

    def _rights(self, mapping: Mapping, gfn: int, write: bool, user: bool) -> int:
        """A leaf entry's bits but its frame."""
        state = self.memory.state[gfn]
        rights = _PRESENT
        executable = state & EXECUTED and mapping.executable
        if self.deprivileged and not user:
            rights |= _U if self.kernel_executes and executable else _U | NX
            if mapping.dirty and not state and (mapping.writable or not self.paging.write_protect):
                rights |= _W
            return rights
        if not mapping.user:
            rights |= 0 if self.kernel_executes and executable else NX
            if mapping.dirty and not state and (mapping.writable or not self.paging.write_protect):
                rights |= _W
            return rights
        if write and not mapping.writable:  # the guest's kernel, with CR0.WP clear: user mode must not have it meanwhile
            return rights | NX if state else rights | NX | _W
        rights |= _U
        if not executable:
            rights |= NX
        if mapping.writable and mapping.dirty and not state:
            rights |= _W
        return rights


    def _leaf(self, gva: int, mapping: Mapping, user: bool) -> Leaf:
        """The leaf table for an address under the current root, made and linked when there is none."""
        root, region = self.current, gva >> 21
        kernel_table = self.deprivileged and not root.user
        directory = mapping.directory & 7
        if not self.paging.enabled:
            key: tuple[int, ...] = (-1, region)
            gfn = -1
        elif mapping.large:
            key = (-2, mapping.gpa >> 21, directory, mapping.executable, kernel_table, mapping.dirty)
            gfn = -1
        else:
            gfn = mapping.table >> 12
            key = (gfn, 0 if self.paging.pae else region & 1, directory, mapping.directory >> 63, kernel_table)
        leaf = root.leaves.get(region)
        if leaf is not None:
            if leaf.key == key:
                if self.copies and len(leaf.links) > 1:
                    self._unlink_others(leaf, root, region)
                return leaf
            self._unlink_region(root, region)  # a large page's one D bit was set, or the directory was written and nothing flushed since
        if (before := self.out_of_sync.get(gfn, self.copies.get(gfn))) is not None and self.leaves_of.get(gfn):
            self._resync_leaves(gfn, before, self.memory.read(gfn << 12, FRAME), stays_open=True)  # no TLB holds anything of what is linked anew
        leaf = self.leaves.get(key)
        if leaf is None:
            hfn = self._frames(1)[0]
            half, guest = key[1] if gfn >= 0 else 0, -1
            if 0 <= gfn < self.memory.count:
                guest = self.memory.frames[gfn] << 9 if self.paging.pae else self.memory.frames[gfn] << 10 | half << 9
            leaf = self.leaves[key] = Leaf(key, hfn, gfn, half, hfn << 9, guest, mapping.directory)
            if guest >= 0:
                self.leaves_of.setdefault(gfn, []).append(leaf)
                if gfn not in self.out_of_sync and gfn not in self.copies:
                    self._trace(gfn)
            if self.raw_pointer:
                leaf.guest = -1  # each fault is looked at
        leaf.links.add((root, region))
        root.leaves[region] = leaf
        if self.copies and self.paging.enabled:
            self._unlink_others(leaf, root, region)
            root.late[region] = self.directory_entry(region)
        self.quads[root.directories[region >> 9] + (region & 511)] = leaf.hfn << 12 | TABLE_ENTRY
        return leaf

    def _unlink_others(self, leaf: Leaf, root: Root, region: int) -> None:
        """While a directory is written and not flushed: what is filled for one region must not show in another that led to the same table."""
        for other, at in list(leaf.links):
            if other is root and at != region:
                self._unlink_region(root, at)

    def _fill_around(self, page: int, leaf: Leaf, user: bool) -> None:
        """Fills neighbours too: those whose A bit is set, and, behind a run of faults on successive pages, those where it is not.

        A CPU may set A for what it fetches ahead (SDM 3A 4.8); D is never set ahead.
        """
        ahead = self._run >= 2
        if leaf.barren > _BARREN and not ahead:
            return
        leaf.barren += 1
        memory, paging, quads = self.memory, self.paging, self.quads
        table = quads if paging.pae else memory.words
        first = page & 511 & -_AROUND
        entries = table[leaf.guest + first : leaf.guest + first + _AROUND].tolist()
        directory, wanted = leaf.directory, _P if ahead else _P | Pte.A
        for slot, entry in enumerate(entries, first):
            if entry & wanted != wanted or quads[leaf.at + slot]:
                continue
            gfn = (entry & HFN_BITS) >> 12
            if gfn >= memory.count or paging.pae and entry & paging.reserved:
                continue
            if not entry & Pte.A:
                table[leaf.guest + slot] = entry | Pte.A
            rights = entry & directory
            around = Mapping(gfn << 12, bool(rights & _U), bool(rights & _W), not (entry | directory) >> 63, bool(entry & Pte.D), 0)
            shadow = memory.frames[gfn] << 12 | self._rights(around, gfn, False, user)
            quads[leaf.at + slot] = shadow
            self._note_late(leaf, slot)
            leaf.barren = 0
            self.entries += 1
            self.reverse.add(gfn, shadow, leaf.at + slot)
            if ahead:
                self._last_page = max(self._last_page, (page & ~511) + slot)

    def _fill_large(self, gva: int, mapping: Mapping, leaf: Leaf, user: bool) -> None:
        """Fills the neighbours within a large page, or, with paging off, within the region: they share all their bits."""
        memory, quads = self.memory, self.quads
        slot = gva >> 12 & 511
        first = slot & -_AROUND_LARGE
        first_gfn = (mapping.gpa >> 12) - slot + first
        for index, gfn in zip(range(leaf.at + first, leaf.at + first + _AROUND_LARGE), range(first_gfn, first_gfn + _AROUND_LARGE), strict=True):
            if gfn >= memory.count or quads[index]:
                continue
            shadow = memory.frames[gfn] << 12 | self._rights(mapping, gfn, False, user)
            quads[index] = shadow
            self.entries += 1
            self.reverse.add(gfn, shadow, index)


def _changed_entries(before: bytes, now: bytes, width: int) -> list[int]:
    """Indices of the entries that differ, A and D bits included."""
    old, new = (memoryview(image).cast("Q" if width == 8 else "I") for image in (before, now))
    changed = []
    for chunk in range(0, FRAME, 256):
        if before[chunk : chunk + 256] != now[chunk : chunk + 256]:
            changed += [index for index in range(chunk // width, (chunk + 256) // width) if old[index] != new[index]]
    return changed
