"""What slipped: why a guest goes wrong when it is run deprivileged and untranslated (`--backend trap --explain`).

Compares the guest's lines with those of a run in which every sensitive instruction was emulated, and says by the table whose fault each
difference is. Knows the lines of the bundled kernel `sensitive`; of any other guest's, only that they differ.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bt.sensitive import TABLE, Class, Row

_IF = 0x200
_CHANGE = re.compile(r" (?:(\[\w+\]|gdt \w+|idt \w+|port 21|sysenter \w+|\w+)=(\w+)|(pushed)((?: [0-9a-f]{4})+))")
_READERS = {  # what the kernel finds out about the machine by instructions that slip themselves, and about IF by a return that did
    "ss": "mov r/m,ss",
    "IF": "iret",
    "gdt limit": "sgdt",
    "gdt base": "sgdt",
    "idt limit": "sidt",
    "idt base": "sidt",
    "ldt": "sldt",
    "tr": "str",
}
_ROWS = {row.name: row for row in TABLE}


@dataclass(frozen=True, slots=True)
class Slip:
    """One line of the guest's that differs. to_blame: rows of the instructions that slipped; empty when no row says."""

    line: str
    saw: str
    bare: str
    to_blame: tuple[Row, ...]

    @property
    def text(self) -> str:
        """One line for a person."""
        return f"{self.line}: saw {self.saw}; the bare machine shows {self.bare}. {' '.join(map(_reason, self.to_blame))}".rstrip()


@dataclass(frozen=True, slots=True)
class Lesson:
    """everywhere: what differs in lines of innocent instructions too, and whose fault it is. slips: what else does. missing: lines not printed."""

    everywhere: tuple[tuple[str, Row], ...]
    slips: tuple[Slip, ...]
    missing: int


def slipped(row: Row) -> bool:
    """Whether an instruction of the table runs deprivileged without a trap, and shows or changes what is not the guest's."""
    return row.klass is Class.SENSITIVE and not row.traps


def compare(seen: str, wanted: str) -> Lesson:
    """What to learn from a console of `sensitive` and the one that there should be."""
    got, bare = _lines(seen), _lines(wanted)
    differences = {line: _differences(got[line], bare[line]) for line in bare if line in got}
    innocent = [found for line, found in differences.items() if _row(line).klass is Class.FLOW]
    everywhere = {(what, after) for found in innocent for what, (_, after) in found.items() if what in _READERS}
    slips = []
    for line, found in differences.items():
        own = {what: values for what, values in found.items() if (what, values[1]) not in everywhere}
        if own:
            before, after = (", ".join(f"{what} {values[side]}".strip() for what, values in own.items()) for side in (0, 1))
            to_blame = {_READERS.get(what, _row(line).name) for what in own}
            slips.append(Slip(line, after, before, tuple(_ROWS[name] for name in sorted(to_blame))))
    shown = tuple(sorted((f"{what} {after}", _ROWS[_READERS[what]]) for what, after in everywhere))
    return Lesson(shown, tuple(slips), len(bare) - len(got))


def _lines(console: str) -> dict[str, str]:
    pairs = (line.partition(": ") for line in console.replace("\r\n", "\n").splitlines())
    return {name: rest for name, colon, rest in pairs if colon and _known(name)}


def _known(name: str) -> Row | None:
    """The row of a line `NAME [FORM] MODE` of the kernel's."""
    words = name.rsplit(" ", 1)
    if words[-1] not in ("kernel", "user"):
        return None
    return _ROWS.get(words[0]) or _ROWS.get(words[0].rsplit(" ", 1)[0])


def _row(line: str) -> Row:
    row = _known(line)
    assert row is not None
    return row


def _differences(seen: str, wanted: str) -> dict[str, tuple[str, str]]:
    """What to (the bare machine's value, the guest's): the outcome, and every change that was printed; IF apart from the other flags."""
    (got_outcome, got), (outcome, bare) = _parsed(seen), _parsed(wanted)
    found = {} if got_outcome == outcome else {"outcome": (outcome, got_outcome)}
    for what in {**bare, **got}:
        before, after = bare.get(what, "as before"), got.get(what, "as before")
        if before == after:
            continue
        if what == "eflags" and what in got and not int(after, 16) & _IF and (what not in bare or int(before, 16) == int(after, 16) | _IF):
            found["IF"] = "set", "clear"
        else:
            found[what] = before, after
    return found


def _parsed(text: str) -> tuple[str, dict[str, str]]:
    changes = list(_CHANGE.finditer(text))
    outcome = text[: changes[0].start()] if changes else text
    return outcome, {match[1] or match[3]: match[2] or match[4].strip() for match in changes}


def _reason(row: Row) -> str:
    return f"{row.name} {row.why}, and does not trap." if slipped(row) else f"{row.name} traps: this is a quirk of the CPU (docs/QUIRKS.md)."


def report(kernel: str, seen: str, wanted: str, executed: Mapping[str, int]) -> Iterator[str]:
    """The lesson as lines of text. executed: how often each emulated instruction was carried out when all were, by its row's name."""
    yield f"What slipped: {kernel} deprivileged and untranslated, beside a run in which the VMM looks at every instruction first (--backend step)."
    lesson = compare(seen, wanted)
    if lesson.slips or lesson.everywhere:
        for what, row in lesson.everywhere:
            yield f"In every line: {what}. {_reason(row)}"
        yield from (slip.text for slip in lesson.slips)
        if lesson.missing:
            yield f"{lesson.missing} lines never came: the guest had died."
        return
    met = {name: count for name, count in Counter(executed).most_common() if name in _ROWS and slipped(_ROWS[name])}
    for name, count in met.items():
        yield f"met {count:,} times: {_reason(_ROWS[name])}"
    if not met:
        yield "It carries out no instruction that slips."
    lines = set(wanted.splitlines())
    for line in seen.splitlines():
        if line not in lines:
            yield f"only here: {line}"
    if seen == wanted:
        yield "Nothing of it shows: the console is the same."
