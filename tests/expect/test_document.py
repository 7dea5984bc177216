"""docs/SENSITIVE.md: the table of sensitive instructions as a document, made from the table itself.

`pytest tests/expect --accept` writes its tables anew; the text around them is written by hand.
"""

import re
from pathlib import Path

import pytest

from bt.sensitive import TABLE, Class, Row, treatments

DOCUMENT = Path(__file__).parents[2] / "docs" / "SENSITIVE.md"
_COLUMNS = ("instruction", "opcode", "forms", "in user mode", "what it does", "bt", "pv", "hw", "trap", "step")
_TABLE = re.compile(r"(<!-- (\w+) -->\n\n).*?(?=\n\n|\n\Z)", re.DOTALL)


def line(row: Row) -> str:
    """A row of the table as a line of the document."""
    how = treatments(row)
    cells = [f"`{row.name}`", row.opcode, row.forms or "-", "traps" if row.traps else "runs", row.why, *(how[name] for name in _COLUMNS[5:])]
    return f"| {' | '.join(cells)} |"


def table(klass: Class) -> str:
    """All rows of a class, in the table's order."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
    return "\n".join(lines + [line(row) for row in TABLE if row.klass is klass])


def test_the_document_is_the_table(request: pytest.FixtureRequest) -> None:
    """Each class has its table in the document, with every row of bt/sensitive.py and nothing else."""
    text = DOCUMENT.read_text()
    made = _TABLE.sub(lambda found: found[1] + table(Class[found[2]]), text)
    if request.config.getoption("--accept", default=False):
        DOCUMENT.write_text(made)
        text = made
    assert text == made, "docs/SENSITIVE.md differs from the table: pytest tests/expect --accept"
    assert [found[2] for found in _TABLE.finditer(text)] == ["PRIVILEGED", "SENSITIVE", "FLOW", "UNDEFINED"]
    named = re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    assert sorted(named) == sorted(row.name for row in TABLE)


def test_native_runs_everything() -> None:
    """What the document says once instead of in a column."""
    assert {treatments(row)["native"] for row in TABLE} == {"runs"}
