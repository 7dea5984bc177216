"""The power management registers of a PIIX4 (ACPI's PM1 block and timer), in the state in which ACPI owns them.

Knows the registers. Must not know how a machine is powered off. Nothing here raises the system control interrupt. Source: ACPI Specification 2.0,
4.7.3 "Fixed Hardware Registers"; 82371AB data sheet, 7.2 "Power Management I/O Space Registers".
"""

from collections.abc import Callable

from vmm.clock import SECOND, Clock
from vmm.devices.stop import Stop, StopKind

STATUS, ENABLE, CONTROL, TIMER, END = 0, 2, 4, 8, 12
LAYOUT = ((STATUS, TIMER, 2), (TIMER, END - TIMER, 4))
"""(offset, bytes, widest access) of its registers; the timer is read at once."""
HERTZ = 3_579_545
TIMER_MASK = 0xFF_FFFF
SCI_ENABLED = 1
_SLEEP_TYPE, _SLEEP = 0x1C00, 0x2000
_ENABLES = 0x0521  # timer, global lock, power button, RTC


class AcpiPm:
    """Twelve bytes of ports. SLP_EN with sleep type 0, which is S5 on this chip, powers the machine off."""

    def __init__(self, clock: Clock, stop: Callable[[Stop], None]) -> None:
        self._clock = clock
        self._stop = stop
        self.enable = 0
        self.control = SCI_ENABLED

    def access(self, offset: int, size: int, value: int | None) -> int:
        mask = (1 << 8 * size) - 1
        if value is None:
            return self._registers() >> 8 * offset & mask
        shift = 8 * (offset & 1)
        if offset & ~1 == ENABLE:
            self.enable = (self.enable & ~(mask << shift) | value << shift) & _ENABLES
        elif offset & ~1 == CONTROL:
            self._set_control(self.control & ~(mask << shift) | value << shift)
        return 0

    def _registers(self) -> int:
        timer = self._clock.now() * HERTZ // SECOND & TIMER_MASK
        return self.enable << 8 * ENABLE | self.control << 8 * CONTROL | timer << 8 * TIMER

    def _set_control(self, value: int) -> None:
        self.control = value & _SLEEP_TYPE | SCI_ENABLED
        if value & _SLEEP and not value & _SLEEP_TYPE:
            self._stop(Stop(StopKind.POWER_OFF, "ACPI"))
