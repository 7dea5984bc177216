"""From translation caches to a dump: which blocks there are, what became of each instruction, and where they lead.

Knows translations, their maps, sites and slots, and the counts of `--hot`. Reads only; decides nothing about looks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from bt.block import SiteKind, Translation
from bt.cache import TranslationCache
from bt.census import Census, Kind, census, code_bytes, is_block, kinds
from bt.decode import Instruction
from bt.emit import COUNTER_BYTES
from bt.explain import Explainer
from bt.listing import Piece, named, pieces, recovery_words
from bt.sensitive import Row, row_of
from bt.window import SLOTS
from tools.dump.heat import Counts, Heat
from tools.dump.model import Block, Code, Line, Link, Totals
from vmm.boot.symbols import Symbols


class Builder:
    """Makes blocks and totals of caches, each under its name, as they are now. heat: the counts, when executions were counted."""

    def __init__(self, caches: Mapping[str, TranslationCache], symbols: Symbols, heat: Heat | None = None) -> None:
        self._caches, self._symbols, self._heat = caches, symbols, heat
        self._numbers: dict[int, int] = {}  # id of a translation -> number of its block
        self._counts: dict[int, Counts] = {}
        self._singles: dict[tuple[int, int, int], list[Translation]] = {}  # (cache, mode, EIP) -> single steps of what a block has
        self._shown: list[tuple[str, TranslationCache, Translation]] = []
        for name, cache in caches.items():
            self._take(name, cache)
        self._shown.sort(key=lambda item: (list(caches).index(item[0]), item[2].block.entry, not item[2].alive, item[2].start))
        for number, (_, _, translation) in enumerate(self._shown):
            self._numbers[id(translation)] = number

    def _take(self, name: str, cache: TranslationCache) -> None:
        held: set[tuple[int, int]] = set()
        singles = []
        for translation in cache.translations:
            if is_block(translation):
                self._shown.append((name, cache, translation))
                held.update((translation.mode.index, instruction.address) for instruction in translation.block.instructions)
            elif translation.single:
                singles.append(translation)
            if self._heat is not None:
                self._counts[id(translation)] = self._heat.of(cache, translation)
        for translation in singles:  # what is stepped belongs to the block that has it; if none has, the step stands for itself
            key = translation.mode.index, translation.block.entry
            if key in held:
                self._singles.setdefault((id(cache), *key), []).append(translation)
            else:
                self._shown.append((name, cache, translation))

    # -- totals ------------------------------------------------------------------------------------------------------------------

    def totals(self, callout_exits: int) -> Totals:
        """Over all blocks. callout_exits: instructions that the VMM emulated."""
        everything = [translation for cache in self._caches.values() for translation in cache.translations]
        counted: Census = census(everything)
        return Totals(
            **counted.as_dict(),
            cache_bytes=sum(len(translation.code) for translation in everything),
            counter_bytes=COUNTER_BYTES * sum(len(translation.counters) for translation in everything),
            identity_share=counted.identity_share,
            growth=counted.growth,
            callout_exits=callout_exits,
            stub_exits=sum(_chain_exits(translation) for translation in everything if not is_block(translation)),
            saved=self._saved(everything) if self._heat is not None else None,
        )

    def _saved(self, everything: Iterable[Translation]) -> int:
        """Executions of in-cache emulations that took no exit: with trapping stubs alone, each would have."""
        saved = 0
        for translation in everything:
            counts = self._counts[id(translation)]
            trapped = _site_exits(translation)
            for _, address, kind in kinds(translation):
                if kind is Kind.IN_CACHE:
                    saved += counts.executed.get(address, 0) - trapped.get(address, 0) - counts.emulated.get(address, 0)
        return saved

    # -- blocks ------------------------------------------------------------------------------------------------------------------

    def blocks(self) -> Iterator[Block]:
        """All blocks, by cache and address; of several for one address the live one comes first."""
        for number in range(len(self._shown)):
            yield self.block(number)

    def __len__(self) -> int:
        return len(self._shown)

    def executed(self, number: int) -> int:
        """How many instructions of a block were carried out; 0 when that was not counted."""
        return sum(self._counts[id(self._shown[number][2])].executed.values()) if self._heat is not None else 0

    def holding(self, address: int) -> list[int]:
        """The numbers of the blocks that hold the instruction at a guest EIP: those that begin with it first."""
        found = [
            (translation.block.entry != address, not translation.alive, number)
            for number, (_, _, translation) in enumerate(self._shown)
            if translation.block.entry == address
            or any(instruction.address <= address < instruction.next for instruction in translation.block.instructions)
        ]
        return [number for _, _, number in sorted(found)]

    def nearest(self, address: int) -> int:
        """The entry that lies nearest to a guest EIP; the EIP itself when there are no blocks."""
        return min((translation.block.entry for _, _, translation in self._shown), key=lambda entry: abs(entry - address), default=address)

    def following(self, number: int) -> list[int]:
        """The numbers of the blocks that a block leads to."""
        _, cache, translation = self._shown[number]
        return [link.block for link in self._links(cache, translation) if link.block is not None]

    def block(self, number: int) -> Block:
        """One block, in full. Executions by single steps are told once, with the first block that has the instruction."""
        name, cache, translation = self._shown[number]
        counts = self._counts.get(id(translation))
        explainer = Explainer(translation, cache.base, self._place, lambda slot: _leads(cache, slot))
        lines, stubs = self._lines(cache, translation, explainer, counts)
        links = self._links(cache, translation)
        mode = translation.mode
        return Block(
            number=number,
            cache=name,
            entry=translation.block.entry,
            name=self._name(translation.block.entry),
            address=translation.start,
            state="single step" if translation.single else "live" if translation.alive else "invalidated",
            bases=(mode.cs_base, mode.ss_base),
            guest_bytes=sum(len(instruction.raw) for instruction in translation.block.instructions),
            code_bytes=code_bytes(translation),
            count=counts.entered if counts else None,
            exits=sum(line.exits for line in lines) + sum(link.exits for link in links),
            lines=tuple(lines),
            stubs=tuple(stubs),
            links=tuple(links),
        )

    def _lines(
        self, cache: TranslationCache, translation: Translation, explainer: Explainer, counts: Counts | None
    ) -> tuple[list[Line], list[Code]]:
        facts = {address: (instruction, kind) for instruction, address, kind in kinds(translation)}
        rows = dict(zip((i.address for i in translation.block.instructions), translation.block.rows, strict=True))
        code: dict[int, list[Code]] = {address: [] for address in facts}
        stubs: list[Code] = []
        owner, in_stubs, recovery = translation.block.entry, False, 0
        counters = [start for head in translation.counters if (start := translation.find(head)) is not None]
        for piece in pieces(translation):
            for at, owner, recovery in piece.entries:  # noqa: B007  # the last one is the piece's
                in_stubs = in_stubs or at >= translation.body
            if any(0 <= piece.code.address - start < COUNTER_BYTES for start in counters):
                continue  # not the translation's: the dump's own
            instruction, _ = facts.get(owner, (None, None))
            made = _code(piece, recovery, explainer, rows.get(owner), None if in_stubs else instruction)
            (stubs if in_stubs else code[owner]).append(made)
        exits = _site_exits(translation)
        executed = Counter(counts.executed) if counts else Counter()
        if counts:
            exits.update(counts.exits)
        lines = []
        for address, (instruction, kind) in facts.items():
            for single in self._singles.pop((id(cache), translation.mode.index, address), ()):
                exits.update(_site_exits(single))
                executed[address] += self._counts[id(single)].executed.get(address, 0) if counts else 0
            row = row_of(instruction.opcode, instruction.modrm) if instruction else None
            lines.append(
                Line(
                    address=address,
                    raw=instruction.raw if instruction else b"",
                    text=instruction.text if instruction else "(no instruction)",
                    kind=kind.value,
                    row=row.name if row else "",
                    code=tuple(code[address]),
                    count=executed[address] if counts else None,
                    exits=exits[address],
                )
            )
        return lines, stubs

    def _links(self, cache: TranslationCache, translation: Translation) -> list[Link]:
        exits = {site.slot: site.count for site in translation.sites.values() if site.kind is SiteKind.CHAIN}
        found = []
        for slot, (target, _) in translation.slots.items():
            chained = _leads(cache, slot)
            owner = cache.translation_at(cache.words[slot // 4]) if chained else cache.owners.get(translation.mode.index << 32 | target)
            found.append(
                Link(
                    slot=(slot - SLOTS) // 4,
                    target=target,
                    name=self._name(target),
                    block=self._numbers.get(id(owner)),
                    chained=chained,
                    exits=exits.get(slot, 0),
                )
            )
        return found

    def _name(self, address: int) -> str:
        name = self._symbols.name(address)
        return "" if name.startswith("0x") else name

    def _place(self, address: int) -> str:
        name = self._name(address)
        return f"{address:08x} <{name}>" if name else f"{address:08x}"


def _leads(cache: TranslationCache, slot: int) -> bool:
    return bool(cache.words[slot // 4] != cache.slot_traps.get(slot, 0))


def _site_exits(translation: Translation) -> Counter[int]:
    """Traps by guest EIP, but for those of chaining."""
    found: Counter[int] = Counter()
    for site in translation.sites.values():
        if site.kind in (SiteKind.CALLOUT, SiteKind.UNDEFINED):
            found[site.address] += site.count
    return found


def _chain_exits(translation: Translation) -> int:
    return sum(site.count for site in translation.sites.values() if site.kind is SiteKind.CHAIN)


def _code(piece: Piece, recovery: int, explainer: Explainer, row: Row | None, guest: Instruction | None) -> Code:
    code = piece.code
    return Code(
        address=code.address,
        raw=code.raw,
        text=named(code.text, explainer.translation, explainer.base),
        recovery=recovery_words(recovery),
        words=explainer.words(code, row, guest),
    )
