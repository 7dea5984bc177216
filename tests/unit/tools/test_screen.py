"""The text screen on a terminal."""

from __future__ import annotations

from tools.screen import Screen, plain


def test_only_changes_are_drawn() -> None:
    """The first picture clears the terminal; the next ones write the lines that differ, and put the cursor."""
    out: list[bytes] = []
    screen = Screen(out.append)
    screen.draw(["one", "", "three"], (2, 5))
    screen.draw(["one", "two", "three"], None)
    screen.leave()
    screen.leave()
    assert out == [b"\x1b[2J\x1b[1Hone\x1b[K\x1b[3Hthree\x1b[K\x1b[3;6H", b"\x1b[2Htwo\x1b[K\x1b[4;1H", b"\x1b[3H\r\n"]
    assert not screen.drawn


def test_nothing_of_the_guest_is_a_control_character() -> None:
    """What cannot be shown becomes a space."""
    out: list[bytes] = []
    Screen(out.append).draw(["\x1b[2J\x07x"], (0, 0))
    assert out == [b"\x1b[2J\x1b[1H [2J x\x1b[K\x1b[1;1H"]


def test_as_text() -> None:
    """Blank lines around it are left out, those within stay."""
    assert plain(["", "one", "", "two ", "", ""]) == "one\n\ntwo\n"
    assert plain(["", ""]) == ""
