"""The multiboot information structure says what QEMU's says (3.3 "Boot information format")."""

import struct
from pathlib import Path

from tests.unit.boot.images import MIB, RecordingMemory, boot, elf_file, multiboot_header

IMAGE = elf_file(header=multiboot_header())


def test_memory_sizes_and_map(tmp_path: Path) -> None:
    """The map is the one that SeaBIOS gives on QEMU with as much memory; what lies between 640 KiB and 1 MiB is no memory."""
    start, memory = boot(tmp_path, IMAGE, RecordingMemory(128 * MIB))
    info = memory.words(start.ebx, 13)
    assert info[0] == 0x24F
    assert info[1:4] == (639, 0x1FB80, 0x8000_FFFF)
    entries = [struct.unpack("<IQQI", memory.read(info[12] + at, 24)) for at in range(0, info[11], 24)]
    assert entries == [
        (20, 0, 0x9FC00, 1),
        (20, 0x9FC00, 0x400, 2),
        (20, 0xF0000, 0x10000, 2),
        (20, 0x100000, 0x7EE0000, 1),
        (20, 0x7FE0000, 0x20000, 2),
        (20, 0xFFFC0000, 0x40000, 2),
    ]


def test_command_line_and_loader_name(tmp_path: Path) -> None:
    """The command line is the file's name, a space and the text, as QEMU passes it."""
    start, memory = boot(tmp_path, IMAGE, append="console=com0 -s")
    assert memory.string(memory.words(start.ebx, 5)[4]) == f"{tmp_path}/kernel console=com0 -s"
    assert memory.string(memory.words(start.ebx + 64, 1)[0]) == "vmm"


def test_modules_are_page_aligned_after_the_kernel(tmp_path: Path) -> None:
    """Each module keeps its whole text as its string; an initrd is QEMU's comma-separated list of more."""
    (tmp_path / "a").write_bytes(b"A" * 5000)
    (tmp_path / "b,c").write_bytes(b"B")
    (tmp_path / "empty").write_bytes(b"")
    double = f"{tmp_path}/b,,c x,{tmp_path}/empty"
    start, memory = boot(tmp_path, IMAGE, modules=[f"{tmp_path}/a root  device"], initrd=double)
    count, listed = memory.words(start.ebx + 20, 2)
    found = [memory.words(listed + 16 * index, 4) for index in range(count)]
    assert [memory.read(begin, end - begin) for begin, end, _, _ in found] == [b"A" * 5000, b"B", b""]
    assert [memory.string(text) for _, _, text, _ in found] == [f"{tmp_path}/a root  device", f"{tmp_path}/b,c x", f"{tmp_path}/empty"]
    assert found[0][0] == MIB + 0x1000
    assert all(begin % 4096 == 0 for begin, _, _, _ in found)
    assert not any(MIB <= start.ebx < end for _, end, _, _ in found)


def test_symbol_sections_are_loaded_and_listed(tmp_path: Path) -> None:
    """Flag bit 5: the section headers, with the addresses at which the symbol and string tables were put."""
    image = elf_file(header=multiboot_header(), symbols=[("start", MIB + 12, 4, 0x12, 1)])
    start, memory = boot(tmp_path, image)
    info = memory.words(start.ebx, 11)
    assert info[0] & 1 << 5
    count, size, headers, names = info[7:]
    assert (count, size, names) == (4, 40, 3)
    sections = [memory.words(headers + size * index, 10) for index in range(count)]
    assert sections[1][3] == MIB
    table, strings = sections[2][3], sections[3][3]
    assert memory.words(table + 16, 3) == (1, MIB + 12, 4)
    assert memory.string(strings + 1) == "start"


def test_video_request_is_answered_with_the_text_screen(tmp_path: Path) -> None:
    """A kernel that wishes for a video mode learns of the one screen that there is: 80 by 25 characters at B8000h."""
    image = elf_file(header=multiboot_header(7, [0] * 5 + [0, 1024, 768, 32]))
    start, memory = boot(tmp_path, image)
    assert memory.words(start.ebx, 1)[0] & 1 << 12
    assert struct.unpack("<Q3I2B", memory.read(start.ebx + 88, 22)) == (0xB8000, 160, 80, 25, 16, 2)


def test_a_little_memory_is_enough_for_a_little_kernel(tmp_path: Path) -> None:
    """Without memory above 1 MiB the map has none."""
    image = elf_file(segments=[(0x10000, 0x10000, multiboot_header() + bytes(64), 76)], entry=0x1000C)
    start, memory = boot(tmp_path, image, RecordingMemory(256 << 10))
    assert memory.words(start.ebx, 3)[1:] == (256, 0)
