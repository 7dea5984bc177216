"""Ports for people who write kernels: POST code, debug console, debug exit. None is part of a real chip set.

Knows what each means. Must not know where output goes, nor how a run ends.
"""

from collections.abc import Callable

from vmm.devices.stop import Stop, StopKind


class PostCode:
    """Port 80h: shows the last byte written; kernels also write it to pass a microsecond."""

    def __init__(self) -> None:
        self.code = 0

    def access(self, offset: int, size: int, value: int | None) -> int:
        if value is None:
            return self.code
        self.code = value & 0xFF
        return 0


class DebugConsole:
    """Port E9h, as on Bochs and QEMU: a byte written goes to the console; reads return E9h to say that it is there."""

    def __init__(self, console: Callable[[bytes], None]) -> None:
        self._console = console

    def access(self, offset: int, size: int, value: int | None) -> int:
        if value is None:
            return 0xE9
        self._console(bytes([value & 0xFF]))
        return 0


class DebugExit:
    """Port F4h: a write (up to 32 bits) ends the run and reports its value."""

    def __init__(self, stop: Callable[[Stop], None]) -> None:
        self._stop = stop

    def access(self, offset: int, size: int, value: int | None) -> int:
        if value is None:
            return 0
        self._stop(Stop(StopKind.DEBUG_EXIT, "debug exit port", value))
        return 0
