"""The guest's code of one mode, kernel's or user's, and its translations: fetches, translates, and keeps both coherent.

Translations are keyed by linear address and made from guest frames. This module knows which linear page was translated from
which frame, protects those frames, and takes translations out of use when the page is written or mapped elsewhere; it also
places the window where the guest maps nothing. Knows no CPU state and no exits.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bt.block import Mode
from bt.cache import Source, TranslationCache
from bt.discover import LONGEST, discover
from bt.emit import Options
from bt.window import CODE as CODE_OFFSET
from vmm.backends.bt.adaptation import Adaptation
from vmm.backends.bt.options import BtOptions
from vmm.backends.shadowed import Shadowed
from vmm.backends.window import NoRoom, Use, Window
from vmm.exits import End, Stop
from vmm.faults import GuestPageFault
from vmm.memory import CODE
from vmm.mmu.tables import Leaf
from vmm.x86.bits import Pte

if TYPE_CHECKING:
    from vmm.vm import Vm

_VIEWS = 16  # leaf tables of a region that are remembered


@dataclass(slots=True)
class _Region:
    """2 MiB of linear addresses with code: the pages that translations were made from, and the leaf tables, with their counts of changes, under
    which they were all found to lead to the same frames: a kernel may have several views of itself, and change them at each system call."""

    pages: set[int] = field(default_factory=set)
    found: dict[Leaf, int] = field(default_factory=dict)

    def holds_under(self, leaf: Leaf | None) -> bool:
        """Whether nothing has changed below `leaf`. What lies outside RAM, or is not to be trusted, is always looked at."""
        return leaf is not None and self.found.get(leaf) == leaf.changes and (leaf.guest >= 0 or leaf.gfn < 0)

    def note(self, leaf: Leaf | None) -> None:
        """All pages have been looked at under `leaf`."""
        if len(self.found) == _VIEWS:
            self.found.clear()
        if leaf is not None:
            self.found[leaf] = leaf.changes

    def add(self, page: int, leaf: Leaf | None) -> None:
        """Another page, which has been looked at under `leaf` alone."""
        if page not in self.pages:
            held = self.holds_under(leaf) or not self.pages
            self.pages.add(page)
            self.found.clear()
            if held:
                self.note(leaf)


class GuestCode:
    """The translations of one VM's kernel code, or, `user`, of its user code, which is fetched with the user's rights.

    pages: linear page number to the gfn that translations of it were made from; regions has them by their leaf tables. naps: linear page number
    to the gfn whose translations nap until the page is executed again. opened: whether code
    was invalidated by a write since that was last looked at. placed: whether the window lies anywhere yet.
    """

    def __init__(self, vm: Vm, options: BtOptions, parts: Shadowed, *, user: bool) -> None:
        self.vm, self.mmu, self.parts, self.user = vm, parts.mmu, parts, user
        self.window = Window(vm.machine, options.cache_size, user=user or options.ring == 3, guarded=user, counted=options.counted)
        self._timed = vm.icount is not None
        native_iret = options.ring == 1 and not options.translate_user and not self._timed
        self.cache = TranslationCache(
            self.window.data,
            self.window.code,
            self.window.base,
            Options(native_iret, options.stubs_in_cache, options.counted, user, self._timed, "popf" in options.broken),
            _nothing if "no-invalidate" in options.broken else self._protect,
        )
        self.adaptation = Adaptation(self.cache, enabled=options.adapt and not user)
        self.words = self.window.data[:4096].cast("I")
        self.start = self.window.base + CODE_OFFSET  # linear address of the cache's first byte of code
        self.pages: dict[int, int] = {}
        self.regions: dict[int, _Region] = {}
        self.naps: dict[int, int] = {}
        self.opened = self.placed = False
        self._tolerated = Use.FREE  # what the guest may have in the window's place

    def place(self) -> None:
        """Places and maps the window where the guest maps nothing, or failing that nobody's memory. Without either the run ends."""
        try:
            self.window.place(self._use)
        except NoRoom:
            self.vm.stop(Stop(End.DIED, "the guest maps all 4 GiB of linear addresses: there is no room for the translation cache"))
            return
        self.placed = True
        self._tolerated = max(self._use(region) for region in self.window.entries())
        self.cache.flush(self.window.base)
        self.start = self.window.base + CODE_OFFSET
        self.mmu.set_window(self.window.entries(), self.user)

    def keep_out_of_the_way(self) -> None:
        """The guest's directories changed: if it maps the window's range now, the window goes elsewhere."""
        if self.placed and any(self._use(region) > self._tolerated for region in self.window.entries()):
            self._drop_protections()
            self.place()

    def verify_all(self) -> None:
        """Other guest tables may be in use: translations must still be what the guest's code addresses lead to.

        At each load of CR3: most regions are found under the leaf table that they were found under before.
        """
        leaves = self.mmu.current.leaves
        for number, region in self.regions.items():
            if not region.pages:
                continue
            leaf = leaves.get(number) or self._linked(number, region)
            if not region.holds_under(leaf):
                for page in list(region.pages):
                    self.verify(page)
                region.note(leaves.get(number))

    def _linked(self, number: int, region: _Region) -> Leaf | None:
        """The leaf table of a region that was not used yet under the present root; None when there is no such thing."""
        self.mmu.look(next(iter(region.pages)) << 12, self.user)
        return self.mmu.current.leaves.get(number)

    def page_invalidated(self, page: int) -> None:
        """INVLPG: translations of this page must still be what its address leads to."""
        if page in self.pages:
            self.verify(page)

    def fetch(self, linear: int, size: int) -> bytes:
        """Up to `size` bytes of code, less when the next page cannot be fetched."""
        room = 0x1000 - (linear & 0xFFF)
        linear_memory, user = self.vm.linear, self.user
        code = linear_memory.read(linear, min(size, room), user, fetch=True)
        if size > room:
            try:
                code += linear_memory.read(linear + room & 0xFFFFFFFF, size - room, user, fetch=True)
            except GuestPageFault:
                pass
        return code

    def _page(self, linear: int) -> int:
        """gfn of the code page at a linear address, which is watched from now on. Raises GuestPageFault."""
        return self.mmu.watch(linear, self.user)

    def translate(self, eip: int, mode: Mode) -> int:
        """Translates the block at `eip`; returns where it stands in the cache."""
        vm = self.vm
        linear = mode.cs_base + eip & 0xFFFFFFFF
        gfn = self._page(linear)
        if gfn >= vm.memory.count:
            vm.stop(Stop(End.DIED, f"the guest executes at {linear:#x}, where there is no memory (gpa {gfn << 12 | linear & 0xFFF:#x})"))
            return self.cache.miss
        page = linear >> 12
        self._enter_page(page, gfn)
        known = self.cache.lookup(eip, mode) or self.cache.revive(eip, mode, lambda source: self._same(source, page))
        if known is not None:
            return known
        start = eip - (linear & 0xFFF)
        code = vm.memory.read(gfn << 12, 4096)
        block = discover(code, start, 4096, eip, mode=mode, timed=self._timed)
        source: Source = []
        if not block.instructions and not block.undecodable:
            behind = (page + 1 & 0xFFFFF) << 12
            next_gfn = self._page(behind)
            block = discover(code + vm.memory.read(next_gfn << 12, LONGEST), start, 4096, eip, 1, mode, timed=self._timed)
            if next_gfn < vm.memory.count:
                self._enter_page(behind >> 12, next_gfn)
                source.append((next_gfn, 0, vm.memory.read(next_gfn << 12, LONGEST)))
        if self.adaptation.sites:
            self.adaptation.mark(block, mode)
        first = min([i.address for i in block.instructions] + block.undecodable) - start
        last = min(max([i.next for i in block.instructions] + [a + LONGEST for a in block.undecodable]) - start, 4096)
        source.append((gfn, first, code[first:last]))
        return self.cache.install(block, mode, source)

    def _enter_page(self, page: int, gfn: int) -> None:
        """Translations will be made of a page, whose frame has just been found."""
        if page in self.pages and self.pages[page] != gfn:
            self.verify(page)
        if page not in self.pages:
            self.pages[page] = gfn
            self.regions.setdefault(page >> 9, _Region()).add(page, self.mmu.current.leaves.get(page >> 9))
            slept = self.naps.pop(page, None)
            if slept == gfn:
                self.cache.wake(gfn, page)
            elif slept is not None:
                self.cache.invalidate(slept)

    def _same(self, source: Source, page: int) -> Source | None:
        """What a translation that began in `page` would be made of now, if that is the same code; it may lie in other frames."""
        memory = self.vm.memory
        now: Source = []
        for n, (_, offset, code) in enumerate(source):
            linear = page if n == len(source) - 1 else page + 1 & 0xFFFFF  # what lies in the next page comes first
            gfn = self.pages.get(linear, -1) if linear == page else self._frame_behind(linear)
            if not 0 <= gfn < memory.count or memory.read(gfn << 12 | offset, len(code)) != code:
                return None
            now.append((gfn, offset, code))
        return now

    def _frame_behind(self, page: int) -> int:
        """gfn of the page behind, entered; -1 when it cannot be fetched."""
        try:
            gfn = self._page(page << 12)
        except GuestPageFault:
            return -1
        if gfn < self.vm.memory.count:
            self._enter_page(page, gfn)
        return gfn

    def single(self, eip: int, mode: Mode) -> int:
        """A translation of the one instruction at `eip`, which does not protect its page."""
        raw = self.fetch(mode.cs_base + eip & 0xFFFFFFFF, LONGEST)
        block = discover(raw, eip, 1, eip, 1, mode, timed=self._timed)
        if not block.instructions and not block.undecodable:
            block.undecodable.append(eip)
        return self.cache.single(block, mode)

    def _protect(self, gfn: int) -> None:
        memory = self.vm.memory
        memory.state[gfn] |= CODE
        self.mmu.reverse.protect(gfn)

    def made_writable(self, gfn: int) -> None:
        """A frame that code may have been translated of is opened for writing."""
        if gfn in self.cache.pages:
            self.opened = True
            self.cache.invalidate(gfn)

    def verify(self, page: int) -> None:
        """Whether the linear page still leads to the frame that translations were made of, and its accessed bits are set; if not, they nap.

        The frame stays protected, since it may hold code of the other mode too: the next write finds out.
        """
        gfn = self.pages[page]
        if self.mmu.look(page << 12, self.user) != gfn:
            self.cache.nap(gfn, page)
            self.naps[page] = gfn
            del self.pages[page]
            self.regions[page >> 9].pages.discard(page)

    def flush(self) -> None:
        """The cache is full: everything goes."""
        self._drop_protections()
        self.cache.flush()
        gc.collect()  # translations and sites refer to each other, and the collector is off while the VM runs

    def _drop_protections(self) -> None:
        """Frames stay protected until they are written, since they may hold code of the other mode too."""
        self.pages.clear()
        self.regions.clear()
        self.naps.clear()
        self.vm.machine.flush_code()

    def _use(self, region: int) -> Use:
        """What the guest's current tables have in a region of 2 MiB. The window of the other mode's code is in the way too."""
        vm = self.vm
        if region in self.mmu.windows[not self.user]:
            return Use.TAKEN
        entry = self.mmu.directory_entry(region)
        if not entry & Pte.P:
            return Use.FREE
        if not entry & Pte.PS:
            return Use.TAKEN
        first = entry >> 21 << 9 if vm.paging.pae or not vm.paging.enabled else (entry & 0xFFC00000) >> 12
        taken = first < vm.memory.count or vm.board.bus.memory_device(first << 12, 1 << 22)
        return Use.TAKEN if taken else Use.NOBODY if vm.paging.enabled else Use.FREE


def _nothing(gfn: int) -> None:
    """`--break no-invalidate`: writes to code go unnoticed."""
