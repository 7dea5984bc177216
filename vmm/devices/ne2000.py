"""The NE2000 Ethernet adapter: a DP8390 controller with 16 KiB of packet memory, which the guest reaches through a data port.

Knows its registers, its ring of received packets and its interrupt line. Must not know where packets go, nor where they come from. Sending takes
no time.
Source: National Semiconductor DP8390D data sheet; the NE2000's own ports, and how its PROM looks, as QEMU and the drivers of Linux have them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

PAGE = 256
MEMORY_START, MEMORY_END = 0x4000, 0x8000
SMALLEST, LARGEST = 60, 1514
"""Bytes of an Ethernet packet without its checksum."""
STOP, START, TRANSMIT, READ, WRITE = 0x01, 0x02, 0x04, 0x08, 0x10  # of the command register
RECEIVED, SENT, OVERFLOW, DMA_DONE, RESET = 0x01, 0x02, 0x10, 0x40, 0x80  # of the interrupt status
_BROADCAST, _MULTICAST, _PROMISCUOUS = 0x04, 0x08, 0x10  # of the receive configuration
_DATA, _RESET_PORT = 0x10, 0x18
_NOBODY = 0xFF
_START_PAGE, _STOP_PAGE, _BOUNDARY, _SEND_PAGE, _COUNT_LOW, _COUNT_HIGH, _STATUS = 1, 2, 3, 4, 5, 6, 7
_ADDRESS_LOW, _ADDRESS_HIGH, _LENGTH_LOW, _LENGTH_HIGH, _RECEIVE_CONFIG, _SEND_CONFIG, _DATA_CONFIG, _MASK = range(8, 16)
_CURRENT = 7  # on page 1, between the six bytes of the address and the eight of the multicast filter


class Network(Protocol):
    """What the adapter is plugged into: it gives the adapter its address (6 bytes), and takes each packet that the guest sends."""

    @property
    def address(self) -> bytes: ...

    def send(self, packet: bytes) -> None: ...


class Ne2000:
    """One adapter with 32 ports."""

    def __init__(self, network: Network, line: Callable[[bool], None]) -> None:
        self._network, self._line = network, line
        self.prom = b"".join(bytes((byte, byte)) for byte in network.address) + bytes(16) + b"\x57" * 4
        self.memory = bytearray(MEMORY_END - MEMORY_START)
        self.command, self.interrupt = STOP | 0x20, RESET
        self.registers = bytearray(16)  # of page 0, as written
        self.station = bytearray(16)  # of page 1: address from 1 on, current page, multicast filter
        self.at = self.left = 0  # the data port's address, and bytes left to move
        self.receive_status = self.send_status = 0
        self.level = False

    # -- packets -------------------------------------------------------------------------------------------------------------------

    def receive(self, packet: bytes) -> None:
        """A packet arrives: it goes into the ring if it is for this station and there is room."""
        if self.command & STOP or not self._is_for_us(packet):
            return
        packet = packet.ljust(SMALLEST, b"\0")
        start, stop = self.registers[_START_PAGE] * PAGE, self.registers[_STOP_PAGE] * PAGE
        first = self.station[_CURRENT] * PAGE
        if not MEMORY_START <= start < stop <= MEMORY_END or not start <= first < stop:
            return  # the driver has not said where, or not sensibly
        size = len(packet) + 4
        pages = -(-(size + 4) // PAGE)
        boundary = self.registers[_BOUNDARY] * PAGE
        room = boundary - first if first < boundary else stop - start - (first - boundary)
        if room < LARGEST + 8:
            self._raise(OVERFLOW)
            return
        after = first + pages * PAGE
        after = after - (stop - start) if after >= stop else after
        self.receive_status = 1 | (packet[0] & 1) << 5
        data = bytes((self.receive_status, after // PAGE)) + (size).to_bytes(2, "little") + packet
        for byte_at in range(0, len(data), PAGE):
            part = data[byte_at : byte_at + PAGE]
            place = first + byte_at
            place = place - (stop - start) if place >= stop else place
            self.memory[place - MEMORY_START : place - MEMORY_START + len(part)] = part
        self.station[_CURRENT] = after // PAGE
        self._raise(RECEIVED)

    def _is_for_us(self, packet: bytes) -> bool:
        accepted = self.registers[_RECEIVE_CONFIG]
        if accepted & _PROMISCUOUS:
            return True
        if packet[:6] == b"\xff" * 6:
            return bool(accepted & _BROADCAST)
        if packet[0] & 1:
            place = _crc(packet[:6]) >> 26
            return bool(accepted & _MULTICAST and self.station[8 + (place >> 3)] >> (place & 7) & 1)
        return packet[:6] == bytes(self.station[1:7])

    def _transmit(self) -> None:
        first = self.registers[_SEND_PAGE] * PAGE - MEMORY_START
        size = self.registers[_COUNT_LOW] | self.registers[_COUNT_HIGH] << 8
        if 0 <= first and first + size <= len(self.memory) and 14 <= size <= LARGEST:
            self._network.send(bytes(self.memory[first : first + size]))
        self.send_status = 1
        self.command &= ~TRANSMIT
        self._raise(SENT)

    # -- ports -----------------------------------------------------------------------------------------------------------------------

    def access(self, offset: int, size: int, value: int | None) -> int:
        if offset >= _RESET_PORT:
            if value is None:
                self._reset()
            return 0
        if offset >= _DATA:
            return self._move(size, value)
        if value is None:
            return self._read(offset)
        self._write(offset, value)
        return 0

    def _reset(self) -> None:
        self.command, self.interrupt = STOP | 0x20, RESET
        self._update()

    def _move(self, size: int, value: int | None) -> int:
        """The data port: bytes from or to packet memory, or from the PROM: as many as the controller has been told that it is wide."""
        size = 4 if size == 4 else 1 + (self.registers[_DATA_CONFIG] & 1)
        if not self.left or not self.command & (WRITE if value is not None else READ):
            return (1 << 8 * size) - 1 if value is None else 0
        result = 0
        for n in range(size):
            if value is not None:
                if MEMORY_START <= self.at < MEMORY_END:
                    self.memory[self.at - MEMORY_START] = value >> 8 * n & 0xFF
            elif MEMORY_START <= self.at < MEMORY_END:
                result |= self.memory[self.at - MEMORY_START] << 8 * n
            else:
                result |= (self.prom[self.at] if self.at < len(self.prom) else _NOBODY) << 8 * n
            self.at = self.at + 1 & 0xFFFF
            if self.at == self.registers[_STOP_PAGE] * PAGE:
                self.at = self.registers[_START_PAGE] * PAGE
        self.left = max(0, self.left - size)
        if not self.left:
            self._raise(DMA_DONE)
        return result

    def _read(self, offset: int) -> int:
        page = self.command >> 6 & 3
        if not offset:
            return self.command
        if page == 1:
            return self.station[offset]
        if page == 2:
            return self.registers[offset] if offset in (_START_PAGE, _STOP_PAGE) else 0
        match offset:
            case 1 | 8:
                return self.at & 0xFF
            case 2 | 9:
                return self.at >> 8
            case 3:
                return self.registers[_BOUNDARY]
            case 4:
                return self.send_status
            case 7:
                return self.interrupt
            case 12:
                return self.receive_status
        return 0

    def _write(self, offset: int, value: int) -> None:
        if not offset:
            self._take_command(value)
        elif self.command >> 6 == 1:
            self.station[offset] = value
        elif not self.command >> 6:
            if offset == _STATUS:
                self.interrupt &= ~(value & 0x7F)
            else:
                self.registers[offset] = value
            registers = self.registers
            if offset in (_ADDRESS_LOW, _ADDRESS_HIGH):
                self.at = registers[_ADDRESS_LOW] | registers[_ADDRESS_HIGH] << 8
            elif offset in (_LENGTH_LOW, _LENGTH_HIGH):
                self.left = registers[_LENGTH_LOW] | registers[_LENGTH_HIGH] << 8
            self._update()

    def _take_command(self, value: int) -> None:
        self.command = value
        if value & STOP:
            return
        self.interrupt &= ~RESET
        if value & (READ | WRITE) and not self.left:
            self._raise(DMA_DONE)
        if value & TRANSMIT:
            self._transmit()

    def _raise(self, cause: int) -> None:
        self.interrupt |= cause
        self._update()

    def _update(self) -> None:
        level = bool(self.interrupt & self.registers[_MASK] & 0x7F)
        if level != self.level:
            self.level = level
            self._line(level)


def _crc(data: bytes) -> int:
    """Ethernet's checksum as the multicast filter takes it: the highest bit first."""
    crc = 0xFFFFFFFF
    for byte in data:
        for _ in range(8):
            carry = crc >> 31 ^ byte & 1
            crc = crc << 1 & 0xFFFFFFFF
            byte >>= 1
            if carry:
                crc ^= 0x04C11DB7
    return crc
