"""The virtual devices of a Xen guest: console, store and block device, by their rings, which a guest may fill with anything."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.devices.disk import Disk
from vmm.devices.xen_block import XenBlock
from vmm.devices.xen_console import XenConsole
from vmm.devices.xen_store import DIRECTORY, ERROR, READ, RM, TRANSACTION_END, TRANSACTION_START, WATCH, WATCH_EVENT, WRITE, XenStore

HOME = "/local/domain/1"


def page() -> memoryview:
    return memoryview(bytearray(4096))


class Counter:
    """Counts calls."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def test_console() -> None:
    """Output over the ring's end, input as far as there is room, the rest when the guest has made some."""
    ring, printed, notify = page(), bytearray(), Counter()
    console = XenConsole(ring, printed.extend, notify)
    words = ring.cast("I")
    words[770] = words[771] = 0xFFFFFFFF - 2
    for n, byte in enumerate(b"abcdef"):
        ring[1024 + (0xFFFFFFFD + n) % 2048] = byte
    words[771] = 3
    console.signalled()
    assert (bytes(printed), words[770], notify.count) == (b"abcdef", 3, 1)
    console.receive(b"x" * 1000 + b"y" * 100)
    assert words[769] == 1024
    words[768] = 1000
    console.signalled()
    assert words[769] == 1100
    assert bytes(ring[:76]) == b"y" * 76


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=50))
def test_console_with_any_indices(indices: bytes, keys: bytes) -> None:
    """Nothing that the guest writes there is more than its own trouble."""
    ring = page()
    ring[3072:3088] = indices
    console = XenConsole(ring, lambda data: None, Counter())
    console.signalled()
    console.receive(keys)


class Client:
    """A guest's side of the store."""

    def __init__(self) -> None:
        self.ring, self.notify = page(), Counter()
        self.store = XenStore(self.ring, HOME, self.notify)
        self.words = self.ring.cast("I")

    def send(self, kind: int, *parts: str, transaction: int = 0) -> None:
        payload = "\0".join(parts).encode()
        message = struct.pack("<4I", kind, 7, transaction, len(payload)) + payload
        at = self.words[513]
        for n, byte in enumerate(message):
            self.ring[(at + n) % 1024] = byte
        self.words[513] = at + len(message)
        self.store.signalled()

    def receive(self) -> list[tuple[int, bytes]]:
        """All messages that wait."""
        count = self.words[515] - self.words[514]
        data = bytes(self.ring[1024 + (self.words[514] + n) % 1024] for n in range(count))
        self.words[514] = self.words[515]
        found = []
        while data:
            kind, _, _, size = struct.unpack_from("<4I", data)
            found.append((kind, data[16 : 16 + size]))
            data = data[16 + size :]
        return found

    def ask(self, kind: int, *parts: str, transaction: int = 0) -> tuple[int, bytes]:
        self.send(kind, *parts, transaction=transaction)
        (answer,) = self.receive()
        return answer


def test_store() -> None:
    """Values by relative and absolute path; a guest writes only below its own place; what is not there is ENOENT."""
    client = Client()
    client.store.set("/local/domain/0/name", "host")
    assert client.ask(WRITE, "a/b", "one") == (WRITE, b"OK\0")
    assert client.ask(READ, f"{HOME}/a/b") == (READ, b"one")
    assert client.ask(READ, "a") == (READ, b"")
    assert client.ask(DIRECTORY, "a") == (DIRECTORY, b"b\0")
    assert client.ask(READ, "/local/domain/0/name") == (READ, b"host")
    assert client.ask(WRITE, "/local/domain/0/name", "x") == (ERROR, b"EACCES\0")
    assert client.ask(READ, "gone") == (ERROR, b"ENOENT\0")
    assert client.ask(99, "a") == (ERROR, b"ENOSYS\0")
    assert client.ask(RM, "a") == (RM, b"OK\0")
    assert client.ask(READ, "a/b") == (ERROR, b"ENOENT\0")


def test_a_client_that_reads_nothing() -> None:
    """Its requests stay in the ring when too much waits for it, and are served when it has read."""
    client = Client()
    client.ask(WRITE, "v", "x" * 900)
    sent = 0
    while client.words[512] == client.words[513]:
        client.send(READ, "v")
        sent += 1
        assert sent < 1000
    answers = 0
    for _ in range(1000):
        part = client.words[515] - client.words[514]
        answers += part
        client.words[514] = client.words[515]
        client.store.signalled()
    assert answers == sent * 916
    assert client.words[512] == client.words[513]


def test_watches() -> None:
    """A watch fires at once and at each change below it, with the path as it was given and its token."""
    client = Client()
    client.send(WATCH, "w", "token")
    assert sorted(client.receive()) == [(WATCH, b"OK\0"), (WATCH_EVENT, b"w\0token\0")]
    client.store.set(f"{HOME}/w/x", "1")
    assert client.receive() == [(WATCH_EVENT, b"w/x\0token\0")]
    client.store.set(f"{HOME}/other", "1")
    assert client.receive() == []


