"""The guest's VGA text screen on a person's terminal: drawn once, then only the lines that change.

Knows the escape sequences that every terminal has (ECMA-48: CUP, ED, EL). Knows no VGA and no guest: it is given lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Screen:
    """A picture of so many lines at the top left of a terminal that `write` leads to."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._lines: list[str] = []

    @property
    def drawn(self) -> bool:
        """Whether there is a picture."""
        return bool(self._lines)

    def draw(self, lines: Sequence[str], cursor: tuple[int, int] | None) -> None:
        """Shows `lines`, with the terminal's cursor at (row, column) counted from 0, or below the picture."""
        out = [] if self._lines else ["\x1b[2J"]
        old = self._lines or [""] * len(lines)
        out += [f"\x1b[{number}H{_printable(line)}\x1b[K" for number, (line, before) in enumerate(zip(lines, old), 1) if line != before]
        row, column = cursor or (len(lines), 0)
        out.append(f"\x1b[{row + 1};{column + 1}H")
        self._lines = list(lines)
        self._write("".join(out).encode())

    def leave(self) -> None:
        """Puts the cursor below the picture, which stays; the next `draw` starts a new one."""
        if self._lines:
            self._write(f"\x1b[{len(self._lines)}H\r\n".encode())
            self._lines = []


def plain(lines: Sequence[str]) -> str:
    """The screen as text for a pipe or a report: no blank lines around it, one newline behind each line."""
    text = "\n".join(_printable(line) for line in lines).strip("\n")
    return text + "\n" if text else ""


def _printable(line: str) -> str:
    """`line` without control characters: those of the code page's first rows would move a terminal's cursor."""
    return "".join(char if char.isprintable() else " " for char in line).rstrip()
