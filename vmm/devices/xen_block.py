"""The back half of a Xen block device: a disk served over a ring of requests that name granted frames.

Layouts: Xen's public headers, io/blkif.h and io/ring.h, as 32-bit guests have them. Guest and device agree by the store: each has a state, and moves
on when it sees the other's. Everything in the ring is the guest's, so everything is checked.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from vmm.devices.disk import SECTOR, DiskError, Storage
from vmm.devices.xen_store import XenStore

Access = Callable[[int, bool], memoryview | None]
"""(grant reference, to write) -> the frame's bytes, None for a grant that does not permit it."""
Bind = Callable[[int, Callable[[], None]], Callable[[], None] | None]
"""(the guest's event channel, what its signals call) -> what signals the guest, None for a channel that cannot be had."""

_REQUEST_PRODUCED, _REQUEST_EVENT, _ANSWER_PRODUCED, _ANSWER_EVENT = range(4)  # 32-bit words of the ring's page
_ENTRIES_AT, _ENTRY_SIZE, _ENTRIES = 64, 108, 32
_REQUEST: Final = struct.Struct("<BBHQQ")  # operation, segments, device, identity, first sector
_SEGMENT: Final = struct.Struct("<IBBH")  # grant, first and last sector of the frame
_ANSWER: Final = struct.Struct("<QBxh")
_SEGMENTS_AT, _MOST_SEGMENTS = 20, 11
_READ, _WRITE, _BARRIER, _FLUSH = range(4)
_OK, _ERROR, _UNSUPPORTED = 0, -1, -2
INITIALISING, INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED = range(1, 7)
_WORD: Final = 0xFFFFFFFF
_FIRST_DEVICE, _DEVICE_STEP = 51712, 16  # xvda, xvdb, ...


class XenBlock:
    """Disk `number` of the guest whose store it is; `access` and `bind` reach its memory and event channels."""

    def __init__(self, disk: Storage, number: int, store: XenStore, access: Access, bind: Bind) -> None:
        self.disk, self.store, self.access, self.bind = disk, store, access, bind
        device = _FIRST_DEVICE + _DEVICE_STEP * number
        self.front, self.back = f"{store.home}/device/vbd/{device}", f"/local/domain/0/backend/vbd/1/{device}"
        self.requests = 0
        self.ring: int | None = None  # the grant of the ring's page, while connected
        self.port = 0  # the guest's event channel
        self.consumed = 0
        self._notify: Callable[[], None] = lambda: None
        for path, value in (
            (f"{self.front}/backend", self.back),
            (f"{self.front}/backend-id", "0"),
            (f"{self.front}/virtual-device", str(device)),
            (f"{self.front}/device-type", "disk"),
            (f"{self.front}/state", str(INITIALISING)),
            (f"{self.back}/frontend", self.front),
            (f"{self.back}/frontend-id", "1"),
            (f"{self.back}/online", "1"),
            (f"{self.back}/dev", f"xvd{chr(ord('a') + number)}"),
            (f"{self.back}/type", "phy"),
            (f"{self.back}/params", f"disk{number}"),
            (f"{self.back}/mode", "r" if disk.read_only else "w"),
            (f"{self.back}/feature-barrier", "1"),
            (f"{self.back}/feature-flush-cache", "1"),
            (f"{self.back}/state", str(INIT_WAIT)),
        ):
            store.set(path, value)

    def changed(self, path: str) -> None:
        """The guest wrote a value in the store."""
        if path != f"{self.front}/state":
            return
        state = self.store.get(path)
        if state == str(INITIALISED) or state == str(CONNECTED) and not self._connected():
            self._connect()
        elif state in (str(CLOSING), str(CLOSED)):
            self.ring = None
            self.store.set(f"{self.back}/state", state)

    def _connected(self) -> bool:
        return self.store.get(f"{self.back}/state") == str(CONNECTED)

    def _connect(self) -> None:
        reference, port = (self._number(name) for name in ("ring-ref", "event-channel"))
        if reference is None or port is None:
            return
        notify = self.bind(port, self.signalled)
        if notify is None or self.access(reference, True) is None:
            self.store.set(f"{self.back}/state", str(CLOSING))
            return
        self.connected(reference, port, notify)
        for name, value in (("sectors", self.disk.sectors), ("sector-size", SECTOR), ("info", 0), ("state", CONNECTED)):
            self.store.set(f"{self.back}/{name}", str(value))

    def connected(self, ring: int, port: int, notify: Callable[[], None], consumed: int = 0) -> None:
        """Requests come by a ring that is granted, of which so many have been taken already."""
        self.ring, self.port, self.consumed, self._notify = ring, port, consumed, notify

    def _number(self, name: str) -> int | None:
        value = self.store.get(f"{self.front}/{name}")
        return int(value) if value is not None and value.isascii() and value.isdigit() and len(value) < 10 else None

    def signalled(self) -> None:
        """Requests are in the ring."""
        page = None if self.ring is None else self.access(self.ring, True)
        if page is None:
            return
        words = page.cast("I")
        before = words[_ANSWER_PRODUCED]
        while (waiting := words[_REQUEST_PRODUCED] - self.consumed & _WORD) and waiting <= _ENTRIES:
            at = _ENTRIES_AT + self.consumed % _ENTRIES * _ENTRY_SIZE
            entry = bytes(page[at : at + _ENTRY_SIZE])
            self.consumed = self.consumed + 1 & _WORD
            operation, _, _, identity, _ = _REQUEST.unpack_from(entry)
            answer = _ENTRIES_AT + words[_ANSWER_PRODUCED] % _ENTRIES * _ENTRY_SIZE
            _ANSWER.pack_into(page, answer, identity, operation, self._serve(entry))
            words[_ANSWER_PRODUCED] = words[_ANSWER_PRODUCED] + 1 & _WORD
        words[_REQUEST_EVENT] = self.consumed + 1 & _WORD
        after = words[_ANSWER_PRODUCED]
        if after - words[_ANSWER_EVENT] & _WORD < after - before & _WORD:
            self._notify()

    def _serve(self, entry: bytes) -> int:
        """Does one request; its status."""
        self.requests += 1
        operation, count, _, _, sector = _REQUEST.unpack_from(entry)
        if operation > _FLUSH:
            return _UNSUPPORTED
        if count > _MOST_SEGMENTS:
            return _ERROR
        try:
            if operation in (_FLUSH, _BARRIER):
                self.disk.flush()
            for n in range(count):
                reference, first, last, _ = _SEGMENT.unpack_from(entry, _SEGMENTS_AT + n * _SEGMENT.size)
                sectors = last - first + 1
                frame = self.access(reference, operation == _READ)
                if frame is None or sectors < 1 or last > 7:
                    return _ERROR
                part = frame[first * SECTOR : (last + 1) * SECTOR]
                if operation == _READ:
                    part[:] = self.disk.read(sector, sectors)
                elif operation in (_WRITE, _BARRIER):
                    self.disk.write(sector, bytes(part))
                sector += sectors
        except DiskError:
            return _ERROR
        return _OK
