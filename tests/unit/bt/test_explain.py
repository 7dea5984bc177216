"""The words beside translated code: whatever is not the guest's own instruction has some."""

import itertools

import pytest

from bt.block import Mode, Translation
from bt.discover import discover
from bt.emit import Emitter, Options
from bt.explain import Explainer
from bt.listing import pieces
from bt.sensitive import TABLE, Row
from bt.window import CODE, SLOTS
from tests.expect.forms import forms

BASE, ENTRY = 0xE8000000, 0x100000
MODES = (Mode(0, 0, 0), Mode(1, 0x40000000, 0x50000), Mode(2, 0, 0, plain=False))
OPTIONS = (Options(), Options(stubs_in_cache=False), Options(counted=True), Options(native_iret=False))


def explained(
    code: bytes, mode: Mode = MODES[0], options: Options = OPTIONS[0], *, single: bool = False, leads: bool = False
) -> list[tuple[str, str]]:
    """Each instruction of the translation that is not the guest's own, with its words."""
    block = discover(code + b"\x90" * 15, ENTRY, len(code), ENTRY)
    slots = itertools.count(SLOTS, 4)
    made: Translation = Emitter(block, mode, BASE + CODE, BASE, lambda: next(slots), options, single).translate()
    explainer = Explainer(made, BASE, lambda address: f"<{address:x}>", lambda slot: leads)
    guests = {instruction.address: (instruction, row) for instruction, row in zip(block.instructions, block.rows, strict=True)}
    found, owner = [], ENTRY
    for piece in pieces(made):
        for _, owner, _ in piece.entries:  # noqa: B007  # the last one is the piece's
            pass
        instruction, row = guests.get(owner, (None, None))
        if instruction is None or row is not None or piece.code.raw != instruction.raw:
            found.append((piece.code.text, explainer.words(piece.code, row, instruction)))
    return found


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_nothing_is_left_without_words(row: Row) -> None:
    """Every form of every row, under all modes, options, and as a single step."""
    for form, mode, options, single in itertools.product(forms(row), MODES, OPTIONS, (False, True)):
        assert not [text for text, words in explained(form, mode, options, single=single) if not words], (form.hex(), mode, options)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("fa c3", "clear virtual IF"),
        ("fb c3", "set virtual IF; traps when an interrupt waits"),
        ("0f 20 d8", "virtual CR3, into eax"),
        ("0e", "push virtual CS"),
        ("e8 00 10 00 00", "push the return address <100005>"),
        ("f4", "trap: the VMM emulates hlt"),
        ("eb 10", "jump through slot 0 to <100012> (not chained)"),
        ("eb 10", "trap, until slot 0 is chained: the VMM finds <100012>"),
        ("9d", "to the VMM, below"),
        ("c3", "save ecx"),
        ("40 74 fd", "if so, to <100000>"),
        ("ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff", "trap: #UD, these bytes are no instruction"),
    ],
)
def test_words(code: str, words: str) -> None:
    """What a person reads beside some of them."""
    assert words in [said for _, said in explained(bytes.fromhex(code))]


def test_chained() -> None:
    """A slot that leads to a translation is said to."""
    assert "jump through slot 0 to <100012> (chained)" in [said for _, said in explained(bytes.fromhex("eb 10"), leads=True)]
