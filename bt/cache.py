"""The translation cache: allocates, looks up, chains through slots, and invalidates by page.

Holds every translation of one guest. Knows the window by two memoryviews and its linear address; knows no guest memory:
what a translation was made of is told to it as (gfn, offset, bytes), and what must be done when the whole cache is thrown
away or a page becomes code is told to it as callbacks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from bt.block import MIDWAY, Block, Mode, Site, SiteKind, Translation
from bt.emit import MISS, TRAP, Emitter, Options
from bt.window import CODE, FLAGS_CLASS, MODES, RETURNS, RETURNS_SIZE, RING_3, SLOT_LIMIT, SLOTS, flags_classes, ring_3_selectors

_CAREFUL_MODES = 4096  # before they are forgotten
_LONGEST_CHAIN = 8  # checked entries behind one table slot before the rest is forgotten
_ALIGN = 16

Source = list[tuple[int, int, bytes]]  # what a translation was made of: (gfn, offset in the frame, bytes)


@dataclass(slots=True, eq=False)
class _Gate:
    """All that leads into the code of one guest page from elsewhere.

    addresses: the linear page numbers that the translations were made for. words: words of the window, what they hold while the page is awake,
    and what while it naps.
    """

    translations: list[Translation]
    addresses: set[int]
    words: list[tuple[int, int, int]]


class CacheFull(Exception):
    """No room for another translation, slot or mode: the cache must be flushed."""


class TranslationCache:
    """The translations of one guest, in a window at linear address `base`.

    data, code: the window's two parts as memoryviews of bytes. made_code(gfn) is called when a page gets its first live
    translation: the caller must then report writes to it by `invalidate`.
    """

    def __init__(self, data: memoryview, code: memoryview, base: int, options: Options, made_code: Callable[[int], None]) -> None:
        self.data, self.code, self.base, self.options, self.made_code = data, code, base, options, made_code
        self.words = data.cast("I")
        data[FLAGS_CLASS : FLAGS_CLASS + 0x10000] = flags_classes()
        data[RING_3 : RING_3 + 256] = ring_3_selectors()
        self.flushes = 0
        self.blocks = self.instructions = self.revived = self.invalidated = 0
        self._reset()

    def _reset(self) -> None:
        self.table: dict[int, int] = {}  # mode index << 32 | EIP -> linear address
        self.owners: dict[int, Translation] = {}  # the same key -> the translation it lies in
        self.sites: dict[int, Site] = {}  # linear address behind a trap -> site
        self.starts: list[int] = []
        self.translations: list[Translation] = []
        self.modes: dict[tuple[int, int, bool], Mode] = {}
        self.careful_modes: dict[tuple[int, bool, int, bool], Mode] = {}
        self.pages: dict[int, set[Translation]] = {}  # gfn -> live translations made of it
        self.asleep: dict[int, list[Translation]] = {}  # key of the entry -> invalidated translations that may be revived
        self.gates: dict[int, _Gate] = {}  # gfn -> what its page can be put to sleep by, as long as nothing is linked anew
        self.napping: dict[int, _Gate] = {}  # gfn -> by what that was done
        self.singles: dict[int, Translation] = {}
        self.stubs: dict[int, Translation] = {}  # key -> the checked entry of an address that has none in its translation
        self.buckets: dict[int, list[tuple[int, int, int, Translation]]] = {}  # table word -> (guest, checked entry, slot of the next, made by)
        self.slot_traps: dict[int, int] = {}  # slot -> what it holds while its target has no translation
        self.next_slot = SLOTS
        self.next_code = CODE
        self.miss = self._install_miss()

    def _install_miss(self) -> int:
        translation = Translation(Block(0, [], []), Mode(0, 0, 0), self.base + MISS, TRAP)
        translation.marks.append(translation.start)
        translation.guests.append(0)
        translation.recovery.append(MIDWAY)
        translation.sites[translation.end] = Site(SiteKind.MISS, 0, translation)
        self._place(translation)
        return translation.start

    def flush(self, base: int | None = None) -> None:
        """Throws everything away; with `base`, the window lies there from now on. The caller drops compiled code and protections."""
        self.flushes += 1
        if base is not None:
            self.base = base
        self._reset()

    # -- modes and look-up ----------------------------------------------------------------------------------------------

    def mode(self, cs_base: int, ss_base: int, plain: bool) -> Mode:
        """The mode of these properties; raises CacheFull when there are too many."""
        key = cs_base, ss_base, plain
        mode = self.modes.get(key)
        if mode is None:
            if len(self.modes) == MODES:
                raise CacheFull
            mode = self.modes[key] = Mode(len(self.modes), cs_base, ss_base, plain, cpl=3 if self.options.user else 0)
            table = (RETURNS + mode.index * RETURNS_SIZE) // 4
            self.words[table : table + RETURNS_SIZE // 4] = memoryview(self.miss.to_bytes(4, "little") * (RETURNS_SIZE // 4)).cast("I")
        return mode

    def careful_mode(self, cs_base: int, wide: bool, cpl: int, real: bool) -> Mode:
        """The careful mode of these properties, which has no table of checked entries; raises CacheFull when there are too many."""
        key = cs_base, wide, cpl, real
        mode = self.careful_modes.get(key)
        if mode is None:
            if len(self.careful_modes) == _CAREFUL_MODES:
                raise CacheFull
            mode = self.careful_modes[key] = Mode(MODES + len(self.careful_modes), cs_base, 0, False, True, wide, cpl, real)
        return mode

    def lookup(self, eip: int, mode: Mode, gfn: int | None = None) -> int | None:
        """Linear address of the translation of `eip`. gfn: the page it lies in, to look inside blocks for it as well."""
        key = mode.index << 32 | eip
        address = self._known(key)
        if address is None and gfn is not None:
            for translation in self.pages.get(gfn, ()):
                if translation.mode is mode and translation.alive and (address := translation.find(eip)) is not None:
                    self._enter(key, address, translation)
                    break
        return address

    def _known(self, key: int) -> int | None:
        """What the table has for a key, unless that naps."""
        address = self.table.get(key)
        return address if address is not None and self.owners[key].alive else None

    def starting_at(self, address: int) -> Translation:
        """The translation whose code begins at a linear address, where one does."""
        return self.translations[bisect_right(self.starts, address) - 1]

    def translation_at(self, address: int) -> Translation | None:
        """The translation whose code holds a linear address."""
        at = bisect_right(self.starts, address) - 1
        if at < 0:
            return None
        translation = self.translations[at]
        return translation if address < translation.end else None

    # -- making translations ----------------------------------------------------------------------------------------------

    def install(self, block: Block, mode: Mode, source: Source) -> int:
        """Translates a block; returns the linear address of its entry. Raises CacheFull."""
        emitter = self._emitter(block, mode)
        translation = emitter.translate()
        translation.source = source
        self._place(translation)
        self.blocks += 1
        self.instructions += len(block.instructions)
        self._awaken(translation)
        return self.table[mode.index << 32 | block.entry]

    def single(self, block: Block, mode: Mode) -> int:
        """Translates one instruction so that control comes back behind it; returns where it stands. Not looked up by others."""
        key = mode.index << 32 | block.entry
        known = self.singles.get(key)
        if known is None or [i.raw for i in known.block.instructions] != [i.raw for i in block.instructions]:
            known = self._emitter(block, mode, single=True).translate()
            self._place(known)
            self.singles[key] = known
        return known.start

    def revive(self, eip: int, mode: Mode, same: Callable[[Source], Source | None]) -> int | None:
        """Brings back an invalidated translation of `eip`; returns its linear address. same(source): where the same code stands now, or None."""
        key = mode.index << 32 | eip
        sleeping = self.asleep.get(key)
        for translation in sleeping or ():
            source = same(translation.source)
            if source is not None:
                assert sleeping is not None
                translation.source = source
                sleeping.remove(translation)
                self.revived += 1
                translation.alive = True
                self._awaken(translation)
                return self.table[key]
        return None

    def _emitter(self, block: Block, mode: Mode, single: bool = False) -> Emitter:
        return Emitter(block, mode, self.base + self.next_code, self.base, self._new_slot, self.options, single)

    def _new_slot(self) -> int:
        if self.next_slot >= SLOTS + 4 * SLOT_LIMIT:
            raise CacheFull
        self.next_slot += 4
        return self.next_slot - 4

    def _place(self, translation: Translation) -> None:
        """Writes the code and makes its sites and slots known."""
        at = translation.start - self.base - CODE
        if at + len(translation.code) > len(self.code):
            raise CacheFull
        self.code[at : at + len(translation.code)] = translation.code
        self.next_code = CODE + (at + len(translation.code) + _ALIGN - 1 & -_ALIGN)
        self.starts.append(translation.start)
        self.translations.append(translation)
        self.sites.update(translation.sites)
        for slot, (_, trap) in translation.slots.items():
            self.slot_traps[slot] = trap
            self.words[slot // 4] = trap
        for counter in translation.counters.values():
            self.words[counter // 4] = 0

    def _awaken(self, translation: Translation) -> None:
        """Enters a translation into the tables, protects its pages, and links what can be linked."""
        mode = translation.mode
        for gfn, _, _ in translation.source:
            self.gates.pop(gfn, None)
            page = self.pages.get(gfn)
            if page is None:
                page = self.pages[gfn] = set()
                self.made_code(gfn)
            page.add(translation)
        entry = translation.block.entry
        address = translation.find(entry)
        assert address is not None
        self._enter(mode.index << 32 | entry, address, translation)
        for slot, (target, _) in translation.slots.items():
            self.link(slot, target, mode)
        for guest, (checked, slot) in translation.returns.items():
            self.add_return(guest, checked, slot, translation)

    def _enter(self, key: int, address: int, translation: Translation) -> None:
        self.table[key] = address
        self.owners[key] = translation
        translation.keys.append(key)

    # -- chaining ----------------------------------------------------------------------------------------------------------

    def link(self, slot: int, target: int, mode: Mode) -> None:
        """Lets a slot lead to the translation of `target`, if there is one."""
        key = mode.index << 32 | target
        address = self.table.get(key)
        if address is not None and address != self.words[slot // 4] and (owner := self.owners[key]).alive:
            self.words[slot // 4] = address
            owner.incoming.add(slot)
            if self.gates:
                self._forget_gates(owner)

    def link_return(self, guest: int, mode: Mode) -> None:
        """Makes returns and indirect jumps to `guest` find its translation, which exists."""
        if any(known == guest for known, _, _, _ in self.buckets.get(_table_word(guest, mode), ())):
            return
        key = mode.index << 32 | guest
        owner = self.owners[key]
        maker = owner if guest in owner.returns else self._stub(key, guest, mode)
        self.add_return(guest, *maker.returns[guest], maker)

    def _stub(self, key: int, guest: int, mode: Mode) -> Translation:
        """The stub of an address: made once, since entries of translations that come and go may take its place."""
        stub = self.stubs.get(key)
        if stub is None:
            stub = self._emitter(Block(guest, [], []), mode).translate_entry(guest)
            self._place(stub)
            self.stubs[key] = stub
        for out, (target, _) in stub.slots.items():
            self.link(out, target, mode)
        return stub

    def add_return(self, guest: int, checked: int, slot: int, maker: Translation) -> None:
        """Puts a checked entry in front of its chain."""
        table_word = _table_word(guest, maker.mode)
        chain = [entry for entry in self.buckets.get(table_word, ()) if entry[0] != guest][: _LONGEST_CHAIN - 1]
        self._set_bucket(table_word, [(guest, checked, slot, maker), *chain])

    def _set_bucket(self, table_word: int, chain: list[tuple[int, int, int, Translation]]) -> None:
        """Entries of translations that nap are left out: they come back at the end of the nap, since the gate is forgotten."""
        if self.gates:
            for _, _, _, maker in (*self.buckets.get(table_word, ()), *chain):
                self._forget_gates(maker)
        self.buckets[table_word] = chain = [entry for entry in chain if entry[3].alive]
        onward = self.miss
        for _, checked, slot, _ in reversed(chain):
            self.words[slot // 4] = onward
            onward = checked
        self.words[table_word] = onward

    # -- invalidation ------------------------------------------------------------------------------------------------------

    def invalidate(self, gfn: int) -> None:
        """Takes every translation made of a guest page out of use; they sleep until they are revived or the cache is flushed."""
        self.napping.pop(gfn, None)
        for translation in self.pages.pop(gfn, ()):
            self._kill(translation, gfn)

    def retire(self, translation: Translation) -> None:
        """Takes one translation out of use for good: another is to be made of its code."""
        self._kill(translation, -1)
        self.asleep[translation.mode.index << 32 | translation.block.entry].remove(translation)

    def _kill(self, translation: Translation, gfn: int) -> None:
        self.invalidated += 1
        translation.alive = False
        for key in translation.keys:
            if self.owners.get(key) is translation:
                del self.table[key], self.owners[key]
        translation.keys.clear()
        for slot in translation.incoming:
            self.words[slot // 4] = self.slot_traps[slot]
        translation.incoming.clear()
        for guest in translation.returns:
            table_word = _table_word(guest, translation.mode)
            self._set_bucket(table_word, [entry for entry in self.buckets.get(table_word, ()) if entry[3] is not translation])
        for other, _, _ in translation.source:
            self.gates.pop(other, None)
            if other != gfn and translation in self.pages.get(other, ()):
                self.pages[other].discard(translation)
        self.asleep.setdefault(translation.mode.index << 32 | translation.block.entry, []).append(translation)

    # -- naps ----------------------------------------------------------------------------------------------------------------

    def nap(self, gfn: int, address: int) -> None:
        """Takes the translations made of a guest page for one linear page number out of use until `wake`, at the price of a store for each way
        into it: for a page that may well say the same, but must not be executed unnoticed. If it has others, all are invalidated."""
        gate = self.gates.get(gfn)
        if gate is None:
            gate = self.gates[gfn] = self._make_gate(gfn)
        if gate.addresses != {address}:
            self.invalidate(gfn)
            return
        words = self.words
        for at, _, closed in gate.words:
            words[at] = closed
        for translation in gate.translations:
            translation.alive = False
        self.napping[gfn] = gate

    def wake(self, gfn: int, address: int) -> None:
        """The end of a nap, unless `invalidate` was."""
        gate = self.napping.get(gfn)
        if gate is None or gate.addresses != {address}:
            return
        del self.napping[gfn]
        for translation in gate.translations:
            translation.alive = True
        if self.gates.get(gfn) is gate:
            words = self.words
            for at, opened, _ in gate.words:
                words[at] = opened
            return
        for translation in gate.translations:  # something has been linked in between; slots are linked again as they are found closed
            for guest, (checked, slot) in translation.returns.items():
                self.add_return(guest, checked, slot, translation)

    def _forget_gates(self, translation: Translation) -> None:
        """Something else leads to a translation now."""
        for gfn, _, _ in translation.source:
            self.gates.pop(gfn, None)

    def _make_gate(self, gfn: int) -> _Gate:
        """Chains of checked entries that other pages share are left by this page's, which are put back as they are missed."""
        here = self.pages.get(gfn, set())
        for translation in [t for t in here if len(t.source) > 1]:
            self._kill(translation, -1)
        own = {slot for translation in here for slot in translation.slots}
        ways = [(slot // 4, self.words[slot // 4], self.slot_traps[slot]) for t in here for slot in t.incoming if slot not in own]
        for table_word in {_table_word(guest, t.mode) for t in here for guest in t.returns}:
            chain = self.buckets.get(table_word, ())
            if all(maker in here for _, _, _, maker in chain):
                ways.append((table_word, self.words[table_word], self.miss))
            else:
                self._set_bucket(table_word, [entry for entry in chain if entry[3] not in here])
        return _Gate(list(here), {t.mode.cs_base + t.block.entry >> 12 & 0xFFFFF for t in here}, ways)


def _table_word(guest: int, mode: Mode) -> int:
    """The word of a mode's table of checked entries where the chain of an address begins."""
    return (RETURNS + mode.index * RETURNS_SIZE) // 4 + (guest & 0xFFFF)
