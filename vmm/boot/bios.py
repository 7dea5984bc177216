"""A BIOS image: the file, the state in which a CPU comes out of reset, and what the machine tells its firmware.

Knows sizes and names. Knows no device, and runs nothing.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vmm.boot.image import mib, read_file
from vmm.boot.symbols import Range, Symbols
from vmm.errors import InputError
from vmm.start import Start

LARGEST: Final = 8 << 20
_UNIT: Final = 0x1_0000
_TOP: Final = 1 << 32
_VGA_BIOS: Final = "vgabios-isavga.bin"
LARGEST_OPTION_ROM: Final = 0x1_0000
_CPU_SIGNATURE: Final = 0x0633
_RAM: Final = 1


@dataclass(frozen=True, slots=True)
class Bios:
    """An image of whole units of 64 KiB. vga_bios: the option ROM of the VGA, b"" for none."""

    path: str
    image: bytes
    vga_bios: bytes = b""

    def start(self) -> Start:
        """The state after reset (SDM 3A table 10-1): real mode, CS:IP F000:FFF0 with a base 64 KiB below 4 GiB, the signature in EDX."""
        base = _TOP - len(self.image)
        symbols = Symbols(self.path, ranges=[Range(base, base, len(self.image))])
        return Start(entry=0xFFF0, kind="bios", symbols=symbols, gdt_base=0, gdt_limit=0xFFFF, cs=0xF000, ds=0, esp=0, edx=_CPU_SIGNATURE)

    def files(self, memory_size: int, console_port: int) -> Mapping[str, bytes]:
        """What SeaBIOS finds by name: the memory map, a serial console beside the screen, the VGA's option ROM."""
        files = {
            "etc/e820": struct.pack("<QQI", 0, memory_size, _RAM),
            "etc/sercon-port": struct.pack("<Q", console_port),
        }
        return files | {f"vgaroms/{_VGA_BIOS}": self.vga_bios} if self.vga_bios else files


def is_image(data: bytes) -> bool:
    """Whether it has the size of one: whole units of 64 KiB, up to LARGEST."""
    return 0 < len(data) <= LARGEST and not len(data) % _UNIT


def read_bios(path: str) -> Bios:
    """The image in a file, with the VGA BIOS that lies beside it, as SeaBIOS is packaged. Raises InputError for a file that is none."""
    image = read_file(path, LARGEST, f"larger than {mib(LARGEST)}: no BIOS image")
    if not is_image(image):
        raise InputError(f"{path}: {len(image)} bytes: a BIOS image is of whole units of 64 KiB")
    beside = os.path.join(os.path.dirname(path), _VGA_BIOS)
    vga_bios = read_file(beside, LARGEST_OPTION_ROM, "larger than an option ROM") if os.path.exists(beside) else b""
    return Bios(path, image, vga_bios)
