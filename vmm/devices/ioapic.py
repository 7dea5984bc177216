"""The 82093AA I/O APIC: 24 input pins, each with an entry that says which interrupt it sends where.

Knows pins and redirection entries. Must not know what drives a pin, nor which local APIC hears a message.
Source: Intel 82093AA data sheet (order number 290566). Pins are told "asserted or not", so the polarity bit is only stored.
"""

from typing import Protocol

PINS = 24
VERSION = 0x11
MASKED = 1 << 16
LEVEL = 1 << 15
REMOTE_IRR = 1 << 14
DELIVERY_STATUS = 1 << 12
LOGICAL = 1 << 11
READ_ONLY = REMOTE_IRR | DELIVERY_STATUS


class Send(Protocol):
    """Send an interrupt message; True when a local APIC took it. `mode` is the delivery mode, 0 to 7."""

    def __call__(self, destination: int, logical: bool, mode: int, vector: int, level: bool) -> bool: ...


class IoApic:
    """One I/O APIC: index register at offset 0, data window at 10h."""

    def __init__(self, send: Send, *, apic_id: int) -> None:
        self._send = send
        self.id = apic_id
        self.index = 0
        self.lines = 0
        self.table = [MASKED] * PINS
        """Redirection entries, 64 bits each."""

    def set_line(self, pin: int, level: bool) -> None:
        """Assert or release `pin`. A rise on a masked edge-triggered pin is lost (data sheet 3.2.4, "Interrupt Mask")."""
        before, bit, entry = self.lines, 1 << pin, self.table[pin]
        self.lines = before | bit if level else before & ~bit
        if not entry & MASKED and (entry & LEVEL or level and not before & bit):
            self._service(pin)

    def end_of_interrupt(self, vector: int) -> None:
        """The EOI message of a local APIC for a level-triggered `vector`: pins that are still asserted interrupt again."""
        for pin, entry in enumerate(self.table):
            if entry & REMOTE_IRR and entry & 0xFF == vector:
                self.table[pin] = entry & ~REMOTE_IRR
                self._service(pin)

    def access(self, offset: int, size: int, value: int | None) -> int:
        register = offset & ~3
        if register == 0x00:
            if value is None:
                return self.index >> 8 * (offset & 3)
            self.index = value & 0xFF
        elif register == 0x10:
            if value is None:
                return self._read() >> 8 * (offset & 3) & (1 << 8 * size) - 1
            self._write(value)
        return 0

    def _read(self) -> int:
        if self.index == 0 or self.index == 2:
            return self.id << 24
        if self.index == 1:
            return PINS - 1 << 16 | VERSION
        pin, high = divmod(self.index - 0x10, 2)
        if 0 <= pin < PINS:
            return self.table[pin] >> 32 * high & 0xFFFFFFFF
        return 0

    def _write(self, value: int) -> None:
        if self.index == 0:
            self.id = value >> 24 & 0x0F
            return
        pin, high = divmod(self.index - 0x10, 2)
        if not 0 <= pin < PINS:
            return
        entry = self.table[pin]
        if high:
            self.table[pin] = entry & 0xFFFFFFFF | (value & 0xFF000000) << 32
            return
        entry = entry & ~0xFFFFFFFF | value & 0x1FFFF & ~READ_ONLY | entry & READ_ONLY
        if not entry & LEVEL:
            entry &= ~REMOTE_IRR
        self.table[pin] = entry
        if entry & LEVEL:
            self._service(pin)

    def _service(self, pin: int) -> None:
        entry = self.table[pin]
        if entry & MASKED:
            return
        level = bool(entry & LEVEL)
        if level and (entry & REMOTE_IRR or not self.lines >> pin & 1):
            return
        taken = self._send(entry >> 56, bool(entry & LOGICAL), entry >> 8 & 7, entry & 0xFF, level)
        if level and taken:
            self.table[pin] |= REMOTE_IRR
