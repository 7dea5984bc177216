"""How much of translated code is of which kind: counted from the translations themselves, wherever somebody asks.

Knows blocks and their maps. Knows no text; whoever shows a translation's kinds or totals has them from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from enum import Enum

from bt.block import CLEAN, SHADOWED, SiteKind, Translation
from bt.decode import Instruction
from bt.emit import COUNTER_BYTES
from bt.sensitive import Class, Row


class Kind(Enum):
    """What became of a guest instruction."""

    IDENTITY = "identity"  # the guest's own bytes
    REWRITTEN = "rewritten"  # innocuous, but its bytes mean something else in the cache: a CS override
    IN_CACHE = "in-cache"  # sensitive, emulated without an exit
    CALLOUT = "callout"  # sensitive, a trapping stub
    FLOW = "control flow"
    UNDEFINED = "no instruction"  # undecodable bytes: a stub that raises #UD


@dataclass(slots=True)
class Census:
    """Totals over translations of blocks. Sizes are in bytes; `code_bytes` has stubs and checked entries in it, but no counters."""

    blocks: int = 0
    instructions: int = 0
    guest_bytes: int = 0
    code_bytes: int = 0
    identity: int = 0
    rewritten: int = 0
    in_cache: int = 0
    callouts: int = 0
    flow: int = 0
    undefined: int = 0

    @property
    def identity_share(self) -> float:
        """The part of the instructions that are the guest's own, 0 to 1, in thousandths: rounded here, once for whoever shows it."""
        return round(self.identity / self.instructions, 3) if self.instructions else 0.0

    @property
    def growth(self) -> float:
        """Bytes of translated code for each byte of the guest's, in hundredths."""
        return round(self.code_bytes / self.guest_bytes, 2) if self.guest_bytes else 0.0

    def as_dict(self) -> dict[str, int]:
        """The counts by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


_FIELDS = {
    Kind.IDENTITY: "identity",
    Kind.REWRITTEN: "rewritten",
    Kind.IN_CACHE: "in_cache",
    Kind.CALLOUT: "callouts",
    Kind.FLOW: "flow",
    Kind.UNDEFINED: "undefined",
}


def is_block(translation: Translation) -> bool:
    """Whether a translation is one of a block: not of a single step, nor a stub that only leads to another one."""
    return not translation.single and bool(translation.block.instructions or translation.block.undecodable)


def code_bytes(translation: Translation) -> int:
    """The size of a translation's code, without its counters."""
    return len(translation.code) - COUNTER_BYTES * len(translation.counters)


def census(translations: Iterable[Translation]) -> Census:
    """The totals over those of `translations` that are blocks, invalidated ones included."""
    total = Census()
    found = dict.fromkeys(Kind, 0)
    for translation in translations:
        if not is_block(translation):
            continue
        total.blocks += 1
        total.instructions += len(translation.block.instructions)
        total.guest_bytes += sum(len(instruction.raw) for instruction in translation.block.instructions)
        total.code_bytes += code_bytes(translation)
        for _, _, kind in kinds(translation):
            found[kind] += 1
    for kind, count in found.items():
        setattr(total, _FIELDS[kind], count)
    return total


def kinds(translation: Translation) -> Iterator[tuple[Instruction | None, int, Kind]]:
    """(instruction, its EIP, kind) in the order of the code; None for bytes that are no instruction."""
    stubs = _end_of_body(translation)
    trapping = {site.address for at, site in translation.sites.items() if site.kind is SiteKind.CALLOUT and at <= stubs}
    for instruction, row in zip(translation.block.instructions, translation.block.rows, strict=True):
        yield instruction, instruction.address, _kind(translation, instruction, row, trapping)
    for address in translation.block.undecodable:
        yield None, address, Kind.UNDEFINED


def _kind(translation: Translation, instruction: Instruction, row: Row | None, trapping: set[int]) -> Kind:
    if row is None:
        changed = instruction.segment and not _is_copied(translation, instruction)
        return Kind.REWRITTEN if changed else Kind.IDENTITY
    if instruction.address in trapping:
        return Kind.CALLOUT
    if row.klass is Class.FLOW:
        return Kind.FLOW
    return Kind.IN_CACHE


def _is_copied(translation: Translation, instruction: Instruction) -> bool:
    """Whether the guest's bytes stand where the instruction starts cleanly: behind what counts it, if anything does."""
    starts = [
        mark
        for mark, guest, flags in zip(translation.marks, translation.guests, translation.recovery)
        if guest == instruction.address and flags in (CLEAN, SHADOWED)
    ]
    at = starts[-1] - translation.start
    return translation.code[at : at + len(instruction.raw)] == instruction.raw


def _end_of_body(translation: Translation) -> int:
    return translation.marks[translation.body] if translation.body < len(translation.marks) else translation.end
