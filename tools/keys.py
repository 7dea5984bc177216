"""The escape key of a terminal: what typed bytes mean for the VMM, and what is left of them for the guest.

Knows Ctrl-A and its second keys, as QEMU has them. Knows no terminal.
"""

from __future__ import annotations

from enum import Enum, auto

ESCAPE = 0x01
HELP = """
Ctrl-A x   end the run
Ctrl-A d   detach, where the terminal is attached to a VM
Ctrl-A a   send Ctrl-A to the guest
Ctrl-A c   send Ctrl-C to the guest
Ctrl-A n   of several guests, type to the next one
Ctrl-A h   this help
Ctrl-C     end the run
"""


class Command(Enum):
    """What a person asks of the VMM."""

    QUIT = auto()
    NEXT = auto()
    HELP = auto()
    DETACH = auto()


_COMMANDS = {"x": Command.QUIT, "n": Command.NEXT, "h": Command.HELP, "d": Command.DETACH, "?": Command.HELP}
_SENT = {"a": b"\x01", "c": b"\x03", "\x01": b"\x01"}


class EscapeKey:
    """Takes typed bytes apart; remembers a Ctrl-A whose second key has not come yet."""

    def __init__(self) -> None:
        self.waiting = False

    def take(self, typed: bytes) -> tuple[bytes, list[Command]]:
        """(bytes for the guest, commands in order). An unknown second key is dropped with its Ctrl-A."""
        sent, commands = bytearray(), []
        for byte in typed:
            if self.waiting:
                self.waiting = False
                key = chr(byte).lower()
                sent += _SENT.get(key, b"")
                if key in _COMMANDS:
                    commands.append(_COMMANDS[key])
            elif byte == ESCAPE:
                self.waiting = True
            else:
                sent.append(byte)
        return bytes(sent), commands
