"""Event channels: the one way by which anything outside the guest's instruction stream reaches it.

A port is free, waits for a remote end, or is bound to a virtual interrupt, to the guest itself, or to a device of the VMM's. Knows no device: who
is at the other end is a call-back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from vmm.mmu.frames import Errno, Refused
from vmm.xen.shared_info import CHANNELS, SharedInfo

TIMER: Final = 0
VIRTUAL_INTERRUPTS: Final = 24
MOST: Final = 256  # channels that a guest may have open


class State(Enum):
    """What a port is; the values are those of EVTCHNOP_status."""

    CLOSED = 0
    UNBOUND = 1
    INTERDOMAIN = 2
    VIRQ = 4
    IPI = 5


@dataclass(slots=True)
class Channel:
    """One open port. remote: the other end's domain and port, or the virtual interrupt's number. notify: called for an event that the guest sends."""

    state: State
    remote: tuple[int, int] = (0, 0)
    notify: Callable[[], None] | None = None
    peer: int = 0  # the guest's own port at the other end, where both ends are its own


class Channels:
    """The channels of one domain. wake(): an upcall is due."""

    def __init__(self, shared: SharedInfo, wake: Callable[[], None]) -> None:
        self.shared, self.wake = shared, wake
        self.open: dict[int, Channel] = {}
        self.virtual: dict[int, int] = {}  # virtual interrupt -> port
        self.sent = 0
        self.raised = 0

    def allocate(self, channel: Channel) -> int:
        """Opens the lowest free port. Raises Refused."""
        if len(self.open) >= MOST:
            raise Refused(Errno.NOSPC, "too many event channels")
        port = next(port for port in range(1, CHANNELS) if port not in self.open)
        self.open[port] = channel
        self.shared.close_channel(port)
        return port

    def channel(self, port: int) -> Channel:
        """An open channel. Raises Refused."""
        found = self.open.get(port)
        if found is None:
            raise Refused(Errno.INVAL, "an event channel that is not open")
        return found

    def bind_virtual(self, number: int) -> int:
        """Opens a port for a virtual interrupt. Raises Refused."""
        if number >= VIRTUAL_INTERRUPTS:
            raise Refused(Errno.INVAL, "a virtual interrupt that does not exist")
        if number in self.virtual:
            raise Refused(Errno.EXIST, "a virtual interrupt that is bound already")
        port = self.virtual[number] = self.allocate(Channel(State.VIRQ, (0, number)))
        return port

    def close(self, port: int) -> None:
        """Closes a port. Raises Refused."""
        channel = self.channel(port)
        if channel.state is State.VIRQ:
            del self.virtual[channel.remote[1]]
        if channel.peer in self.open:
            other = self.open[channel.peer]
            other.state, other.peer = State.UNBOUND, 0
        del self.open[port]
        self.shared.close_channel(port)

    def send(self, port: int) -> None:
        """The guest signals the other end. Raises Refused."""
        channel = self.channel(port)
        self.sent += 1
        if channel.state is State.IPI:
            self.raise_port(port)
        elif channel.peer:
            self.raise_port(channel.peer)
        elif channel.notify is not None:
            channel.notify()
        elif channel.state is not State.UNBOUND and channel.state is not State.INTERDOMAIN:
            raise Refused(Errno.INVAL, "an event channel that cannot be signalled")

    def connect(self, port: int, signalled: Callable[[], None]) -> Callable[[], None] | None:
        """A device takes the other end of an unbound port of the guest's: what signals the guest, None if that cannot be."""
        channel = self.open.get(port)
        if channel is None or channel.state is not State.UNBOUND or channel.remote[0] != 0:
            return None
        channel.state, channel.remote, channel.notify = State.INTERDOMAIN, (0, port), signalled
        return self.raiser(port)

    def raiser(self, port: int) -> Callable[[], None]:
        """What signals the guest by a port."""
        return lambda: self.raise_port(port)

    def raise_port(self, port: int) -> None:
        """The guest gets an event, if the port is open."""
        if port in self.open:
            self.raised += 1
            if self.shared.raise_channel(port):
                self.wake()

    def raise_virtual(self, number: int) -> None:
        """A virtual interrupt, if it is bound."""
        port = self.virtual.get(number)
        if port is not None:
            self.raise_port(port)

    def unmask(self, port: int) -> None:
        """EVTCHNOP_unmask. Raises Refused."""
        self.channel(port)
        if self.shared.unmask_channel(port):
            self.wake()
