"""The escape key."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tools.keys import Command, EscapeKey


def test_commands_and_bytes() -> None:
    """Ctrl-A takes the next key, whenever it comes; an unknown one vanishes."""
    key = EscapeKey()
    assert key.take(b"ab\x01") == (b"ab", [])
    assert key.take(b"xc") == (b"c", [Command.QUIT])
    assert key.take(b"\x01a\x01\x01\x01c\x01h\x01?\x01zd") == (b"\x01\x01\x03d", [Command.HELP, Command.HELP])


@given(st.binary())
def test_without_the_escape_key_nothing_changes(typed: bytes) -> None:
    """Every other byte is the guest's."""
    plain = typed.replace(b"\x01", b"")
    assert EscapeKey().take(plain) == (plain, [])


@given(st.binary(), st.integers(0, 20))
def test_parts_are_as_good_as_the_whole(typed: bytes, at: int) -> None:
    """How the bytes were cut by the terminal does not matter."""
    parts = EscapeKey()
    first, second = parts.take(typed[:at]), parts.take(typed[at:])
    assert (first[0] + second[0], first[1] + second[1]) == EscapeKey().take(typed)
