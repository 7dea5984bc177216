"""Every kind of image lands where it says, and the start state is the one promised."""

import gzip
from pathlib import Path

from tests.unit.boot.images import CODE, MIB, RecordingMemory, boot, elf_file, multiboot_header

HEADER = multiboot_header()


def test_multiboot_elf_is_loaded_with_its_bss_zeroed(tmp_path: Path) -> None:
    """Segments go to their physical addresses, and memory that was used before does not show through the bss."""
    start, memory = boot(tmp_path, elf_file(header=HEADER))
    assert (start.kind, start.entry, start.eax) == ("multiboot", MIB + 12, 0x2BADB002)
    assert memory.read(MIB, 16 + 64) == HEADER + CODE + bytes(64)
    assert memory.read(MIB + 80, 1) == b"\xaa"


def test_virtual_entry_moves_with_its_segment(tmp_path: Path) -> None:
    """GNU Mach gives a virtual entry address; QEMU and GRUB enter at the physical one."""
    start, _ = boot(tmp_path, elf_file(segments=[(0xC010_0000, MIB, HEADER + CODE, 64)], entry=0xC010_000C))
    assert start.entry == MIB + 12


def test_physical_entry_of_a_kernel_linked_high_stays(tmp_path: Path) -> None:
    """xv6 gives the physical entry address of a kernel that is linked at 80100000h."""
    start, _ = boot(tmp_path, elf_file(segments=[(0x8010_0000, MIB, HEADER + CODE, 64)], entry=MIB + 12))
    assert start.entry == MIB + 12


def test_flat_multiboot_goes_by_its_addresses(tmp_path: Path) -> None:
    """Flag bit 16: the bytes from the load address on, then the bss, whatever the file is."""
    header = multiboot_header(0x10003, [0x20_0010, 0x20_0000, 0x20_0034, 0x20_0100, 0x20_0030])
    image = b"junk" + bytes(16) + header + CODE + b"beyond load_end"
    start, memory = boot(tmp_path, image, RecordingMemory(4 * MIB))
    assert start.entry == 0x20_0030
    assert memory.read(0x20_0000, 0x100) == (bytes(16) + header + CODE).ljust(0x100, b"\0")
    assert memory.read(0x20_0100, 1) == b"\xaa"


def test_flat_multiboot_without_ends_takes_the_whole_file(tmp_path: Path) -> None:
    """load_end_addr 0 means to the end of the file, bss_end_addr 0 means no bss."""
    header = multiboot_header(0x10003, [MIB, MIB, 0, 0, MIB + 32])
    _, memory = boot(tmp_path, header + CODE)
    assert memory.read(MIB, 37) == header + CODE + b"\xaa"


def test_plain_elf(tmp_path: Path) -> None:
    """An ELF kernel without a multiboot header starts with empty registers."""
    start, memory = boot(tmp_path, elf_file())
    assert (start.kind, start.entry, start.eax, start.ebx) == ("elf", MIB, 0, 0)
    assert memory.read(MIB, len(CODE)) == CODE


def test_flat_binary_starts_at_its_address(tmp_path: Path) -> None:
    """Bytes of no known format go where the caller says."""
    start, memory = boot(tmp_path, CODE, address=0x7C00)
    assert (start.kind, start.entry) == ("flat", 0x7C00)
    assert memory.read(0x7C00, 5) == CODE + b"\xaa"


def test_gzip_opens_transparently(tmp_path: Path) -> None:
    """A gzip'ed image, here of two members with padding after them, loads as the plain one does."""
    image = elf_file(header=HEADER)
    packed = gzip.compress(image[:50]) + gzip.compress(image[50:]) + bytes(512)
    plain, unpacked = RecordingMemory(), RecordingMemory()
    assert boot(tmp_path, image, plain)[0].entry == boot(tmp_path, packed, unpacked)[0].entry
    assert plain.bytes == unpacked.bytes


def test_descriptors_are_flat_and_in_memory(tmp_path: Path) -> None:
    """CS and DS of the start state are in a GDT that the guest can reload them from (SDM 3A 3.4.5 "Segment Descriptors")."""
    start, memory = boot(tmp_path, elf_file(header=HEADER))
    gdt = memory.read(start.gdt_base, start.gdt_limit + 1)
    assert gdt[start.cs : start.cs + 8] == bytes.fromhex("ffff0000009bcf00")
    assert gdt[start.ds : start.ds + 8] == bytes.fromhex("ffff00000093cf00")
    assert start.eflags & 0x200 == 0


def test_a_kernel_over_all_low_memory_keeps_its_bytes(tmp_path: Path) -> None:
    """What the loader hands over goes out of the kernel's way."""
    body = (HEADER + CODE).ljust(0xF_F000, b"k")
    start, memory = boot(tmp_path, elf_file(segments=[(0x1000, 0x1000, body, len(body))], entry=0x100C), RecordingMemory(4 * MIB))
    assert memory.read(0x1000, len(body)) == body
    assert start.ebx >= MIB and start.gdt_base >= MIB
