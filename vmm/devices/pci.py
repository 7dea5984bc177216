"""PCI configuration: mechanism #1 at CF8h and CFCh, and the chip set that answers: a 440FX, a PIIX3, and the PIIX4's power management.

Knows the functions' configuration registers: what each holds at reset and which of its bits can be written. Must not know what they do elsewhere: who
cares for a function's registers is told when they change. Source: PCI Local Bus Specification 2.1, 3.7.4.1 "Configuration Mechanism #1"; 82441FX,
82371SB and 82371AB data sheets.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from vmm.devices.stop import Stop, StopKind

ADDRESS, DATA = 0, 4
"""Offsets from CF8h."""
_ENABLE = 1 << 31
PAM: Final = 0x59
"""The first of the host bridge's seven registers that say, for each part of C0000h to FFFFFh, whether reads and writes go to RAM."""
PAMS: Final = 7
HOST_BRIDGE, ISA_BRIDGE, IDE, POWER = 0x00, 0x08, 0x09, 0x0B
"""Functions of bus 0, as device << 3 | function."""


class Register(NamedTuple):
    """A configuration register of `size` bytes: its value at reset, and which bits of it can be written."""

    size: int
    reset: int
    writable: int = 0


# The identification is that of QEMU's PC, subsystem included: firmware made for virtual machines asks for it.
FUNCTIONS: Final[Mapping[int, Mapping[int, Register]]] = {
    HOST_BRIDGE: {  # 82441FX
        0x00: Register(4, 0x12378086),
        0x04: Register(2, 0x0006, 0x0140),
        0x06: Register(2, 0x0280),
        0x08: Register(4, 0x06000002),
        0x0D: Register(1, 0, 0xF8),
        0x2C: Register(4, 0x11001AF4),
        0x50: Register(2, 0, 0xFFFF),
        PAM: Register(1, 0x30, 0x30),
        **{PAM + n: Register(1, 0x33, 0x33) for n in range(1, PAMS)},
        0x72: Register(1, 0x02, 0),  # no system management RAM
    },
    ISA_BRIDGE: {  # 82371SB, function 0
        0x00: Register(4, 0x70008086),
        0x04: Register(2, 0x0007, 0x0008),
        0x06: Register(2, 0x0280),
        0x08: Register(4, 0x06010000),
        0x0E: Register(1, 0x80),
        0x2C: Register(4, 0x11001AF4),
        0x4C: Register(1, 0x4D, 0x7F),
        0x4E: Register(2, 0x0003, 0x01FF),
        0x60: Register(4, 0x80808080, 0x8F8F8F8F),
        0x69: Register(1, 0x02, 0xFE),
        0x82: Register(1, 0, 0x0F),
    },
    IDE: {  # 82371SB, function 1: both channels at the ISA's ports, by programmed I/O
        0x00: Register(4, 0x70108086),
        0x04: Register(2, 0x0001, 0x0001),
        0x06: Register(2, 0x0280),
        0x08: Register(4, 0x01010000),
        0x2C: Register(4, 0x11001AF4),
        0x40: Register(4, 0x80008000, 0xFFFFFFFF),
    },
    POWER: {  # 82371AB, function 3; no SMI, no SMBus
        0x00: Register(4, 0x71138086),
        0x04: Register(2, 0x0001, 0x0001),
        0x06: Register(2, 0x0280),
        0x08: Register(4, 0x06800003),
        0x2C: Register(4, 0x11001AF4),
        0x3C: Register(1, 9, 0xFF),
        0x3D: Register(1, 1),
        0x40: Register(4, 0x0601, 0xFFC0),
        0x58: Register(4, 0x02000000, 0xFFFFFFFF),  # APMC_EN: SMM has been set up, which firmware need not try
        0x80: Register(1, 1, 1),
        0x90: Register(4, 1),
    },
}


class Function:
    """One function's 256 bytes of configuration. changed: called when registers were written."""

    def __init__(self, registers: Mapping[int, Register]) -> None:
        self.config, self.writable = bytearray(256), bytearray(256)
        self.changed: Callable[[], None] = lambda: None
        for at, register in registers.items():
            self.config[at : at + register.size] = register.reset.to_bytes(register.size, "little")
            self.writable[at : at + register.size] = register.writable.to_bytes(register.size, "little")

    def access(self, at: int, size: int, value: int | None) -> int:
        """A read or write of up to 4 bytes that do not leave the aligned word of 32 bits."""
        if value is None:
            return int.from_bytes(self.config[at : at + size], "little")
        for n in range(at, at + size):
            self.config[n] = self.config[n] & ~self.writable[n] | value >> 8 * (n - at) & self.writable[n]
        self.changed()
        return 0

    def restored(self) -> None:
        """Another state was put into the registers."""
        self.changed()


def power_base(power: Function) -> int:
    """The first port of the power management block; one beyond the port space while it is switched off."""
    return int.from_bytes(power.config[0x40:0x42], "little") & 0xFFC0 if power.config[0x80] & 1 else 0x10000


class PciHost:
    """The address register at offset 0, which is one of 32 bits and no other size, and four bytes of data at offset 4. Nobody there: all ones."""

    def __init__(self) -> None:
        self.address = 0
        self.functions = tuple(Function(registers) for registers in FUNCTIONS.values())
        self._by_number = dict(zip(FUNCTIONS, self.functions, strict=True))

    def function(self, number: int) -> Function:
        """A function of bus 0, which must be one of FUNCTIONS."""
        return self._by_number[number]

    def attributes(self) -> Sequence[int]:
        """The host bridge's PAM registers."""
        return self._by_number[HOST_BRIDGE].config[PAM : PAM + PAMS]

    def access(self, offset: int, size: int, value: int | None) -> int:
        if offset < DATA:
            return self._access_address(size, value)
        nothing = (1 << 8 * size) - 1 if value is None else 0
        if not self.address & _ENABLE:
            return nothing
        function = self._by_number.get(self.address >> 8 & 0xFFFF)
        byte = offset - DATA
        if function is None or byte + size > 4:
            return nothing
        return function.access(self.address & 0xFC | byte, size, value)

    def _access_address(self, size: int, value: int | None) -> int:
        if size != 4:
            return (1 << 8 * size) - 1 if value is None else 0
        if value is None:
            return self.address
        self.address = value & (_ENABLE | 0xFFFFFC)
        return 0


class ResetControl:
    """Port CF9h: bit 2 resets the machine when it goes from 0 to 1; bit 1 would make that a hard reset, which here is the same."""

    def __init__(self, stop: Callable[[Stop], None]) -> None:
        self._stop = stop
        self.control = 0

    def access(self, offset: int, size: int, value: int | None) -> int:
        if value is None:
            return self.control
        reset = value & ~self.control & 4
        self.control = value & 2
        if reset:
            self._stop(Stop(StopKind.RESET, "port CF9h"))
        return 0
