"""The 8042 keyboard controller with a keyboard on it; its second port has no mouse.

Knows controller and keyboard commands, the output buffer and line 1. Must not know who types, nor what a reset does.
Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller".
"""

from collections import deque
from collections.abc import Callable

from vmm.devices.scancodes import BREAK, TRANSLATION, strokes
from vmm.devices.stop import Stop, StopKind
from vmm.devices.system_control import A20

STATUS_FULL, STATUS_SYSTEM, STATUS_COMMAND, STATUS_UNLOCKED, STATUS_AUX, STATUS_TIMEOUT = 0x01, 0x04, 0x08, 0x10, 0x20, 0x40
MODE_INTERRUPT, MODE_SYSTEM, MODE_DISABLED, MODE_AUX_DISABLED, MODE_TRANSLATE = 0x01, 0x04, 0x10, 0x20, 0x40
ACK, RESEND, SELF_TEST_PASSED = 0xFA, 0xFE, 0xAA
QUEUE = 1024
"""Bytes of typing that wait for the guest before `room` says stop; answers to commands always fit."""


class Keyboard:
    """Data port at offset 0 (60h), status and command port at offset 4 (64h)."""

    def __init__(self, line: Callable[[bool], None], a20: A20, stop: Callable[[Stop], None]) -> None:
        """Starts as PC firmware leaves it: tested, translating to set 1, keyboard interrupt on."""
        self._line = line
        self._a20 = a20
        self._stop = stop
        self.ram = bytearray(32)
        """Byte 0 is the mode ("command byte")."""
        self.ram[0] = MODE_INTERRUPT | MODE_SYSTEM | MODE_AUX_DISABLED | MODE_TRANSLATE
        self.status = STATUS_SYSTEM | STATUS_UNLOCKED
        self.buffer = 0
        self.answers: deque[tuple[int, int]] = deque()
        """The controller's own bytes for the output buffer, each with its status bits: they go before the keyboard's."""
        self.keys: deque[int] = deque()
        """The keyboard's bytes, not yet translated."""
        self.break_seen = False
        self.scanning = True
        self.scan_set = 2
        self.expected: int | None = None
        """The controller command whose data byte comes next at port 60h."""
        self.keyboard_expected: int | None = None
        self.last_sent = 0
        self.level = False

    def press(self, text: str) -> None:
        """Type ASCII `text`: line feed and carriage return are Enter, 08h and 7Fh Backspace, 01h to 1Ah Control with a letter.
        Nothing is lost; a polite typist looks at `room` first."""
        if self.scanning:
            self.keys.extend(strokes(text))
            self._fill()

    def room(self) -> int:
        """How many characters to type now at most."""
        return max(0, QUEUE - len(self.keys)) // 6

    def access(self, offset: int, size: int, value: int | None) -> int:
        if offset == 0:
            if value is None:
                return self._read_data()
            self.status &= ~STATUS_COMMAND
            self._write_data(value & 0xFF)
            return 0
        if offset != 4:
            return 0xFF if value is None else 0
        if value is None:
            return self.status
        self.status |= STATUS_COMMAND
        self._command(value & 0xFF)
        return 0

    # The output buffer.

    def _read_data(self) -> int:
        self.status &= ~(STATUS_FULL | STATUS_AUX | STATUS_TIMEOUT)
        self._update()  # the line drops between two bytes
        value = self.buffer
        self._fill()
        return value

    def _fill(self) -> None:
        """Move the next byte that may come into the output buffer, if it is free."""
        if self.status & STATUS_FULL:
            return
        if self.answers:
            self.buffer, bits = self.answers.popleft()
            self.status |= STATUS_FULL | bits
        else:
            while self.keys and not self.ram[0] & MODE_DISABLED and not self.status & STATUS_FULL:
                self._take_key(self.keys.popleft())
        self._update()

    def _take_key(self, byte: int) -> None:
        if self.ram[0] & MODE_TRANSLATE:
            if byte == BREAK:
                self.break_seen = True
                return
            byte = TRANSLATION[byte] | (0x80 if self.break_seen else 0)
            self.break_seen = False
        self.buffer = byte
        self.status |= STATUS_FULL

    def _update(self) -> None:
        level = bool(self.status & STATUS_FULL and not self.status & STATUS_AUX and self.ram[0] & MODE_INTERRUPT)
        if level != self.level:
            self.level = level
            self._line(level)

    def _answer(self, value: int, bits: int = 0) -> None:
        self.answers.append((value, bits))
        self._fill()

    # The controller.

    def _command(self, command: int) -> None:
        self.expected = None
        match command:
            case _ if 0x20 <= command <= 0x3F:
                self._answer(self.ram[command & 0x1F])
            case _ if 0x60 <= command <= 0x7F or 0xD1 <= command <= 0xD4:
                self.expected = command
            case 0xA7:
                self._set_mode(self.ram[0] | MODE_AUX_DISABLED)
            case 0xA8:
                self._set_mode(self.ram[0] & ~MODE_AUX_DISABLED)
            case 0xA9:
                self._answer(0x01)  # no mouse: its clock line is stuck low
            case 0xAA:
                self.status |= STATUS_SYSTEM
                self._answer(0x55)
            case 0xAB:
                self._answer(0x00)
            case 0xAD:
                self._set_mode(self.ram[0] | MODE_DISABLED)
            case 0xAE:
                self._set_mode(self.ram[0] & ~MODE_DISABLED)
            case 0xC0:
                self._answer(0x80)  # not locked
            case 0xD0:
                self._answer(self._output_port())
            case 0xE0:
                self._answer(0x00)
            case _ if command >= 0xF0 and not command & 1:
                self._reset()  # pulses output bit 0, the CPU's reset

    def _output_port(self) -> int:
        full = bool(self.status & STATUS_FULL)
        return 0x01 | self._a20.enabled << 1 | full << 4

    def _set_mode(self, mode: int) -> None:
        self.ram[0] = mode
        self.status = self.status & ~STATUS_SYSTEM | mode & MODE_SYSTEM
        self._fill()
        self._update()

    def _write_data(self, value: int) -> None:
        command, self.expected = self.expected, None
        if command is None:
            self._keyboard(value)
        elif command == 0x60:
            self._set_mode(value)
        elif command < 0x80:
            self.ram[command & 0x1F] = value
        elif command == 0xD1:
            self._a20.set(bool(value & 2))
            if not value & 1:
                self._reset()
        elif command == 0xD4:
            self._answer(RESEND, STATUS_AUX | STATUS_TIMEOUT)
        else:  # D2h; D3h too, without the mark of the second port: so a driver learns at once that there is no mouse
            self._answer(value)

    def _reset(self) -> None:
        self._stop(Stop(StopKind.RESET, "8042"))

    # The keyboard.

    def _send(self, *values: int) -> None:
        self.keys.extend(values)
        self.last_sent = values[-1]
        self._fill()

    def _keyboard(self, value: int) -> None:
        if self.ram[0] & MODE_DISABLED:
            self._set_mode(self.ram[0] & ~MODE_DISABLED)  # writing to the keyboard turns its clock on
        command, self.keyboard_expected = self.keyboard_expected, None
        if command is not None:
            self._keyboard_parameter(command, value)
            return
        match value:
            case 0xED | 0xF0 | 0xF3:
                self.keyboard_expected = value
                self._send(ACK)
            case 0xEE:
                self._send(0xEE)
            case 0xF2:
                self._send(ACK, 0xAB, 0x83)
            case 0xF4 | 0xF5 | 0xF6:
                self.keys.clear()
                self.scanning = value != 0xF5
                self.scan_set = 2
                self._send(ACK)
            case 0xFE:
                self._send(self.last_sent)
            case 0xFF:
                self.keys.clear()
                self.scanning, self.scan_set = True, 2
                self._send(ACK, SELF_TEST_PASSED)
            case _:
                self._send(RESEND)

    def _keyboard_parameter(self, command: int, value: int) -> None:
        if command == 0xF0 and value == 0:
            self._send(ACK, self.scan_set)
        elif command == 0xF0 and value != 2:
            self._send(RESEND)  # this keyboard has set 2 only
        else:
            self._send(ACK)
