"""bzImages: the kernel inside is placed where it wants to be, with a zero page that says what there is; broken ones are refused."""

import gzip
import lzma
import struct
from pathlib import Path

import pytest

from tests.unit.boot.images import MIB, RecordingMemory, boot, elf64_file, elf_file
from vmm.boot.linux import is_linux
from vmm.errors import InputError

CODE = b"\xf4" * 64
KERNEL = elf_file(segments=[(0xC000_0000 + 2 * MIB, 2 * MIB, CODE, 0x3000)], entry=2 * MIB)


LONG_KERNEL = elf64_file([(0xFFFF_FFFF_8020_0000, 2 * MIB, CODE, 0x3000)], 2 * MIB, symbols=[("start_kernel", 0xFFFF_FFFF_8020_0010, 8, 0x12, 1)])


def bzimage(payload: bytes, *, version: int = 0x20F, loadflags: int = 1, room: int = 0x10000, xloadflags: int = 0) -> bytes:
    """A bzImage with one setup sector and `payload` at offset 64 of its protected-mode part."""
    protected = bytes(64) + payload + bytes(-(64 + len(payload)) % 16)
    head = bytearray(2 * 512)
    struct.pack_into("<BHI", head, 0x1F1, 1, 0, len(protected) // 16)
    head[0x1FE:0x206] = b"\x55\xaa\xeb\x66HdrS"
    struct.pack_into("<H", head, 0x206, version)
    head[0x211] = loadflags
    struct.pack_into("<I", head, 0x214, MIB)
    struct.pack_into("<IIII", head, 0x22C, 0x7FFF_FFFF, MIB, xloadflags << 16, 255)
    struct.pack_into("<II", head, 0x248, 64, len(payload))
    struct.pack_into("<QI", head, 0x258, 2 * MIB, room)
    return bytes(head) + protected


@pytest.mark.parametrize("pack", (gzip.compress, lzma.compress), ids=("gzip", "xz"))
def test_the_kernel_inside_is_unpacked_and_started(tmp_path: Path, pack: object) -> None:
    """Its segments lie at their physical addresses, ESI leads to a zero page with the command line, the RAM disk and the memory map."""
    assert callable(pack)
    memory, disk = RecordingMemory(8 * MIB), tmp_path / "disk"
    disk.write_bytes(b"RAM disk")
    image = bzimage(pack(KERNEL))
    assert is_linux(image)
    start, _ = boot(tmp_path, image, memory, append="quiet", initrd=str(disk))
    assert (start.entry, start.kind, start.cs, start.ds) == (2 * MIB, "linux", 0x10, 0x18)
    assert memory.read(2 * MIB, 66) == CODE + bytes(2)
    page = memory.read(start.esi, 4096)
    assert page[0x1F1:0x210] == image[0x1F1:0x210]  # the setup header, but for what the loader fills in
    assert page[0x22C:0x266] == image[0x22C:0x266]
    assert page[0x210] == 0xFF
    gpa, size, line = (*struct.unpack_from("<II", page, 0x218), struct.unpack_from("<I", page, 0x228)[0])
    assert memory.read(gpa, size) == b"RAM disk"
    assert memory.string(line) == "quiet"
    assert gpa % 4096 == 0
    ranges = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * n) for n in range(page[0x1E8])]
    assert ranges == [
        (0, 0x9FC00, 1), (0x9FC00, 0x400, 2), (0xF0000, 0x10000, 2), (MIB, 7 * MIB - 0x20000, 1), (8 * MIB - 0x20000, 0x20000, 2)
    ]  # fmt: skip


def test_a_payload_of_another_kind_is_left_to_the_kernels_own_decompressor(tmp_path: Path) -> None:
    """The image is loaded as it is, at the address that it names, and starts there."""
    memory, image = RecordingMemory(8 * MIB), bzimage(b"packed in some other way")
    start, _ = boot(tmp_path, image, memory)
    assert start.entry == MIB
    assert memory.read(MIB, len(image) - 1024) == image[1024:]