def test_transactions() -> None:
    """What an ended transaction wrote stays and is told to devices at its end; what an aborted one wrote is gone."""
    client = Client()
    told: list[str] = []
    client.store.on_write = told.append
    number = int(client.ask(TRANSACTION_START, "")[1][:-1])
    client.ask(WRITE, "t", "1", transaction=number)
    assert not told
    assert client.ask(TRANSACTION_END, "T", transaction=number) == (TRANSACTION_END, b"OK\0")
    assert told == [f"{HOME}/t"]
    number = int(client.ask(TRANSACTION_START, "")[1][:-1])
    client.ask(WRITE, "t", "2", transaction=number)
    client.ask(TRANSACTION_END, "F", transaction=number)
    assert client.ask(READ, "t") == (READ, b"1")
    assert client.ask(READ, "t", transaction=number) == (ERROR, b"ENOENT\0")


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 2), st.binary(max_size=100)), max_size=8), st.binary(min_size=16, max_size=16))
def test_any_messages(messages: list[tuple[int, int, bytes]], indices: bytes) -> None:
    """Random requests, and then random indices, end in answers or silence."""
    client = Client()
    for kind, transaction, payload in messages:
        message = struct.pack("<4I", kind, 1, transaction, len(payload)) + payload
        at = client.words[513]
        for n, byte in enumerate(message):
            client.ring[(at + n) % 1024] = byte
        client.words[513] = at + len(message)
        client.store.signalled()
        client.receive()
    client.ring[2048:2064] = indices
    client.store.signalled()


class Front:
    """A guest's side of the block device: its ring is grant 1, its buffers the grants from 10 on, of which 13 may only be read."""

    def __init__(self, disk: Disk) -> None:
        self.client = Client()
        self.frames = {reference: page() for reference in (1, *range(10, 14))}
        self.signal: Callable[[], None] = lambda: None
        self.notify = Counter()
        self.block = XenBlock(disk, 0, self.client.store, self._access, self._bind)
        self.client.store.on_write = self.block.changed
        for name, value in (("ring-ref", "1"), ("event-channel", "5"), ("state", "3")):
            assert self.client.ask(WRITE, f"device/vbd/51712/{name}", value)[0] == WRITE

    def _access(self, reference: int, write: bool) -> memoryview | None:
        return None if write and reference == 13 else self.frames.get(reference)

    def _bind(self, port: int, signalled: Callable[[], None]) -> Callable[[], None] | None:
        self.signal = signalled
        return self.notify if port == 5 else None

    def request(self, operation: int, sector: int, *segments: tuple[int, int, int]) -> int:
        """One request, answered at once: its status."""
        ring = self.frames[1]
        words = ring.cast("I")
        at = 64 + words[0] % 32 * 108
        struct.pack_into("<BBHQQ", ring, at, operation, len(segments), 0, 77, sector)
        for n, (reference, first, last) in enumerate(segments[:11]):
            struct.pack_into("<IBBH", ring, at + 20 + 8 * n, reference, first, last, 0)
        words[3] = words[2] + 1
        words[0] += 1
        self.signal()
        identity, status = struct.unpack_from("<QBxh", ring, at)[::2]
        assert (identity, words[2]) == (77, words[0])
        return int(status)


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    path = tmp_path / "disk"
    path.write_bytes(bytes(64 * 512))
    disk = Disk(str(path))
    yield Front(disk)
    disk.close()


def test_block(front: Front) -> None:
    """Connected by the store; sectors written from parts of frames are read back; one event for each answer that was asked for."""
    store = front.client.store
    assert store.get("/local/domain/0/backend/vbd/1/51712/state") == "4"
    assert store.get("/local/domain/0/backend/vbd/1/51712/sectors") == "64"
    front.frames[10][:] = bytes(range(256)) * 16
    assert front.request(1, 8, (10, 2, 7), (13, 0, 0)) == 0
    assert front.request(0, 8, (11, 0, 5), (12, 7, 7)) == 0
    assert bytes(front.frames[11][: 6 * 512]) == bytes(front.frames[10][2 * 512 :])
    assert bytes(front.frames[12][7 * 512 :]) == bytes(512)
    assert front.request(3, 0) == 0
    assert front.notify.count == 3


@pytest.mark.parametrize(("operation", "sector", "segments", "status"), [
    (0, 63, [(10, 0, 1)], -1),
    (0, 1 << 63, [(10, 0, 0)], -1),
    (0, 0, [(9, 0, 0)], -1),
    (0, 0, [(13, 0, 0)], -1),
    (1, 0, [(10, 5, 4)], -1),
    (1, 0, [(10, 0, 8)], -1),
    (1, 0, [(10, 0, 0)] * 12, -1),
    (9, 0, [], -2),
])  # fmt: skip
def test_bad_block_requests(front: Front, operation: int, sector: int, segments: list[tuple[int, int, int]], status: int) -> None:
    """Each gets its error, and the device goes on."""
    assert front.request(operation, sector, *segments) == status
    assert front.request(0, 0, (10, 0, 7)) == 0


@given(st.binary(min_size=200, max_size=400))
def test_any_ring(data: bytes) -> None:
    """Random bytes in the ring's page are never more than errors."""
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(64 * 512))
        file.flush()
        disk = Disk(file.name)
        front = Front(disk)
        front.frames[1][: len(data)] = data
        front.signal()
        disk.close()
