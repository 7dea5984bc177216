"""Migration: a running guest moves to another process, or host, over a connection, and stands still only for the last of it.

Iterative pre-copy: all memory is sent while the guest runs, then what it has changed meanwhile, in rounds, until little is left; then the guest
stops, and the rest goes over with the CPU and the devices, as a snapshot. The source lets go only when the target has said that it has everything;
whatever fails before that leaves the guest where it is. Knows sections and snapshots. Must not know who runs either VM. Nothing is encrypted,
and nobody is asked who they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmm.errors import InputError
from vmm.snapshot import Snapshot, Watch, take
from vmm.snapshot.file import CHUNK, checked, frames_of, made, packed, pages
from vmm.snapshot.sections import HEADER, Damaged, pack, stored, unpack

if TYPE_CHECKING:
    from vmm.vm import Vm

FORMAT: Final = 2
_PATIENCE: Final = 20.0  # seconds without a word of the other side
_CONNECTING: Final = 3.0
_FEW: Final = 256  # frames that are left to the time when the guest stands still
_MOST_ROUNDS: Final = 12
_LONGEST_ANSWER: Final = 4096


@dataclass(frozen=True, slots=True)
class Round:
    """One pass over memory while the guest ran: frames sent, and seconds it took."""

    frames: int
    seconds: float


class Sender:
    """The source's side, for a VM that runs: `step` in the turns of its run loop until it says True, then `finish`.

    Both raise InputError for whatever goes wrong: the VM goes on then.
    """

    def __init__(self, vm: Vm, host: str, port: int) -> None:
        """Connects, and asks whether the target takes such a guest. Raises InputError."""
        self.vm, self.where = vm, f"{host}:{port}"
        self.rounds: list[Round] = []
        try:
            self.connection = socket.create_connection((host, port), _CONNECTING)
        except OSError as error:
            raise InputError(f"tcp:{self.where}: {_reason(error)}") from None
        hello = {"format": FORMAT, "memory_size": vm.memory_size, "disks": [os.path.abspath(disk.path) for disk in vm.disks]}
        self.connection.settimeout(_PATIENCE)
        try:
            self._send(pack(b"HELO", json.dumps(hello).encode()))
            self._expect("ok")
        except InputError:
            self.close()
            raise
        self.connection.setblocking(False)
        self._watch = Watch(vm.memory, {})
        self._left: list[int] = []
        self._out = memoryview(b"")
        self._began = 0.0
        self._begin_round()

    def step(self, seconds: float) -> bool:
        """Sends for about so long, as far as the connection takes it; True when it is time for the guest to stand still."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._out:
                try:
                    self._out = self._out[self.connection.send(self._out) :]
                except BlockingIOError:
                    return False
                except OSError as error:
                    raise InputError(f"tcp:{self.where}: {_reason(error)}") from None
            elif self._left:
                chosen, self._left = self._left[:CHUNK], self._left[CHUNK:]
                self._out = memoryview(pack(b"PAGE", pages(self._watch.look_at(chosen), chosen)))
            elif self._end_round():
                return True
        return False

    def finish(self) -> float:
        """The guest stands still; all that is left goes over. Returns for how many seconds it stood, when it runs at the target."""
        began = time.monotonic()
        self.vm.settle()
        snapshot = take(self.vm, self._watch.changed())
        self.connection.settimeout(_PATIENCE)
        for section in packed(snapshot, "", "/"):
            self._send(section)
        self._expect("ready")
        self._send(pack(b"GO  ", b""))
        self._expect("done")
        self.close()
        return time.monotonic() - began

    def close(self) -> None:
        """Hangs up."""
        self.connection.close()

    def _begin_round(self) -> None:
        self._began = time.monotonic()
        self._left = self._watch.changed_numbers()
        self._sent = len(self._left)

    def _end_round(self) -> bool:
        """Whether it was the last: little has changed meanwhile, or as much as in the round before."""
        self.rounds.append(Round(self._sent, time.monotonic() - self._began))
        before = self._sent
        self._begin_round()
        return self._sent <= _FEW or len(self.rounds) >= _MOST_ROUNDS or len(self.rounds) > 1 and self._sent > before * 0.8

    def _send(self, data: bytes) -> None:
        try:
            self.connection.sendall(data)
        except OSError as error:
            raise InputError(f"tcp:{self.where}: {_reason(error)}") from None

    def _expect(self, word: str) -> None:
        """The target's next word must be this."""
        said = b""
        try:
            while not said.endswith(b"\n") and len(said) < _LONGEST_ANSWER:
                part = self.connection.recv(_LONGEST_ANSWER)
                if not part:
                    raise InputError(f"tcp:{self.where}: the target has hung up")
                said += part
        except OSError as error:
            raise InputError(f"tcp:{self.where}: {_reason(error)}") from None
        kind, _, text = said.decode(errors="replace").strip().partition(" ")
        if kind != word:
            raise InputError(f"tcp:{self.where}: {text if kind == 'error' and text else 'not a VM that waits for a guest'}")


