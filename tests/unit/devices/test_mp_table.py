"""The MP table and the BIOS data area, read the way kernels do."""

import struct

from tests.unit.devices.memory import GuestRam
from vmm.devices.bios_data import write_bios_data
from vmm.devices.mp_table import write_mp_table

SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def ram() -> GuestRam:
    memory = GuestRam(1 << 20)
    write_bios_data(memory, com1=0x3F8, crtc=0x3D4, disks=2)
    write_mp_table(memory, lapic_gpa=0xFEE00000, lapic_id=0, lapic_version=0x14, ioapic_gpa=0xFEC00000, ioapic_id=1,
                   ioapic_version=0x11, timer_pin=2)
    return memory


def entries(memory: GuestRam) -> list[bytes]:
    """Find the table by its signature, check both sums, and cut it up."""
    at = next(gpa for gpa in range(0xF0000, 0x100000, 16) if memory.read(gpa, 4) == b"_MP_")
    pointer = memory.read(at, 16)
    assert sum(pointer) & 0xFF == 0
    assert (pointer[8], pointer[9], pointer[11]) == (1, 4, 0)
    table = struct.unpack_from("<I", pointer, 4)[0]
    signature, length = struct.unpack("<4sH", memory.read(table, 6))
    assert signature == b"PCMP"
    data = memory.read(table, length)
    assert sum(data) & 0xFF == 0
    assert data[6] == 4
    assert struct.unpack_from("<I", data, 36)[0] == 0xFEE00000
    found, rest = [], data[44:]
    while rest:
        found.append(rest[: SIZES[rest[0]]])
        rest = rest[SIZES[rest[0]] :]
    assert len(found) == struct.unpack_from("<H", data, 34)[0]
    return found


def test_table() -> None:
    """One enabled bootstrap processor, the ISA bus, one I/O APIC; in the order of entry types."""
    found = entries(ram())
    assert [entry[0] for entry in found] == sorted(entry[0] for entry in found)
    processor, bus, ioapic = found[:3]
    assert (processor[1], processor[3] & 3) == (0, 3)
    assert bus[2:] == b"ISA   "
    assert (ioapic[1], ioapic[3] & 1, struct.unpack_from("<I", ioapic, 4)[0]) == (1, 1, 0xFEC00000)


def test_interrupt_entries() -> None:
    """Every ISA line but the cascade once, the timer on pin 2; the 8259 on LINT0 and NMI on LINT1."""
    found = entries(ram())
    lines = {entry[5]: entry[7] for entry in found if entry[0] == 3}
    assert lines == {line: line for line in range(16) if line != 2} | {0: 2}
    assert [(entry[1], entry[7]) for entry in found if entry[0] == 4] == [(3, 0), (1, 1)]


def test_bios_data() -> None:
    """Base memory ends where the extended area begins; xv6 follows that pointer to look for the table."""
    memory = ram()
    (extended,) = struct.unpack("<H", memory.read(0x40E, 2))
    (kib,) = struct.unpack("<H", memory.read(0x413, 2))
    assert extended << 4 == kib << 10 == 0x9FC00
    assert memory.read(0x400, 2) == b"\xf8\x03"
    assert memory.read(0x475, 1) == b"\x02"
