"""The assembler of the tests reads numbers as they are written, whatever memory it was given."""

import pytest

from tests.assembly import assemble


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("mov eax,20", "b814000000"),
        ("mov eax,0x20", "b820000000"),
        ("mov eax,4026531840", "b8000000f0"),
        ("mov eax,-4", "b8fcffffff"),
        ("mov eax,[ebx*4+20]", "8b049d14000000"),
        (".byte 20,0x20", "1420"),
        ("x10: jmp x10", "ebfe"),
        ("mov al,'7'", "b037"),
        ("fadd st(0),st(3)", "d8c3"),
        ("jmp 0x110; jmp 272", "eb0eeb0c"),
    ],
)
def test_numbers(source: str, code: str) -> None:
    """Decimal, hexadecimal, characters and registers keep their meaning."""
    assert assemble(source, 0x100).hex() == code
