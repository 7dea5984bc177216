"""The sockets in a VM's directory, and what is said over them: a line of JSON for a request, lines of JSON for its answer.

Knows addresses (a directory's path may be longer than a socket's may) and lines. Knows no VM.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

from vmm.errors import InputError

CONTROL, CONSOLE = "control", "console"
_PATIENCE = 60.0  # seconds for an answer's next line
_LONGEST_LINE = 1 << 16

Message = dict[str, object]


def listen(folder: str, name: str) -> socket.socket:
    """A listening socket of that name in a directory, in the place of one that is left over. Raises InputError."""
    file = os.open(folder, os.O_RDONLY)
    try:
        path = f"/proc/self/fd/{file}/{name}"
        if os.path.lexists(path):
            os.unlink(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(path)
        os.chmod(path, 0o600)
        listening.listen(8)
        listening.setblocking(False)
        return listening
    except OSError as error:
        raise InputError(f"{os.path.join(folder, name)}: {(error.strerror or str(error)).lower()}") from None
    finally:
        os.close(file)


def connect(folder: str, name: str, vm: str) -> socket.socket:
    """A connection to the process that runs a VM. Raises InputError when none does."""
    try:
        file = os.open(folder, os.O_RDONLY)
    except OSError:
        raise InputError(f"{vm}: no such VM (see vmm ls)") from None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(f"/proc/self/fd/{file}/{name}")
    except OSError:
        connection.close()
        raise InputError(f"{vm}: is not running") from None
    finally:
        os.close(file)
    return connection


def ask(folder: str, vm: str, request: Message) -> Iterator[Message]:
    """Sends a request; gives the lines of the answer up to the last, which has "done". Raises InputError for one that says "error"."""
    with connect(folder, CONTROL, vm) as connection:
        connection.settimeout(_PATIENCE)
        try:
            connection.sendall(line(request))
            with connection.makefile("rb") as answer:
                for said in answer:
                    message = parsed(said)
                    if "error" in message:
                        raise InputError(str(message["error"]))
                    yield message
                    if "done" in message:
                        return
        except TimeoutError:
            raise InputError(f"{vm}: does not answer") from None
        except OSError:
            pass
    raise InputError(f"{vm}: its process has ended")


def line(message: Message) -> bytes:
    """A message as it is sent."""
    return json.dumps(message).encode() + b"\n"


def parsed(said: bytes) -> Message:
    """A line as a message. Raises InputError."""
    try:
        message = json.loads(said)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise InputError("not a message")
    return message


class Peer:
    """One connection of those that a VM's process answers. Nothing here waits: what cannot be sent now is kept, up to a limit."""

    _MOST = 1 << 20  # bytes kept for one that does not read

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.open = True
        self._out = bytearray()
        self._in = bytearray()

    def send(self, data: bytes) -> None:
        """Sends now, or keeps; one that reads nothing for long is hung up on."""
        self._out += data
        if len(self._out) > self._MOST:
            self.open = False
        self.flush()

    def flush(self) -> None:
        """Sends what was kept, as far as it goes now."""
        try:
            while self._out and self.open:
                del self._out[: self.connection.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self.open = False

    def receive(self, most: int) -> bytes:
        """What has come, up to so many bytes; an end closes it."""
        try:
            data = self.connection.recv(most)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        self.open = self.open and bool(data)
        return data

    def request(self) -> Message | None:
        """The request, when its line is complete. Raises InputError for what is none."""
        self._in += self.receive(_LONGEST_LINE)
        said, newline, rest = self._in.partition(b"\n")
        if not newline:
            if len(self._in) > _LONGEST_LINE:
                raise InputError("a request without an end")
            return None
        self._in = bytearray(rest)
        return parsed(bytes(said))

    def close(self) -> None:
        """Sends what is left as far as it goes, and hangs up."""
        self.flush()
        self.open = False
        self.connection.close()
