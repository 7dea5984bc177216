"""The Xen store: a small tree of named values by which a guest and its devices find each other, over two rings in a page.

Protocol: Xen's public headers, io/xs_wire.h. As far as a single guest needs it: its own part of the tree is its own, watches and transactions
work, and what it may not see does not exist.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_REQUESTS, _ANSWERS, _SIZE = 0, 1024, 1024  # bytes of the page: each ring's place and size
_REQUEST_CONSUMED, _REQUEST_PRODUCED, _ANSWER_CONSUMED, _ANSWER_PRODUCED = 512, 513, 514, 515  # 32-bit words of it
_HEADER: Final = struct.Struct("<4I")  # type, request, transaction, bytes that follow
_WORD: Final = 0xFFFFFFFF
_LONGEST: Final = 4096
_TEXT: Final = "latin-1"  # any bytes are names and values
_MOST_WAITING: Final = 65536  # bytes of answers: a guest that does not take them is not served until it does
_MOST_NODES, _MOST_WATCHES, _MOST_TRANSACTIONS = 1000, 128, 10
(DIRECTORY, READ, GET_PERMS, WATCH, UNWATCH, TRANSACTION_START, TRANSACTION_END) = range(1, 8)
(GET_DOMAIN_PATH, WRITE, MKDIR, RM, SET_PERMS, WATCH_EVENT, ERROR) = range(10, 17)


class StoreError(Exception):
    """An answer that is an error: its name as the protocol spells it."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What the guest wants to be told of. shown: the path as it was given."""

    path: str
    token: str
    shown: str


