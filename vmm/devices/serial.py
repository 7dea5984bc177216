"""The 16550A UART: a console line out, a queue of typed bytes in.

Knows its registers, FIFOs and interrupt priorities. Must not know where output goes or where input comes from. Transmission takes
no time. Source: National Semiconductor PC16550D data sheet. The line is not gated with OUT2: kernels that never set it get their
interrupts on QEMU, and rely on it.
"""

from collections import deque
from collections.abc import Callable

IER_RECEIVE, IER_TRANSMIT, IER_STATUS, IER_MODEM = 1, 2, 4, 8
LSR_DATA, LSR_OVERRUN, LSR_EMPTY = 0x01, 0x02, 0x60
MCR_LOOP = 0x10
FCR_ENABLE, FCR_CLEAR_RECEIVE = 0x01, 0x02
LCR_DLAB = 0x80
IIR_NONE, IIR_MODEM, IIR_TRANSMIT, IIR_RECEIVE, IIR_STATUS, IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
CONNECTED = 0xB0
"""DCD, DSR and CTS: somebody is always on the line."""
FIFO_SIZE = 16
TRIGGERS = (1, 4, 8, 14)
BACKLOG = 4096
"""Bytes that wait for the guest before `room` says stop."""
BYTES = [bytes([i]) for i in range(256)]


class Serial:
    """One UART with 8 registers. `console` is given every byte sent, in order; what batches them is on the other side of it."""

    def __init__(self, console: Callable[[bytes], None], line: Callable[[bool], None]) -> None:
        self._console = console
        self._line = line
        self.divisor = 12
        self.ier = self.lcr = self.mcr = self.fcr = self.scratch = 0
        self.msr = CONNECTED
        self.overrun = False
        self.transmit_pending = False
        """THR has run empty since the guest was last told."""
        self.fifo: deque[int] = deque()
        """Received bytes as the guest can see them: at most 16, or 1 without FIFOs."""
        self.backlog: deque[int] = deque()
        """Bytes still on the wire: they come in as the guest reads, so that none is ever lost."""
        self.level = False

    def receive(self, data: bytes) -> None:
        """Bytes arrive on the wire. All are kept; a polite sender sends no more than `room()`."""
        self.backlog.extend(data)
        self._fill()
        self._update()

    def room(self) -> int:
        """How many bytes a sender should send now at most: back-pressure for whoever reads the user's keyboard or pipe."""
        return max(0, BACKLOG - len(self.backlog))

    def access(self, offset: int, size: int, value: int | None) -> int:
        if value is None:
            if offset == 5:  # first: guests poll it for every byte they send
                return self._read_status()
            return self._read(offset)
        if offset == 0 and not self.lcr & LCR_DLAB:
            self._transmit(value)
        else:
            self._write(offset, value)
        return 0

    def _transmit(self, value: int) -> None:
        if self.mcr & MCR_LOOP:
            self._loop_back(value)
        else:
            self._console(BYTES[value & 0xFF])
        if self.ier & IER_TRANSMIT:
            # THR is full for no time: the request goes and comes again, an edge for controllers that need one.
            self.transmit_pending = False
            self._update()
        self.transmit_pending = True
        if self.ier:
            self._update()

    def _loop_back(self, value: int) -> None:
        if len(self.fifo) >= self._capacity():
            self.overrun = True
            if not self.fcr & FCR_ENABLE:
                self.fifo[-1] = value & 0xFF
            return
        self.fifo.append(value & 0xFF)

    def _capacity(self) -> int:
        return FIFO_SIZE if self.fcr & FCR_ENABLE else 1

    def _fill(self) -> None:
        if not self.mcr & MCR_LOOP:
            while self.backlog and len(self.fifo) < self._capacity():
                self.fifo.append(self.backlog.popleft())

    def _read(self, offset: int) -> int:
        if offset == 0:
            return self.divisor & 0xFF if self.lcr & LCR_DLAB else self._read_byte()
        if offset == 1:
            return self.divisor >> 8 if self.lcr & LCR_DLAB else self.ier
        if offset == 2:
            return self._read_cause()
        if offset == 6:
            value = self.msr
            self.msr &= 0xF0
            self._update()
            return value
        return (self.lcr, self.mcr, 0, 0, self.scratch)[offset - 3]

    def _read_byte(self) -> int:
        if not self.fifo:
            return 0
        byte = self.fifo.popleft()
        if not self.fifo:
            self._update()  # between two bytes from the wire the request is gone for a moment
        self._fill()
        self._update()
        return byte

    def _read_status(self) -> int:
        status = LSR_EMPTY | (LSR_DATA if self.fifo else 0)
        if self.overrun:
            status |= LSR_OVERRUN
            self.overrun = False
            self._update()
        return status

    def _read_cause(self) -> int:
        cause = self._cause()
        if cause == IIR_TRANSMIT:
            self.transmit_pending = False
            self._update()
        return cause | (0xC0 if self.fcr & FCR_ENABLE else 0)

    def _write(self, offset: int, value: int) -> None:
        value &= 0xFF
        if offset <= 1 and self.lcr & LCR_DLAB:
            self.divisor = self.divisor & 0xFF00 | value if offset == 0 else self.divisor & 0xFF | value << 8
        elif offset == 1:
            if value & IER_TRANSMIT and not self.ier & IER_TRANSMIT:
                self.transmit_pending = True  # enabling it with THR empty interrupts at once
            self.ier = value & 0x0F
        elif offset == 2:
            self._set_fifo(value)
        elif offset == 3:
            self.lcr = value
        elif offset == 4:
            self._set_modem(value)
        elif offset == 7:
            self.scratch = value
        self._update()

    def _set_fifo(self, value: int) -> None:
        toggled = (value ^ self.fcr) & FCR_ENABLE
        if toggled or value & FCR_ENABLE and value & FCR_CLEAR_RECEIVE:
            self.fifo.clear()
        self.fcr = value & 0xC9 if value & FCR_ENABLE else 0
        self._fill()

    def _set_modem(self, value: int) -> None:
        self.mcr = value & 0x1F
        levels = CONNECTED
        if value & MCR_LOOP:
            # DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD.
            levels = (value & 1) << 5 | (value & 2) << 3 | (value & 4) << 4 | (value & 8) << 4
        changed = (levels ^ self.msr) & 0xF0
        if not self.msr & ~levels & 0x40:
            changed &= ~0x40  # RI reports only its trailing edge
        self.msr = levels | self.msr & 0x0F | changed >> 4
        self._fill()

    def _cause(self) -> int:
        """What IIR shows: the enabled cause of the highest priority (data sheet, table "Interrupt Control Functions")."""
        ier = self.ier
        if ier & IER_STATUS and self.overrun:
            return IIR_STATUS
        if ier & IER_RECEIVE and self.fifo:
            # Below the trigger level nothing more is on its way, so the four characters' time-out is over at once.
            enough = not self.fcr & FCR_ENABLE or len(self.fifo) >= TRIGGERS[self.fcr >> 6]
            return IIR_RECEIVE if enough else IIR_TIMEOUT
        if ier & IER_TRANSMIT and self.transmit_pending:
            return IIR_TRANSMIT
        if ier & IER_MODEM and self.msr & 0x0F:
            return IIR_MODEM
        return IIR_NONE

    def _update(self) -> None:
        level = self._cause() != IIR_NONE
        if level != self.level:
            self.level = level
            self._line(level)
