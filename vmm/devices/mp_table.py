"""The MP table: what firmware tells a kernel of processors, buses and interrupt controllers.

Knows the layout. Must not know guest memory beyond writing bytes into it, nor the devices it describes beyond their numbers.
Source: Intel MultiProcessor Specification, version 1.4, chapter 4.
"""

import struct

from vmm.bus import Memory

POINTER = 0xF0000
TABLE = 0xF0010
ISA_BUS = 0
INT, NMI, EXTINT = 0, 1, 3
"""Interrupt types of interrupt entries."""
ALL_APICS = 0xFF
PROCESSOR_SIGNATURE, PROCESSOR_FEATURES = 0x0633, 0x0201
"""Family 6; FPU and local APIC. A kernel asks CPUID for the truth."""


def write_mp_table(memory: Memory, *, lapic_gpa: int, lapic_id: int, lapic_version: int, ioapic_gpa: int, ioapic_id: int,
                   ioapic_version: int, timer_pin: int) -> None:
    """Write floating pointer and configuration table into the BIOS area at F0000h, where kernels look for them.

    One processor, one ISA bus, ISA line n on I/O APIC pin n, except the timer, which is on `timer_pin`; the 8259 on LINT0.
    """
    entries = [struct.pack("<BBBB II 8x", 0, lapic_id, lapic_version, 0x03, PROCESSOR_SIGNATURE, PROCESSOR_FEATURES),
               struct.pack("<BB6s", 1, ISA_BUS, b"ISA   "),
               struct.pack("<BBBBI", 2, ioapic_id, ioapic_version, 0x01, ioapic_gpa)]
    for line in (line for line in range(16) if line != timer_pin):
        entries.append(_interrupt(3, INT, line, ioapic_id, timer_pin if line == 0 else line))
    entries.append(_interrupt(4, EXTINT, 0, ALL_APICS, 0))
    entries.append(_interrupt(4, NMI, 0, ALL_APICS, 1))
    body = b"".join(entries)
    header = struct.pack("<4sHBB8s12sIHHIHBB", b"PCMP", 44 + len(body), 4, 0, b"VMM".ljust(8), b"PC".ljust(12), 0, 0,
                         len(entries), lapic_gpa, 0, 0, 0)
    memory.write(TABLE, _sealed(header + body, 7))
    # Feature bytes 0: there is a table, and no IMCR to switch before the I/O APIC is used.
    memory.write(POINTER, _sealed(struct.pack("<4sIBBB5x", b"_MP_", TABLE, 1, 4, 0), 10))


def _interrupt(entry: int, kind: int, line: int, apic_id: int, pin: int) -> bytes:
    """An interrupt entry; polarity and trigger mode 0: as usual on its bus."""
    return struct.pack("<BBHBBBB", entry, kind, 0, ISA_BUS, line, apic_id, pin)


def _sealed(data: bytes, checksum_at: int) -> bytes:
    """`data` with the byte at `checksum_at` such that all bytes add up to 0."""
    return data[:checksum_at] + bytes([-sum(data) & 0xFF]) + data[checksum_at + 1 :]
