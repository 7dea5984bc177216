"""The BIOS data area: what firmware leaves below 500h for whoever boots.

Knows the few fields that kernels read. Must not know devices. Source: IBM BIOS Interface Technical Reference, "BIOS Data Area".
"""

import struct

from vmm.bus import Memory

EXTENDED_AREA = 0x9FC00
"""gpa of the extended BIOS data area: the last KiB of base memory."""
CONVENTIONAL_KIB = EXTENDED_AREA >> 10


def write_bios_data(memory: Memory, *, com1: int, crtc: int, disks: int) -> None:
    """Write the data area: `com1` and `crtc` are port numbers, `disks` how many there are."""
    for gpa, layout, value in (
        (0x400, "<H", com1),
        (0x40E, "<H", EXTENDED_AREA >> 4),
        (0x410, "<H", 0x0226),  # a serial port, 80-column colour text, pointing device, coprocessor
        (0x413, "<H", CONVENTIONAL_KIB),
        (0x449, "<B", 3),  # video mode
        (0x44A, "<H", 80),
        (0x44C, "<H", 0x1000),
        (0x460, "<H", 0x0607),  # cursor shape
        (0x463, "<H", crtc),
        (0x475, "<B", disks),
        (0x484, "<B", 24),  # rows less one
        (0x485, "<H", 16),
    ):
        memory.write(gpa, struct.pack(layout, value))
    memory.write(EXTENDED_AREA, b"\x01")  # its size in KiB
