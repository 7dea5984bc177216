"""What a dump says: blocks and their translations, instruction by instruction, as plain data that every format renders.

Knows what there is to say about a block, and nothing of how it was found or how it looks. docs/DUMP.md says what each field means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

VERSION = 1
"""Of the JSON form of this. It rises when a program that reads it would have to change."""


@dataclass(frozen=True, slots=True)
class Code:
    """One instruction of translated code. recovery: what the address map says must be undone for the guest's state, in words;
    words: what the instruction is there for. Both empty when there is nothing to say."""

    address: int
    raw: bytes
    text: str
    recovery: str
    words: str


@dataclass(frozen=True, slots=True)
class Line:
    """A guest instruction beside its code. kind: what became of it (docs/DUMP.md). row: its row in the table of sensitive
    instructions, or nothing. count: how often it was carried out; None when that was not counted. exits: how often it trapped."""

    address: int
    raw: bytes
    text: str
    kind: str
    row: str
    code: tuple[Code, ...]
    count: int | None
    exits: int


@dataclass(frozen=True, slots=True)
class Link:
    """A way out of a block through a slot. target: a guest EIP. block: the number of its block, None when it was not translated.
    exits: how often it trapped, until it was chained."""

    slot: int
    target: int
    name: str
    block: int | None
    chained: bool
    exits: int


@dataclass(frozen=True, slots=True)
class Block:
    """A block and its translation. address: linear, of the translation. state: "live", "invalidated" or "single step". bases: linear,
    of CS and SS. count: how often it was entered at its head; None when that was not counted."""

    number: int
    cache: str
    entry: int
    name: str
    address: int
    state: str
    bases: tuple[int, int]
    guest_bytes: int
    code_bytes: int
    count: int | None
    exits: int
    lines: tuple[Line, ...]
    stubs: tuple[Code, ...]
    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """Of the whole dump, whichever blocks of it are shown. Those of the code are counted as for `vmm run --stats` (bt/census.py).

    cache_bytes: all that is in the caches, single steps and lone stubs included. counter_bytes: of `cache_bytes`, those that only
    count. callout_exits: instructions that the VMM emulated. stub_exits: chain exits of lone stubs, which are no block's links. saved:
    executions of in-cache emulations that took no exit; None when nothing was counted.
    """

    blocks: int
    instructions: int
    guest_bytes: int
    code_bytes: int
    cache_bytes: int
    counter_bytes: int
    identity: int
    rewritten: int
    in_cache: int
    callouts: int
    flow: int
    undefined: int
    identity_share: float
    growth: float
    callout_exits: int
    stub_exits: int
    saved: int | None


@dataclass(frozen=True, slots=True)
class Dump:
    """All of it. how: "run" or "static". end: how the run ended, in words; empty without one. hot: whether executions were counted.
    run: the record of the run, as `vmm run --json` writes it; empty without one. blocks: those that are shown."""

    kernel: str
    how: str
    end: str
    hot: bool
    totals: Totals
    run: Mapping[str, object]
    blocks: tuple[Block, ...] = field(default=())
