"""Where a guest's console goes and comes from: what the run loop asks of whoever sits at it.

A console without a person: output collected, input given beforehand. Terminals are the tools' business.
"""

from __future__ import annotations

from typing import Protocol


class Console(Protocol):
    """A guest's console: `write` takes its output, `poll` gives what was typed since the last call, None once input has ended.

    `fileno` is a descriptor that becomes readable with input, or None: an idle VM waits on it.
    """

    def write(self, data: bytes) -> None: ...

    def poll(self) -> bytes | None: ...

    def fileno(self) -> int | None: ...


class Recorder:
    """A console that keeps the output and types `keys`."""

    def __init__(self, keys: bytes = b"") -> None:
        self.output = bytearray()
        self._keys = keys

    @property
    def text(self) -> str:
        """The output so far, undecodable bytes replaced."""
        return self.output.decode(errors="replace")

    def type(self, keys: bytes) -> None:
        """Types more."""
        self._keys += keys

    def write(self, data: bytes) -> None:
        self.output += data

    def poll(self) -> bytes | None:
        keys, self._keys = self._keys, b""
        return keys

    def fileno(self) -> int | None:
        return None
