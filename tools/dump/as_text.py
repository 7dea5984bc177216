"""A dump as text: for a terminal in colours, plain when piped.

Knows how a dump looks on lines. Knows nothing of where it is from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, TextIO

from tools.dump.model import Block, Code, Dump, Line, Totals

_STYLES: Final = {
    "identity": "dim",
    "rewritten": "cyan",
    "in-cache": "green",
    "callout": "red",
    "control flow": "blue",
    "no instruction": "magenta",
    "heading": "bold",
    "words": "italic",
}
_GUEST, _CODE = 67, 87  # columns of a guest instruction, and of one of translated code

_COUNTS: Final = 28  # columns of a count and exits

Segments = list[tuple[str, str]]  # texts with the names of their styles


def write(dump: Dump, file: TextIO, blocks: Iterable[Block]) -> None:
    """Writes the dump, with `blocks` as they come: in colours when `file` is a terminal that wants them (NO_COLOR is honoured)."""
    if not file.isatty():
        for segments in _lines(dump, blocks):
            file.write("".join(text for text, _ in segments).rstrip() + "\n")
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=file, highlight=False, soft_wrap=True)
    for segments in _lines(dump, blocks):
        console.print(Text.assemble(*((text, _STYLES.get(style, "")) for text, style in segments)))


def _lines(dump: Dump, blocks: Iterable[Block]) -> Iterator[Segments]:
    yield [(dump.kernel, "heading"), (": static, nothing was run" if dump.how == "static" else f": {dump.end}", "")]
    for text in totals_words(dump.totals):
        yield [(text, "")]
    for block in blocks:
        yield []
        yield from _block(block)


def totals_words(totals: Totals) -> list[str]:
    """The totals as sentences."""
    classes = ", ".join(
        f"{count:,} {name}"
        for count, name in (
            (totals.identity, "identity"),
            (totals.flow, "control flow"),
            (totals.in_cache, "in-cache"),
            (totals.callouts, "callouts"),
            (totals.rewritten, "rewritten"),
            (totals.undefined, "no instruction"),
        )
    )
    counters = f", {totals.counter_bytes:,} of them counters" if totals.counter_bytes else ""
    found = [
        f"{totals.blocks:,} block{'s' if totals.blocks != 1 else ''}, {totals.instructions:,} instructions:"
        f" {totals.identity_share:.1%} identity ({classes})",
        f"{totals.guest_bytes:,} bytes of guest code became {totals.code_bytes:,} ({totals.growth:.2f} times);"
        f" {totals.cache_bytes:,} bytes in the cache{counters}",
        f"{totals.callout_exits:,} instructions emulated by the VMM",
    ]
    if totals.stub_exits:
        found.append(f"{totals.stub_exits:,} chain exits of lone stubs, of which no block shows a link")
    if totals.saved is not None:
        found.append(f"{totals.saved:,} exits saved: emulations in the cache that would have trapped")
    return found


def _block(block: Block) -> Iterator[Segments]:
    name = f" <{block.name}>" if block.name else ""
    facts = [f"{len(block.lines)} instructions, {block.guest_bytes} -> {block.code_bytes} bytes"]
    if block.state != "live":
        facts.append(block.state)
    if block.bases != (0, 0):
        facts.append("bases of CS and SS {:#x}, {:#x}".format(*block.bases))
    if block.count is not None:
        facts.append(f"entered {block.count:,} time{'s' if block.count != 1 else ''}")
    if block.exits:
        facts.append(_exits(block.exits))
    yield [(f"block {block.number}  {block.entry:08x}{name}", "heading"), (f"  {block.cache}, {', '.join(facts)}", "")]
    for line in block.lines:
        yield from _line(line)
    hot = block.count is not None
    if block.stubs:
        yield [("    stubs", "heading")]
        for code in block.stubs:
            yield [(" " * _width(hot), ""), *_code(code, "callout" if code.words.startswith("trap") else "")]
    for link in block.links:
        to = f"block {link.block}" if link.block is not None else "not translated"
        name = f" <{link.name}>" if link.name else ""
        exits = f", {_exits(link.exits)}" if link.exits else ""
        yield [(f"    slot {link.slot} to {link.target:08x}{name}: {to}, {'chained' if link.chained else 'not chained'}{exits}", "control flow")]


def _exits(count: int) -> str:
    return f"{count:,} exit{'s' if count != 1 else ''}" if count else ""


def _width(hot: bool) -> int:
    """Columns to the left of the translated code."""
    return 83 + (_COUNTS if hot else 0)


def _line(line: Line) -> Iterator[Segments]:
    guest = f"{line.address:08x}  {line.raw.hex(' '):<22} {line.text}"
    left = f"{guest:<{_GUEST}} {line.kind:<14} "
    counts = "" if line.count is None else f"{line.count:>12,} {_exits(line.exits):>13}  "
    first, *others = line.code or (None,)
    code: Segments = [] if first is None else [(f"{first.address:08x}  =", line.kind)] if is_copy(line) else _code(first, line.kind)
    exits = f"  {_exits(line.exits)}" if line.count is None else ""
    yield [(counts, "heading"), (left, line.kind), *code, (exits, "heading")]
    for further in others:
        if further is not None:
            yield [(" " * len(counts + left), ""), *_code(further, line.kind)]


def _code(code: Code, style: str) -> Segments:
    notes = "; ".join(note for note in (code.words, code.recovery) if note)
    text = f"{code.address:08x}  {code.raw.hex(' '):<30} {code.text}"
    return [(f"{text:<{_CODE}} ", style), (notes, "words")]


def is_copy(line: Line) -> bool:
    """Whether the code of a line is the guest's instruction and nothing else."""
    return len(line.code) == 1 and line.code[0].raw == line.raw and not line.code[0].words
