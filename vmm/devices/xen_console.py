"""The Xen console: a page with two rings of bytes between a guest and whoever sits at its terminal.

Layout: Xen's public headers, io/console.h. The guest owns the indices that it writes and may write anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_IN, _IN_SIZE, _OUT, _OUT_SIZE = 0, 1024, 1024, 2048  # bytes of the page
_IN_CONSUMED, _IN_PRODUCED, _OUT_CONSUMED, _OUT_PRODUCED = 768, 769, 770, 771  # 32-bit words of it
_WORD: Final = 0xFFFFFFFF


class XenConsole:
    """The device behind `page`. output gets what the guest prints; notify signals the guest. typed: what has no room yet."""

    def __init__(self, page: memoryview, output: Callable[[bytes], None], notify: Callable[[], None]) -> None:
        self.bytes, self.words = page, page.cast("I")
        self.output, self.notify = output, notify
        self.typed = bytearray()

    def signalled(self) -> None:
        """The guest has printed something, or made room for input."""
        consumed, produced = self.words[_OUT_CONSUMED], self.words[_OUT_PRODUCED]
        count = produced - consumed & _WORD
        if 0 < count <= _OUT_SIZE:
            at = consumed % _OUT_SIZE
            ring = self.bytes[_OUT : _OUT + _OUT_SIZE]
            text = bytes(ring[at : at + count]) + bytes(ring[: max(0, at + count - _OUT_SIZE)])
            self.words[_OUT_CONSUMED] = produced
            self.output(text)
            self.notify()
        self._put()

    def receive(self, keys: bytes) -> None:
        """Somebody types."""
        self.typed += keys
        self._put()

    def _put(self) -> None:
        consumed, produced = self.words[_IN_CONSUMED], self.words[_IN_PRODUCED]
        room = _IN_SIZE - (produced - consumed & _WORD)
        part = self.typed[: max(0, room)]
        if not part:
            return
        del self.typed[: len(part)]
        for n, byte in enumerate(part):
            self.bytes[_IN + (produced + n) % _IN_SIZE] = byte
        self.words[_IN_PRODUCED] = produced + len(part) & _WORD
        self.notify()
