"""The NE2000 by its ports, two of them on a switch, and the switch by itself."""

from __future__ import annotations

import random

from vmm.clock import Clock
from vmm.devices.ne2000 import DMA_DONE, MEMORY_START, OVERFLOW, RECEIVED, SENT, Ne2000
from vmm.network import Port, Switch
from vmm.snapshot.device_fields import FIELDS

START, STOP = 0x46, 0x80


class Station:
    """An adapter on a switch, set up as a driver does it. time: of its clock."""

    def __init__(self, switch: Switch) -> None:
        self.levels: list[bool] = []
        self.port = switch.port()
        self.adapter = Ne2000(self.port, self.levels.append)
        self.clock = Clock(lambda: 0)
        self.port.plug(self.clock, self.adapter.receive)
        for register, value in ((0, 0x21), (14, 0x48), (1, START), (2, STOP), (3, START), (0, 0x61)):
            self.write(register, value)
        for n, byte in enumerate(self.port.address):
            self.write(1 + n, byte)
        for register, value in ((7, START + 1), (0, 0x22), (7, 0xFF), (12, 0x04), (15, RECEIVED)):
            self.write(register, value)

    def write(self, register: int, value: int) -> None:
        self.adapter.access(register, 1, value)

    def read(self, register: int) -> int:
        return self.adapter.access(register, 1, None)

    def move(self, at: int, count: int, data: bytes | None = None) -> bytes:
        """By the data port, a byte at a time."""
        for register, value in ((8, at & 0xFF), (9, at >> 8), (10, count & 0xFF), (11, count >> 8), (0, 0x0A if data is None else 0x12)):
            self.write(register, value)
        if data is None:
            return bytes(self.adapter.access(16, 1, None) for _ in range(count))
        for byte in data:
            self.adapter.access(16, 1, byte)
        return b""

    def send(self, packet: bytes) -> None:
        self.move(MEMORY_START, len(packet), packet)
        for register, value in ((4, MEMORY_START >> 8), (5, len(packet) & 0xFF), (6, len(packet) >> 8), (0, 0x26)):
            self.write(register, value)


def packet(to: Port, sender: Port, size: int = 100) -> bytes:
    return to.address + sender.address + b"\x88\xb5" + bytes(n & 0xFF for n in range(size - 14))


def test_the_address_is_in_the_prom() -> None:
    """Each byte twice, and behind it what says NE2000."""
    station = Station(Switch())
    prom = station.move(0, 32)
    assert prom[:12:2] == prom[1:12:2] == station.port.address
    assert prom[28:] == b"WWWW"


def test_a_packet_goes_over() -> None:
    """It waits for the receiver's turn, interrupts it, and lies in its ring behind a header, across the ring's end too."""
    switch = Switch()
    one, other = Station(switch), Station(switch)
    first = START + 1
    for _ in range(60):
        sent = packet(other.port, one.port, 700)
        one.send(sent)
        assert other.levels[-1:] != [True]
        other.clock.run_due()
        assert other.levels[-1] is True
        header = other.move(first << 8, 4)
        assert int.from_bytes(header[2:], "little") == 704
        assert other.move((first << 8) + 4, 700) == sent
        first = header[1]
        other.write(3, first - 1 if first > START else STOP - 1)
        other.write(7, RECEIVED)
        assert other.levels[-1] is False
    assert one.read(7) & (SENT | DMA_DONE) == SENT | DMA_DONE
    assert (switch.delivered, switch.lost) == (60, 0)


def test_a_full_ring_loses_packets_and_nothing_else() -> None:
    """What has not been read stays as it is; the overflow is told."""
    switch = Switch()
    one, other = Station(switch), Station(switch)
    for size in range(200, 300):
        one.send(packet(other.port, one.port, size))
    other.clock.run_due()
    assert other.read(7) & OVERFLOW
    assert other.move((START + 1 << 8) + 4, 200) == packet(other.port, one.port, 200)


def test_who_hears_what() -> None:
    """Broadcasts go to all; a packet for a known station only there; nothing comes back to its sender, nor to a stopped adapter."""
    switch = Switch()
    stations = [Station(switch) for _ in range(3)]

    def heard() -> list[int]:
        for station in stations:
            station.clock.run_due()
        found = [n for n, station in enumerate(stations) if station.read(7) & RECEIVED]
        for station in stations:
            station.write(7, RECEIVED)
        return found

    stations[0].send(b"\xff" * 6 + packet(stations[1].port, stations[0].port)[6:])
    assert heard() == [1, 2]
    stations[1].send(packet(stations[0].port, stations[1].port))
    assert heard() == [0]
    assert switch.delivered == 3
    stations[2].write(0, 0x21)
    stations[0].send(b"\xff" * 6 + packet(stations[1].port, stations[0].port)[6:])
    assert heard() == [1]


def test_a_port_that_is_plugged_in_anew() -> None:
    """What was on the way to the VM that was there before is lost, and its clock rings for nobody."""
    switch = Switch()
    one, other = Station(switch), Station(switch)
    one.send(packet(other.port, one.port))
    received: list[bytes] = []
    clock = Clock(lambda: 0)
    other.port.plug(clock, received.append)
    other.clock.run_due()
    clock.run_due()
    assert (received, switch.lost) == ([], 1)
    one.send(packet(other.port, one.port))
    clock.run_due()
    assert len(received) == 1


def test_a_flood_is_bounded() -> None:
    """Packets for a VM that never has a turn, from stations that are made up, take no memory without end."""
    switch = Switch()
    one, other = Station(switch), Station(switch)
    for n in range(5000):
        switch.carry(one.port, other.port.address + b"\x02" + n.to_bytes(5, "big") + bytes(50))
    assert switch.lost > 4000
    assert switch.delivered < 200


def test_any_access_is_survived() -> None:
    """Ports in any order with any values: no exception, and the line is told of changes only."""
    chance = random.Random(5)
    switch = Switch()
    one, other = Station(switch), Station(switch)
    for _ in range(20_000):
        station = chance.choice((one, other))
        value = None if chance.random() < 0.3 else chance.choice((0x22, 0x26, 0x12, 0x0A, 0x62, chance.randrange(256)))
        station.adapter.access(chance.randrange(32), chance.choice((1, 1, 2, 4)), value)
        station.clock.run_due()
    for station in (one, other):
        assert all(before != after for before, after in zip(station.levels, station.levels[1:], strict=False))


def test_no_attribute_is_forgotten() -> None:
    """Each attribute stands in the table of snapshots once."""
    fields = FIELDS[Ne2000]
    assert sorted([*fields.values, *fields.wires]) == sorted(vars(Station(Switch()).adapter))
