"""Bad input is one line that names the file and the reason, and memory stays as it was."""

import gzip
import os
import random
from pathlib import Path

import pytest

from tests.unit.boot.images import CODE, MIB, RecordingMemory, boot, elf_file, multiboot_header
from vmm.boot import load
from vmm.errors import InputError

HEADER = multiboot_header()
KERNEL = elf_file(header=HEADER)
RANDOM = random.Random(1).randbytes(4096)

BAD_IMAGES = {
    "empty": (b"", "empty file"),
    "text": (b"#!/bin/sh\necho no kernel\n", "neither multiboot nor ELF"),
    "truncated header": (KERNEL[:30], "truncated ELF header"),
    "truncated ident": (KERNEL[:7], "truncated ELF header"),
    "truncated program headers": (KERNEL[:60], "program headers lie beyond"),
    "truncated segment": (elf_file()[:-2], "lies beyond the end of the file"),
    "64-bit": (KERNEL[:4] + b"\2" + KERNEL[5:18] + b"\x3e" + KERNEL[19:], "64-bit x86-64 kernel, which only --backend hw runs"),
    "x32": (elf_file(machine=62), "32-bit ELF file for x86-64"),
    "ARM": (elf_file(machine=40), "32-bit ELF file for ARM: not a 32-bit x86 kernel"),
    "big-endian": (KERNEL[:5] + b"\2\1" + bytes(9) + b"\0\2\0\x14" + KERNEL[20:], "ELF file for PowerPC"),
    "object file": (elf_file(header=HEADER, kind=1), "relocatable object file"),
    "shared library": (elf_file(kind=3), "position-independent"),
    "core": (elf_file(kind=4), "core dump"),
    "nothing to load": (elf_file(segments=[(MIB, MIB, b"", 0)]), "nothing to load"),
    "smaller in memory": (elf_file(segments=[(MIB, MIB, CODE, 2)]), "larger in the file than in memory"),
    "entry nowhere": (elf_file(entry=0x1234), "the entry point 0x1234 lies in no segment"),
    "outside memory": (elf_file(segments=[(0x80_0000, 0x80_0000, CODE, 4)]), "at 0x800000 (4 bytes) lies outside the guest's memory (2 MiB)"),
    "end outside memory": (elf_file(segments=[(MIB, MIB, CODE, MIB + 1)]), "lies outside"),
    "wraps round": (elf_file(segments=[(0xFFFF_FFF0, 0xFFFF_FFF0, CODE, 0x20)]), "lies outside"),
    "overlapping without end": (elf_file(segments=[(MIB, MIB, CODE, MIB)] * 3), "overlap"),
    "bad checksum": (elf_file(header=multiboot_header(checksum=1)), "multiboot header at 0x54: bad checksum"),
    "required flag": (elf_file(header=multiboot_header(0x8B)), "flag bits 3, 7"),
    "late header": (elf_file(segments=[(MIB, MIB, bytes(8192) + HEADER, 0x3000)]), "multiboot header at 0x2054: beyond the first 8 KiB"),
    "straddling header": (elf_file(segments=[(MIB, MIB, bytes(8192 - 84 - 8) + HEADER, 0x3000)]), "at 0x1ff8: beyond the first 8 KiB"),
    "flat without addresses": (HEADER + CODE, "not ELF and whose header gives no load addresses"),
    "flat, cut header": (multiboot_header(0x10000, [MIB, MIB]), "address fields are missing"),
    "flat, load above header": (multiboot_header(0x10000, [MIB, MIB + 4, 0, 0, MIB]), "does not match"),
    "flat, before the file": (multiboot_header(0x10000, [MIB + 4, MIB, 0, 0, MIB]), "does not match"),
    "flat, truncated": (multiboot_header(0x10000, [MIB, MIB, MIB + 64, 0, MIB]), "truncated"),
    "flat, out of order": (multiboot_header(0x10000, [MIB, MIB, MIB + 32, MIB + 8, MIB]), "out of order"),
    "flat, entry outside": (multiboot_header(0x10000, [MIB, MIB, 0, 0, MIB + 32]), "entry point"),
    "flat, outside memory": (multiboot_header(0x10000, [MIB, MIB, 0, 4 * MIB, MIB]), "outside the guest's memory"),
    "multiboot 2": (0xE85250D6.to_bytes(4, "little") + bytes(60), "multiboot 2"),
    "bzImage": (bytes(0x1FE) + b"\x55\xaa\0\0HdrS" + bytes(64), "truncated Linux setup header"),
    "disk image": (bytes(510) + b"\x55\xaa" + KERNEL, "boot sector"),
    "corrupted gzip": (gzip.compress(RANDOM)[:-8] + bytes(8), "corrupted gzip"),
    "corrupted gzip data": (gzip.compress(KERNEL)[:10] + b"\xff" * 20, "corrupted gzip"),
    "truncated gzip": (gzip.compress(RANDOM)[:500], "truncated gzip"),
    "empty gzip": (gzip.compress(b""), "nothing is in it"),
    "gzip bomb": (gzip.compress(bytes(16 * MIB)), "unpacks to more than the guest's memory (2 MiB)"),
    "gzip bomb of many": (gzip.compress(bytes(MIB)) * 3, "unpacks to more than"),
}


