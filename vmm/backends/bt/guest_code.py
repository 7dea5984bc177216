"""The guest's kernel code and its translations: fetches, translates, and keeps both coherent.

Translations are keyed by linear address and made from guest frames. This module knows which linear page was translated from
which frame, protects those frames, and takes translations out of use when the page is written or mapped elsewhere; it also
places the window where the guest maps nothing. Knows no CPU state and no exits.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from bt.block import Mode
from bt.cache import Source, TranslationCache
from bt.discover import LONGEST, discover
from bt.emit import Options
from bt.window import CODE as CODE_OFFSET
from vmm.backends.bt.options import BtOptions
from vmm.backends.shadowed import Shadowed
from vmm.backends.window import NoRoom, Use, Window
from vmm.exits import End, Stop
from vmm.faults import GuestPageFault
from vmm.memory import CODE, DESCRIPTORS
from vmm.x86.bits import Pte

if TYPE_CHECKING:
    from vmm.vm import Vm


class GuestCode:
    """The translations of one VM's kernel code.

    pages: linear page number to the gfn that translations of it were made from. opened: whether code was invalidated by a
    write since that was last looked at.
    """

    def __init__(self, vm: Vm, options: BtOptions, parts: Shadowed) -> None:
        self.vm, self.mmu, self.parts = vm, parts.mmu, parts
        self.window = Window(vm.machine, options.cache_size, user=options.ring == 3)
        self.cache = TranslationCache(
            self.window.data, self.window.code, self.window.base, Options(options.ring == 1, options.stubs_in_cache, options.counted), self._protect
        )
        self.start = self.window.base + CODE_OFFSET  # linear address of the cache's first byte of code
        self.pages: dict[int, int] = {}
        self.opened = False
        self._tolerated = Use.FREE  # what the guest may have in the window's place

    def place(self) -> None:
        """Places and maps the window."""
        self.mmu.made_writable = self._made_writable
        self.window.place(self._use)
        self.cache.flush(self.window.base)
        self.start = self.window.base + CODE_OFFSET
        self.mmu.set_window(self.window.entries())

    def tables_changed(self) -> None:
        """Other guest tables are in use: translations must still be what the guest's code addresses lead to."""
        mmu = self.mmu
        if mmu.unchecked_directories:
            mmu.unchecked_directories = False
            if any(self._use(region) > self._tolerated for region in mmu.window):
                self._move_window()
        self.parts.descriptors.verify()
        root = mmu.current
        if root.verified != len(self.pages):
            for page in list(self.pages):
                self.verify(page)
            root.verified = len(self.pages)

    def fetch(self, linear: int, size: int, user: bool) -> bytes:
        """Up to `size` bytes of code, less when the next page cannot be fetched."""
        room = 0x1000 - (linear & 0xFFF)
        linear_memory = self.vm.linear
        code = linear_memory.read(linear, min(size, room), user, fetch=True)
        if size > room:
            try:
                code += linear_memory.read(linear + room & 0xFFFFFFFF, size - room, user, fetch=True)
            except GuestPageFault:
                pass
        return code

    def _page(self, linear: int) -> int:
        """gfn of the code page at a linear address. Raises GuestPageFault."""
        return self.vm.paging.walk(linear, fetch=True).gpa >> 12

    def translate(self, eip: int, mode: Mode) -> int:
        """Translates the block at `eip`; returns where it stands in the cache."""
        vm = self.vm
        linear = mode.cs_base + eip & 0xFFFFFFFF
        gfn = self._page(linear)
        if gfn >= vm.memory.count:
            vm.stop(Stop(End.DIED, f"the guest executes at {linear:#x}, where there is no memory (gpa {gfn << 12 | linear & 0xFFF:#x})"))
            return self.cache.miss
        page = linear >> 12
        if page not in self.pages:
            self.pages[page] = gfn
        elif self.pages[page] != gfn:
            self.verify(page)
            self.pages[page] = gfn
        revived = self.cache.revive(eip, mode, lambda source: self._same(source, gfn))
        if revived is not None:
            return revived
        start = eip - (linear & 0xFFF)
        code = vm.memory.read(gfn << 12, 4096)
        block = discover(code, start, 4096, eip)
        source: Source = []
        if not block.instructions and not block.undecodable:
            behind = (page + 1 & 0xFFFFF) << 12
            next_gfn = self._page(behind)
            block = discover(code + vm.memory.read(next_gfn << 12, LONGEST), start, 4096, eip, 1)
            if next_gfn < vm.memory.count:
                self.pages.setdefault(behind >> 12, next_gfn)
                source.append((next_gfn, 0, vm.memory.read(next_gfn << 12, LONGEST)))
        first = min([i.address for i in block.instructions] + block.undecodable) - start
        last = min(max([i.next for i in block.instructions] + [a + LONGEST for a in block.undecodable]) - start, 4096)
        source.append((gfn, first, code[first:last]))
        return self.cache.install(block, mode, source)

    def _same(self, source: Source, gfn: int) -> bool:
        """Whether a translation's source is unchanged and still lies in the page that `gfn` is."""
        memory = self.vm.memory
        return source[-1][0] == gfn and all(memory.read(page << 12 | offset, len(code)) == code for page, offset, code in source)

    def single(self, eip: int, mode: Mode) -> int:
        """A translation of the one instruction at `eip`, which does not protect its page."""
        raw = self.fetch(mode.cs_base + eip & 0xFFFFFFFF, LONGEST, user=False)
        block = discover(raw, eip, 1, eip, 1)
        if not block.instructions and not block.undecodable:
            block.undecodable.append(eip)
        return self.cache.single(block, mode)

    def _protect(self, gfn: int) -> None:
        memory = self.vm.memory
        memory.state[gfn] |= CODE
        self.mmu.reverse.protect(gfn)

    def _made_writable(self, gfn: int, uses: int) -> None:
        """A frame is opened for writing: what was derived from it is no longer valid."""
        if uses & CODE:
            self.opened = True
            self.cache.invalidate(gfn)
        if uses & DESCRIPTORS:
            self.parts.descriptors.drop(gfn)

    def verify(self, page: int) -> None:
        """Whether the linear page still leads to the frame that translations were made of; if not, they go to sleep."""
        gfn = self.pages[page]
        try:
            now = self._page(page << 12)
        except GuestPageFault:
            now = -1
        if now != gfn:
            self.cache.invalidate(gfn)
            self.vm.memory.state[gfn] &= ~CODE
            del self.pages[page]

    def flush(self) -> None:
        """The cache is full: everything goes."""
        self._drop_protections()
        self.cache.flush()
        gc.collect()  # translations and sites refer to each other, and the collector is off while the VM runs

    def _drop_protections(self) -> None:
        state = self.vm.memory.state
        for gfn in self.cache.pages:
            state[gfn] &= ~CODE
        self.pages.clear()
        self.vm.machine.flush_code()

    def _use(self, region: int) -> Use:
        """What the guest's current tables have in a region of 2 MiB."""
        vm = self.vm
        entry = self.mmu.directory_entry(region)
        if not entry & Pte.P:
            return Use.FREE
        if not entry & Pte.PS:
            return Use.TAKEN
        first = entry >> 21 << 9 if vm.paging.pae or not vm.paging.enabled else (entry & 0xFFC00000) >> 12
        taken = first < vm.memory.count or vm.board.bus.memory_device(first << 12, 1 << 22)
        return Use.TAKEN if taken else Use.NOBODY if vm.paging.enabled else Use.FREE

    def _move_window(self) -> None:
        """The guest maps the window's range: the window goes elsewhere."""
        vm = self.vm
        self._drop_protections()
        try:
            self.window.place(self._use)
        except NoRoom:
            vm.stop(Stop(End.DIED, "the guest maps all 4 GiB of linear addresses: there is no room for the translation cache"))
            return
        self._tolerated = max(self._use(region) for region in self.window.entries())
        self.cache.flush(self.window.base)
        self.start = self.window.base + CODE_OFFSET
        self.mmu.set_window(self.window.entries())
