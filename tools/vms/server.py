"""What the process of a VM offers to others: its console on a socket and on a pty, and a socket for requests. The console of its guest.

Knows descriptors and who is connected. Runs in the turns of the VM's run loop, when the CPU stands still; one descriptor to wait for tells of all of
them. What a request means is its owner's business.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import socket
import termios
import tty
from collections.abc import Callable

from tools.vms.sockets import CONSOLE, CONTROL, Message, Peer, line, listen
from vmm.errors import InputError

_PART = 4096
_SCROLLBACK = 16 << 10  # bytes of output that whoever attaches sees first
_LARGEST_LOG = 4 << 20


class Server:
    """A `Console`. handle(peer, request): carries a request out, and answers by `answer`, then or later. pty: the terminal's name.

    room(): bytes that the guest has room for. work(): something to be done in each turn; `watch` a descriptor that is ready when there is.
    """

    def __init__(self, folder: str, log: str, handle: Callable[[Peer, Message], None]) -> None:
        self._handle = handle
        self.room: Callable[[], int] = lambda: _PART
        self.work: Callable[[], None] = lambda: None
        self._path = log
        self._log = open(log, "ab", buffering=0)  # open as long as the process is
        self._control, self._consoles = listen(folder, CONTROL), listen(folder, CONSOLE)
        self._master, slave = pty.openpty()
        self.pty, self._slave = os.ttyname(slave), slave  # held open: without a reader the master would only tell of hang-ups
        tty.setraw(slave, termios.TCSANOW)
        os.set_blocking(self._master, False)
        self._attached: dict[int, Peer] = {}
        self._asking: dict[int, Peer] = {}
        self._recent = bytearray()
        self._out = bytearray()
        self._epoll = select.epoll()
        for descriptor in (self._control.fileno(), self._consoles.fileno(), self._master):
            self._epoll.register(descriptor, select.EPOLLIN)

    # -- what the run loop asks for (vmm.console.Console) -----------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Output of the guest; out at the next turn at the latest."""
        self._out += data
        if len(self._out) >= _PART:
            self._flush()

    def poll(self) -> bytes | None:
        """What was typed, by whoever is attached. Requests are carried out here."""
        self._flush()
        typed = b""
        for descriptor, _ in self._epoll.poll(0):
            if descriptor == self._control.fileno():
                self._accept(self._control.accept()[0], self._asking)
            elif descriptor == self._consoles.fileno():
                self._accept(self._consoles.accept()[0], self._attached).send(bytes(self._recent))
            elif descriptor == self._master:
                typed += self._read_pty()
            elif descriptor in self._attached:
                typed += self._attached[descriptor].receive(max(0, min(_PART, self.room())) or 1)
            elif descriptor in self._asking:
                self._request(self._asking[descriptor])
        self.work()
        for peers in (self._attached, self._asking):
            for peer in [peer for peer in peers.values() if not peer.open]:
                self.hang_up(peer)
        return typed

    def fileno(self) -> int:
        """Readable when anybody wants something."""
        return self._epoll.fileno()

    # -- requests --------------------------------------------------------------------------------------------------------------------

    def answer(self, peer: Peer, message: Message) -> None:
        """A line of an answer; the last has "done" or "error"."""
        peer.send(line(message))

    def watch(self, descriptor: int, *, write: bool) -> None:
        """Has the wait for input end when a descriptor is ready, until it is closed."""
        self._epoll.register(descriptor, select.EPOLLOUT if write else select.EPOLLIN)

    def hang_up(self, peer: Peer) -> None:
        """Ends a connection."""
        number = peer.connection.fileno()
        if number >= 0:
            with contextlib.suppress(OSError):
                self._epoll.unregister(number)
            self._attached.pop(number, None)
            self._asking.pop(number, None)
        peer.close()

    def close(self) -> None:
        """Everything printed is out, and everybody is hung up on."""
        self._flush()
        for peer in [*self._attached.values(), *self._asking.values()]:
            self.hang_up(peer)
        for one in (self._control, self._consoles, self._log):
            one.close()

    def _accept(self, connection: socket.socket, peers: dict[int, Peer]) -> Peer:
        peer = Peer(connection)
        peers[connection.fileno()] = peer
        self._epoll.register(connection.fileno(), select.EPOLLIN)
        return peer

    def _request(self, peer: Peer) -> None:
        try:
            request = peer.request()
            if request is not None:
                self._handle(peer, request)
        except InputError as error:
            self.answer(peer, {"error": str(error)})

    # -- the console -------------------------------------------------------------------------------------------------------------------

    def _read_pty(self) -> bytes:
        try:
            return os.read(self._master, max(1, min(_PART, self.room())))
        except OSError:
            return b""

    def _flush(self) -> None:
        for peer in (*self._attached.values(), *self._asking.values()):
            peer.flush()
        if not self._out:
            return
        data = bytes(self._out)
        self._out.clear()
        self._recent += data
        del self._recent[:-_SCROLLBACK]
        for peer in self._attached.values():
            peer.send(data)
        with contextlib.suppress(OSError):  # nobody reads it: what does not fit is gone, as on any terminal that is switched off
            os.write(self._master, data)
        with contextlib.suppress(OSError):  # a full disk loses the log of the console, not the VM
            if self._log.tell() > _LARGEST_LOG:
                os.replace(self._path, self._path + ".1")
                self._log.close()
                self._log = open(self._path, "ab", buffering=0)
            self._log.write(data)