@pytest.mark.parametrize("image", (bzimage(gzip.compress(LONG_KERNEL), xloadflags=1), LONG_KERNEL), ids=("bzImage", "vmlinux"))
def test_a_64_bit_kernel_is_entered_in_long_mode(tmp_path: Path, image: bytes) -> None:
    """At its entry, with 64-bit CS, and tables that map the first 4 GiB to themselves; a vmlinux alone gets a zero page too."""
    memory = RecordingMemory(8 * MIB)
    start, _ = boot(tmp_path, image, memory, append="quiet", long_mode=True)
    assert (start.entry, start.kind, start.cs, start.ds) == (2 * MIB, "linux", 0x10, 0x18)
    assert memory.read(2 * MIB, 66) == CODE + bytes(2)
    assert int.from_bytes(memory.read(start.gdt_base + 0x10, 8), "little") == 0x00AF_9B00_0000_FFFF
    (top,) = struct.unpack("<Q", memory.read(start.long_tables, 8))
    assert struct.unpack("<5Q", memory.read(top & ~0xFFF, 40)) == (0x83, 0x4000_0083, 0x8000_0083, 0xC000_0083, 0)
    page = memory.read(start.esi, 4096)
    assert page[0x202:0x206] == b"HdrS"
    assert memory.string(struct.unpack_from("<I", page, 0x228)[0]) == "quiet"
    assert start.symbols.name(0xFFFF_FFFF_8020_0012) == "start_kernel+0x2"


def test_a_64_bit_kernel_that_is_not_unpacked_starts_at_its_64_bit_entry(tmp_path: Path) -> None:
    """512 bytes behind the 32-bit one."""
    start, _ = boot(tmp_path, bzimage(b"packed in some other way", xloadflags=1), RecordingMemory(8 * MIB), long_mode=True)
    assert (start.entry, bool(start.long_tables)) == (MIB + 0x200, True)


@pytest.mark.parametrize(
    ("image", "options", "reason"),
    (
        (bzimage(b"")[:0x240], {}, "truncated Linux setup header"),
        (bzimage(gzip.compress(KERNEL))[:-100], {}, "truncated: "),
        (bzimage(gzip.compress(KERNEL), version=0x205), {}, "Linux boot protocol 2.05: at least 2.06"),
        (bzimage(b"", loadflags=0), {}, "zImage"),
        (bzimage(gzip.compress(KERNEL), room=16 * MIB), {}, "too little memory"),
        (bzimage(gzip.compress(KERNEL)), {"append": "x" * 256}, "the kernel takes 255"),
        (bzimage(gzip.compress(KERNEL)), {"modules": ["file"]}, "takes no modules"),
        (bzimage(gzip.compress(KERNEL)), {"initrd": "big"}, "no room for the initial RAM disk"),
        (bzimage(gzip.compress(KERNEL)), {"initrd": "huge"}, "larger than the guest's memory"),
        (bzimage(gzip.compress(KERNEL)), {"initrd": "absent"}, "absent: no such file"),
        (bzimage(gzip.compress(LONG_KERNEL)), {}, "64-bit x86-64 kernel, which only --backend hw runs"),
        (bzimage(b"packed", xloadflags=1), {}, "64-bit x86-64 kernel, which only --backend hw runs"),
        (LONG_KERNEL, {}, "64-bit x86-64 kernel, which only --backend hw runs"),
        (LONG_KERNEL, {"long_mode": True, "modules": ["file"]}, "takes no modules"),
        (LONG_KERNEL[:100], {"long_mode": True}, "truncated: the program headers"),
        (LONG_KERNEL[:130], {"long_mode": True}, "truncated: the segment"),
    ),
    ids=("header", "body", "old", "zimage", "room", "command line", "modules", "initrd", "huge initrd", "absent initrd",
         "64-bit", "packed 64-bit", "vmlinux", "vmlinux with modules", "vmlinux headers", "vmlinux segment"),  # fmt: skip
)
def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: bytes, options: dict[str, object], reason: str) -> None:
    """One line with the reason, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    Path("big").write_bytes(bytes(7 * MIB))
    Path("huge").write_bytes(bytes(9 * MIB))
    memory = RecordingMemory(8 * MIB)
    with pytest.raises(InputError) as caught:
        boot(tmp_path, image, memory, **options)  # type: ignore[arg-type]
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert memory.writes == 0
