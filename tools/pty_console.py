"""A guest's console on a pseudo-terminal of its own: `screen /dev/pts/N`, or any other terminal program, is whoever sits at it.

Knows the pseudo-terminal. What is written while nobody reads is kept as far as the host keeps it, and lost after that, as on a serial line.
"""

from __future__ import annotations

import contextlib
import os
import pty
import tty

_PART = 4096


class PtyConsole:
    """A `Console`. path: the terminal to open."""

    def __init__(self) -> None:
        self._master, self._slave = pty.openpty()  # the slave stays open here: a master without one is at its end
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(self._slave)

    def close(self) -> None:
        """Ends the terminal."""
        os.close(self._master)
        os.close(self._slave)

    def write(self, data: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._master, data)

    def poll(self) -> bytes | None:
        try:
            return os.read(self._master, _PART)
        except BlockingIOError:
            return b""

    def fileno(self) -> int | None:
        return self._master