def receive(connection: socket.socket, prepare: Callable[[Snapshot], None]) -> None:
    """The target's side: takes a guest in, has `prepare` make a VM of it, and returns when the source has let go of it.

    Raises InputError for anything that goes wrong: then the guest is still at the source, and what `prepare` has made must not run.
    """
    connection.settimeout(_PATIENCE)
    try:
        snapshot = _taken_in(connection)
        prepare(snapshot)
        connection.sendall(b"ready\n")
        if next(_sections(connection))[0] != b"GO  ":
            raise InputError("migration: the source does not let go")
        connection.sendall(b"done\n")
    except (OSError, Damaged, StopIteration) as error:
        raise InputError(f"migration: {_reason(error)}") from None
    except InputError as error:
        with contextlib.suppress(OSError):
            connection.sendall(f"error {error}\n".encode())
        raise


def _taken_in(connection: socket.socket) -> Snapshot:
    sections = _sections(connection)
    name, data = next(sections)
    memory_size = _greeted(name, data)
    connection.sendall(b"ok\n")
    frames: dict[int, bytes] = {}
    last: list[tuple[bytes, bytes]] = []
    for name, data in sections:
        if name == b"END ":
            break
        if last or name != b"PAGE":
            last.append((name, data))
        else:
            frames.update(frames_of(data, memory_size >> 12))
    meta, others = checked("migration", last)
    snapshot = made("/migration", meta, others, None)
    frames.update(snapshot.frames)
    snapshot.frames.clear()
    snapshot.frames.update(frames)
    return snapshot


def _greeted(name: bytes, data: bytes) -> int:
    """What the source says of its guest first: returns bytes of memory. Raises InputError."""
    try:
        hello = json.loads(data) if name == b"HELO" else None
    except ValueError:
        hello = None
    match hello:
        case {"format": int(form)} if form != FORMAT:
            raise InputError(f"migration: of format {form}; this version knows {FORMAT}")
        case {"memory_size": int(size), "disks": list(disks)} if 0 < size <= 3072 << 20:
            for path in disks:
                if not os.access(str(path), os.R_OK):
                    raise InputError(f"migration: {path}: the disk cannot be read here")
            return size
        case _:
            raise InputError("migration: not a guest")


def _sections(connection: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    while True:
        head = _exactly(connection, HEADER.size)
        yield unpack(head, _exactly(connection, stored(head)))


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 1 << 20))
        if not part:
            raise InputError("migration: the source has hung up")
        data += part
    return bytes(data)


def _reason(error: Exception) -> str:
    return "no answer" if isinstance(error, TimeoutError) else (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "tcp:HOST:PORT". Raises InputError."""
    scheme, _, rest = text.partition(":")
    host, colon, port = rest.rpartition(":")
    if scheme != "tcp" or not colon or not host or not port.isdigit() or int(port) > 0xFFFF:
        raise InputError(f"{text}: must be tcp:HOST:PORT")
    return host.strip("[]"), int(port)