class XenStore:
    """The store of one guest, whose own part of the tree is `home`. notify signals the guest.

    on_write is called with the path of every value that the guest changes; when it does so in a transaction, at the transaction's end.
    """

    def __init__(self, page: memoryview, home: str, notify: Callable[[], None]) -> None:
        self.bytes, self.words, self.home, self.notify = page, page.cast("I"), home, notify
        self.nodes: dict[str, bytes] = {"": b""}
        self.on_write: Callable[[str], None] = lambda path: None
        self.watches: list[Watch] = []
        self.transactions: dict[int, dict[str, bytes]] = {}
        self.written: dict[int, list[str]] = {}  # by transaction
        self._current = 0
        self.last_transaction = 0
        self.received, self.answers = bytearray(), bytearray()
        self._work: dict[int, Callable[[list[str], bytes], bytes]] = {
            DIRECTORY: lambda words, _: b"".join(name.encode(_TEXT) + b"\0" for name in self.children(self._path(words))),
            READ: lambda words, _: self._node(self._path(words)),
            GET_PERMS: lambda words, _: self._node(self._path(words))[:0] + b"n1\0",
            WATCH: self._watch,
            UNWATCH: self._unwatch,
            GET_DOMAIN_PATH: lambda words, _: b"/local/domain/" + words[0].encode(_TEXT) + b"\0",
            WRITE: self._write,
            MKDIR: self._make,
            RM: self._remove,
            SET_PERMS: lambda words, _: self._node(self._path(words))[:0] + b"OK\0",
        }

    # -- the tree, for devices -----------------------------------------------------------------------------------------------------------

    def set(self, path: str, value: str) -> None:
        """Writes a value, with all that leads to it, and tells who watches."""
        self._put(path, value.encode(_TEXT))

    def get(self, path: str) -> str | None:
        """A value, None where there is none."""
        value = self.nodes.get(path)
        return None if value is None else value.decode(_TEXT)

    def children(self, path: str) -> list[str]:
        """Names below a node. Raises StoreError without one."""
        self._node(path)
        start = len(path) + 1
        return sorted({node[start:] for node in self.nodes if node.startswith(path + "/") and "/" not in node[start:]})

    def _put(self, path: str, value: bytes) -> None:
        at = path
        while at:
            at = at.rpartition("/")[0]
            self.nodes.setdefault(at, b"")
        self.nodes[path] = value
        self._fire(path)

    def _fire(self, path: str) -> None:
        for watch in self.watches:
            if path == watch.path or path.startswith(watch.path + "/") or watch.path.startswith(path + "/"):
                below = path if path.startswith(watch.path) else watch.path
                shown = below if watch.shown.startswith("/") else watch.shown + below[len(watch.path) :]
                self._send(WATCH_EVENT, 0, 0, f"{shown}\0{watch.token}\0".encode(_TEXT))

    # -- the rings -----------------------------------------------------------------------------------------------------------------------

    def signalled(self) -> None:
        """The guest has sent something, or made room for answers."""
        consumed, produced = self.words[_REQUEST_CONSUMED], self.words[_REQUEST_PRODUCED]
        count = produced - consumed & _WORD
        if 0 < count <= _SIZE and len(self.answers) < _MOST_WAITING:
            at = consumed % _SIZE
            ring = self.bytes[_REQUESTS : _REQUESTS + _SIZE]
            self.received += bytes(ring[at : at + count]) + bytes(ring[: max(0, at + count - _SIZE)])
            self.words[_REQUEST_CONSUMED] = produced
            self._requests()
            self.notify()
        self._flush()

    def _requests(self) -> None:
        while len(self.received) >= _HEADER.size:
            kind, request, transaction, size = _HEADER.unpack_from(self.received)
            if size > _LONGEST:
                self.received.clear()  # there is no way back to the start of a message
                return
            if len(self.received) < _HEADER.size + size:
                return
            payload = bytes(self.received[_HEADER.size : _HEADER.size + size])
            del self.received[: _HEADER.size + size]
            try:
                self._send(kind, request, transaction, self._answer(kind, transaction, payload))
            except StoreError as error:
                self._send(ERROR, request, transaction, str(error).encode(_TEXT) + b"\0")

    def _answer(self, kind: int, transaction: int, payload: bytes) -> bytes:
        words = [word.decode(_TEXT) for word in payload.split(b"\0")]
        if kind == TRANSACTION_START:
            return self._start()
        if kind == TRANSACTION_END:
            return self._end(transaction, words[0])
        if transaction and transaction not in self.transactions:
            raise StoreError("ENOENT")
        self._current = transaction
        work = self._work.get(kind)
        if work is None:
            raise StoreError("ENOSYS")
        return work(words, payload)

    def _send(self, kind: int, request: int, transaction: int, payload: bytes) -> None:
        if kind == WATCH_EVENT and len(self.answers) >= _MOST_WAITING:
            return  # a guest that reads nothing misses something
        self.answers += _HEADER.pack(kind, request, transaction, len(payload)) + payload
        self._flush()

    def _flush(self) -> None:
        consumed, produced = self.words[_ANSWER_CONSUMED], self.words[_ANSWER_PRODUCED]
        part = self.answers[: max(0, _SIZE - (produced - consumed & _WORD))]
        if not part:
            return
        del self.answers[: len(part)]
        for n, byte in enumerate(part):
            self.bytes[_ANSWERS + (produced + n) % _SIZE] = byte
        self.words[_ANSWER_PRODUCED] = produced + len(part) & _WORD
        self.notify()

    # -- requests --------------------------------------------------------------------------------------------------------------------------

    def _path(self, words: list[str]) -> str:
        path = words[0]
        if not path or len(path) > 1024:
            raise StoreError("EINVAL")
        return path.rstrip("/") if path.startswith("/") else f"{self.home}/{path}".rstrip("/")

    def _node(self, path: str) -> bytes:
        if path not in self.nodes:
            raise StoreError("ENOENT")
        return self.nodes[path]

    def _own(self, path: str) -> str:
        if not path.startswith(self.home + "/"):
            raise StoreError("EACCES")
        if len(self.nodes) >= _MOST_NODES and path not in self.nodes:
            raise StoreError("ENOSPC")
        return path

    def _write(self, words: list[str], payload: bytes) -> bytes:
        path = self._own(self._path(words))
        self._put(path, payload.partition(b"\0")[2])
        if self._current:
            self.written.setdefault(self._current, []).append(path)
        else:
            self.on_write(path)
        return b"OK\0"

    def _make(self, words: list[str], _: bytes) -> bytes:
        path = self._own(self._path(words))
        if path not in self.nodes:
            self._put(path, b"")
        return b"OK\0"

    def _remove(self, words: list[str], _: bytes) -> bytes:
        path = self._own(self._path(words))
        self._node(path)
        for node in [node for node in self.nodes if node == path or node.startswith(path + "/")]:
            del self.nodes[node]
        self._fire(path)
        return b"OK\0"

    def _watch(self, words: list[str], _: bytes) -> bytes:
        if len(words) < 2 or len(self.watches) >= _MOST_WATCHES:
            raise StoreError("EINVAL" if len(words) < 2 else "E2BIG")
        watch = Watch(words[0] if words[0].startswith("@") else self._path(words), words[1], words[0])
        if watch in self.watches:
            raise StoreError("EEXIST")
        self.watches.append(watch)
        self._later(watch)
        return b"OK\0"

    def _later(self, watch: Watch) -> None:
        """A new watch fires once by itself; the event may come before the answer."""
        self._send(WATCH_EVENT, 0, 0, f"{watch.shown}\0{watch.token}\0".encode(_TEXT))

    def _unwatch(self, words: list[str], _: bytes) -> bytes:
        if len(words) < 2:
            raise StoreError("EINVAL")
        watch = Watch(words[0] if words[0].startswith("@") else self._path(words), words[1], words[0])
        if watch not in self.watches:
            raise StoreError("ENOENT")
        self.watches.remove(watch)
        return b"OK\0"

    def _start(self) -> bytes:
        if len(self.transactions) >= _MOST_TRANSACTIONS:
            raise StoreError("ENOSPC")
        self.last_transaction += 1
        self.transactions[self.last_transaction] = dict(self.nodes)  # nobody else writes: it only has to be undone
        return f"{self.last_transaction}\0".encode(_TEXT)

    def _end(self, transaction: int, word: str) -> bytes:
        before, written = self.transactions.pop(transaction, None), self.written.pop(transaction, [])
        if before is None:
            raise StoreError("ENOENT")
        if word == "F":
            self.nodes = before
        elif word != "T":
            raise StoreError("EINVAL")
        else:
            for path in written:
                self.on_write(path)
        return b"OK\0"