def refused(folder: Path, image: bytes, memory: RecordingMemory | None = None, **options: object) -> str:
    """The message for `image`, after checking that it is one line that names the file and that nothing was written."""
    memory = memory or RecordingMemory()
    with pytest.raises(InputError) as caught:
        boot(folder, image, memory, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert memory.writes == 0
    return message


@pytest.mark.parametrize("image, reason", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_image(tmp_path: Path, image: bytes, reason: str) -> None:
    """Each broken image is refused for its own reason."""
    message = refused(tmp_path, image)
    assert message.startswith(f"{tmp_path}/kernel: ") and reason in message


@pytest.mark.parametrize("size", [0, 1, 4096, 0x9000, MIB])
def test_too_little_memory(tmp_path: Path, size: int) -> None:
    """A kernel at 1 MiB needs more than 1 MiB."""
    assert "outside the guest's memory" in refused(tmp_path, KERNEL, RecordingMemory(size))


def test_no_room_for_tables(tmp_path: Path) -> None:
    """A flat binary that fills all memory leaves no place for the GDT."""
    assert "too little memory" in refused(tmp_path, bytes(0x4000), RecordingMemory(0x4000), address=0)


@pytest.mark.parametrize("address", [-1, 2 * MIB - 3, 1 << 32, 1 << 70])
def test_flat_binary_outside_memory(tmp_path: Path, address: int) -> None:
    """Any number may be given as the address."""
    assert "outside the guest's memory" in refused(tmp_path, CODE, address=address)


def test_options_that_an_image_has_no_use_for(tmp_path: Path) -> None:
    """An option is never ignored in silence."""
    assert "says itself where it goes" in refused(tmp_path, KERNEL, address=MIB)
    assert "takes no command line" in refused(tmp_path, elf_file(), append="x")
    assert "takes no modules" in refused(tmp_path, CODE, address=MIB, modules=["m"])
    assert "takes no modules" in refused(tmp_path, elf_file(), initrd="m")


def test_bad_modules(tmp_path: Path) -> None:
    """A module that is absent, unnamed or too large is named instead of the kernel."""
    (tmp_path / "big").write_bytes(bytes(3 * MIB))
    (tmp_path / "tight").write_bytes(bytes(MIB))
    assert refused(tmp_path, KERNEL, modules=["nowhere a b"]) == "nowhere: no such file or directory"
    assert "names no file" in refused(tmp_path, KERNEL, modules=[""])
    assert "names no file" in refused(tmp_path, KERNEL, initrd="")
    assert "larger than the guest's memory" in refused(tmp_path, KERNEL, modules=[f"{tmp_path}/big"])
    assert "no room for module" in refused(tmp_path, KERNEL, modules=[f"{tmp_path}/tight"])
    assert "is a directory" in refused(tmp_path, KERNEL, modules=[str(tmp_path)])


def test_text_that_c_cannot_hold(tmp_path: Path) -> None:
    """A NUL character or half a surrogate pair in an option is the user's mistake, not a traceback."""
    assert "NUL" in refused(tmp_path, KERNEL, append="a\0b")
    assert "no bytes" in refused(tmp_path, KERNEL, append="\ud800")
    assert "not a file name" in refused(tmp_path, KERNEL, modules=["a\0b"])


def test_unreadable_files(tmp_path: Path) -> None:
    """What is no regular file, or not there, is refused without waiting for it."""
    os.mkfifo(tmp_path / "fifo")
    for path, reason in (
        (str(tmp_path), "is a directory"),
        (f"{tmp_path}/absent", "no such file or directory"),
        (f"{tmp_path}/fifo", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (f"{tmp_path}/{'x' * 300}", "file name too long"),
        ("", "no such file"),
    ):
        with pytest.raises(InputError, match=reason):
            load(path, RecordingMemory())
