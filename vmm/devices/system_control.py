"""The PC's two system control ports: B (61h: timer 2 gate, speaker, refresh toggle) and A (92h: A20 and fast reset), and the A20 gate.

Knows those bits. Must not know memory: that address line 20 is forced to 0 is the machine's business.
Source: 82371AB (PIIX4) data sheet, "NMI Status and Control Register" and "Port 92 Register".
"""

from collections.abc import Callable

from vmm.clock import Clock
from vmm.devices.pit import Pit
from vmm.devices.stop import Stop, StopKind

REFRESH_PERIOD = 15_085
"""Nanoseconds between two changes of the refresh toggle; old delay loops count them."""

_STALL = 8  # times the distance of two reads, and it was no guest that polled


class A20:
    """The A20 gate, which the 8042 and port 92h both set. PC firmware leaves it open. `changed` is called with every change."""

    def __init__(self) -> None:
        self.enabled = True
        self.changed: Callable[[], None] = lambda: None

    def set(self, on: bool) -> None:
        """Opens or closes it."""
        if on != self.enabled:
            self.enabled = on
            self.changed()

    def restored(self) -> None:
        """Another state was put into it."""
        self.changed()


class PortB:
    """Port 61h: bit 0 gate of timer 2, 1 speaker, 2 and 3 stored, 4 refresh toggle, 5 output of timer 2."""

    def __init__(self, clock: Clock, pit: Pit) -> None:
        self._clock = clock
        self._pit = pit
        self.control = 0
        self._polls: tuple[int, int] | None = None  # when the output was read last, and before that, while it was low

    def access(self, offset: int, size: int, value: int | None) -> int:
        if value is None:
            now = self._clock.now()
            return self.control | (now // REFRESH_PERIOD & 1) << 4 | self._output2(now) << 5
        self.control = value & 0x0F
        self._pit.set_gate2(bool(value & 1))
        return 0


    def _output2(self, now: int) -> bool:
        """The output of timer 2. To a guest that polls it, in real time, a rise in a stall of the host shows with the second read behind the stall.

        Linux measures its TSC by such a loop, and takes the last time that it read with the output low for the end. It gives up when
        one round took ten times as long as another: so it is to see the round that the stall was in, or its clock goes fast ever after.
        """
        polls, self._polls = self._polls, None
        if not self._pit.output2(now):
            self._polls = now, polls[0] if polls else 0
            return False
        return polls is None or not self._clock.real or now - polls[0] <= _STALL * (polls[0] - polls[1])


class PortA:
    """Port 92h: bit 0 resets the machine when it goes from 0 to 1, bit 1 is A20."""

    def __init__(self, a20: A20, stop: Callable[[Stop], None]) -> None:
        self._a20 = a20
        self._stop = stop
        self.control = 0

    def access(self, offset: int, size: int, value: int | None) -> int:
        if value is None:
            return self.control & ~2 | self._a20.enabled << 1
        self._a20.set(bool(value & 2))
        fast_reset = value & 1 and not self.control & 1
        self.control = value & 0xFF
        if fast_reset:
            self._stop(Stop(StopKind.RESET, "port 92h"))
        return 0
