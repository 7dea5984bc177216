"""What the translator emits for each form of each sensitive instruction, as golden text beside the guest's code.

`pytest tests/expect --accept` writes the files of tests/expect/golden anew: read the difference before it is committed.
Whether the text does what the instruction does is the business of tests/machine/test_emitted.py.
"""

import itertools
from pathlib import Path

import pytest

from bt.block import Mode
from bt.decode import decode
from bt.discover import discover
from bt.emit import Emitter, Options
from bt.listing import listing
from bt.sensitive import TABLE, Row, Treatment, row_of
from bt.window import CODE, SLOTS
from tests.expect.forms import forms, rows

GOLDEN = Path(__file__).parent / "golden"
BASE, ENTRY = 0xE8000000, 0x100000
PLAIN = Mode(0, 0, 0)
BASED = Mode(1, 0x40000000, 0x50000)


def translated(code: str | bytes, *, mode: Mode = PLAIN, options: Options | None = None, single: bool = False) -> str:
    """The listing of the block at ENTRY that `code` (hexadecimal) is, followed by as many NOPs as a decoder may want to see."""
    raw = bytes.fromhex(code) if isinstance(code, str) else code
    block = discover(raw + bytes((0x90,)) * 15, ENTRY, len(raw), ENTRY)
    slots = itertools.count(SLOTS, 4)
    translation = Emitter(block, mode, BASE + CODE + 0x10, BASE, lambda: next(slots), options or Options(), single).translate()
    return listing(translation, BASE)


def compare(name: str, text: str, accept: bool) -> None:
    """Compares with the golden file, or makes it."""
    path = GOLDEN / f"{name}.txt"
    if accept:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == (path.read_text() if path.exists() else ""), f"{path.name} differs: read it, then pytest tests/expect --accept"


@pytest.fixture
def accept(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--accept", default=False))


def described(row: Row) -> str:
    """The listings of a row's forms under its name."""
    heading = f"{row.name}: {row.opcode}, {row.klass.name.lower()}, {'traps' if row.traps else 'does not trap'} in user mode"
    return "\n".join([heading, "=" * len(heading), *(translated(form) for form in forms(row))])


@pytest.mark.parametrize("treatment", Treatment, ids=lambda treatment: treatment.name.lower())
def test_every_row_of_the_table(treatment: Treatment, accept: bool) -> None:
    """All rows of a treatment, in the table's order."""
    compare(treatment.name.lower(), "\n".join(described(row) for row in rows(treatment)), accept)


def test_every_form_is_of_its_row() -> None:
    """The examples are what they claim to be: the table gives each form back its own row."""
    for row in TABLE:
        assert forms(row)
        for form in forms(row):
            instruction = next(decode(form + bytes(15), 0), None)
            if instruction is not None:
                assert row_of(instruction.opcode, instruction.modrm) is row, (row.name, form.hex())


BLOCKS = {
    "critical_section": "9c fa ff 03 9d c3",
    "call_in_a_loop": "31 c0 e8 f9 0f 00 00 e2 f9 c3",
    "branches": "85 c0 74 03 40 eb 02 48 c3 c3",
    "loops": "49 e0 fd e1 fb e2 f9 e3 f7 67 e2 f4 c3",
    "sti_shadow": "fb 90 8e d0 89 c4 fb f4",
    "switch": "ff 24 85 00 20 10 00 b8 01 00 00 00 c3",
    "undecodable": "40 ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff",
    "cs_override": "2e 8b 01 2e 8b 44 91 04 2e a1 00 20 10 00 2e 0f b6 05 78 56 34 12 2e ff 21",
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str, accept: bool) -> None:
    """Whole blocks: how instructions come together, with the stubs behind them."""
    compare(f"block_{name}", translated(BLOCKS[name]), accept)


VARIANTS: dict[str, tuple[str, Mode, Options, bool]] = {
    "critical_section_trapping": (BLOCKS["critical_section"], PLAIN, Options(stubs_in_cache=False), False),
    "critical_section_based": (BLOCKS["critical_section"], BASED, Options(), False),
    "critical_section_iopl": (BLOCKS["critical_section"], Mode(2, 0, 0, plain=False), Options(), False),
    "cs_override_based": (BLOCKS["cs_override"], BASED, Options(), False),
    "iret_in_ring_3": ("cf", PLAIN, Options(native_iret=False), False),
    "single_store": ("89 03", PLAIN, Options(), True),
    "single_call": ("e8 00 10 00 00", PLAIN, Options(), True),
    "single_ret": ("c3", PLAIN, Options(), True),
    "single_loop": ("e2 fe", PLAIN, Options(), True),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_modes_and_options(name: str, accept: bool) -> None:
    """The same code under other bases, IOPL, rings, kinds of stub, and as a single step."""
    code, mode, options, single = VARIANTS[name]
    compare(f"variant_{name}", translated(code, mode=mode, options=options, single=single), accept)


def test_no_golden_file_is_left_over() -> None:
    """Each file belongs to a test."""
    names = {treatment.name.lower() for treatment in Treatment} | {f"block_{name}" for name in BLOCKS} | {f"variant_{name}" for name in VARIANTS}
    assert {path.stem for path in GOLDEN.glob("*")} == names
