"""A virtual network: a switch, and the ports by which VMs are on it.

Knows Ethernet addresses and whose clock a VM goes by. A packet arrives as an alarm of the receiver's clock, so in the receiver's own turn, and
never while the sender runs. Knows no device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from vmm.clock import Clock

SMALLEST, LARGEST = 14, 1514
"""Bytes of a packet: its two addresses and type at least, without its checksum at most."""
_ROOM = 128  # packets that wait for a VM; more are lost, as on any network
_KNOWN = 1024  # addresses that the switch remembers


class Switch:
    """A learning switch. delivered, lost: packets, counted for each port that they went to."""

    def __init__(self) -> None:
        self.ports: list[Port] = []
        self.delivered = self.lost = 0
        self._at: dict[bytes, Port] = {}  # where an address was seen last

    def port(self) -> Port:
        """One more place on the network, with an address of its own."""
        self.ports.append(Port(self, b"\x52\x54\x00\x12\x34" + bytes((0x56 + len(self.ports) & 0xFF,))))
        return self.ports[-1]

    def carry(self, sender: Port, packet: bytes) -> None:
        """A packet from a port to where its destination was seen, or to everybody else."""
        if not SMALLEST <= len(packet) <= LARGEST:
            return
        if not packet[6] & 1:
            if len(self._at) >= _KNOWN:
                self._at.clear()  # a guest that makes up addresses
            self._at[packet[6:12]] = sender
        known = None if packet[0] & 1 else self._at.get(packet[:6])
        for port in self.ports if known is None else [known]:
            if port is not sender:
                port.arrive(packet)


class Port:
    """Where one VM is plugged in. address: of its adapter. A VM that takes the place of another, after a restart, is plugged in anew."""

    def __init__(self, switch: Switch, address: bytes) -> None:
        self.switch, self.address = switch, address
        self._clock: Clock | None = None
        self._receive: Callable[[bytes], None] = lambda packet: None
        self._waiting: deque[bytes] = deque()

    def plug(self, clock: Clock, receive: Callable[[bytes], None]) -> None:
        """From now on packets are given to `receive`, by the VM that has this clock. What was on the way to another one is lost."""
        self._clock, self._receive = clock, receive
        self.switch.lost += len(self._waiting)
        self._waiting.clear()

    def send(self, packet: bytes) -> None:
        """A packet of this VM's."""
        self.switch.carry(self, packet)

    def arrive(self, packet: bytes) -> None:
        """A packet for this VM: it waits for the VM's next turn."""
        if self._clock is None or len(self._waiting) >= _ROOM:
            self.switch.lost += 1
            return
        if not self._waiting:
            clock = self._clock
            clock.at(clock.now(), lambda: self._deliver(clock))
        self._waiting.append(packet)
        self.switch.delivered += 1

    def _deliver(self, clock: Clock) -> None:
        if clock is not self._clock:
            return  # another VM has been plugged in meanwhile
        while self._waiting:
            self._receive(self._waiting.popleft())
