"""BIOS images: which files are some, where the CPU starts, and what firmware is told."""

import struct
from pathlib import Path

import pytest

from vmm.boot.bios import LARGEST, Bios, read_bios
from vmm.errors import InputError


@pytest.mark.parametrize("size", (0, 1, 0xFFFF, 0x18000, LARGEST + 0x10000))
def test_wrong_sizes(tmp_path: Path, size: int) -> None:
    """One line that names the file."""
    file = tmp_path / "bios"
    file.write_bytes(bytes(size))
    with pytest.raises(InputError, match=f"^{file}: .* BIOS image"):
        read_bios(str(file))


def test_the_vga_bios_beside_it(tmp_path: Path) -> None:
    """Is given to the firmware when it is there."""
    (tmp_path / "bios").write_bytes(bytes(0x20000))
    alone = read_bios(str(tmp_path / "bios"))
    (tmp_path / "vgabios-isavga.bin").write_bytes(b"\x55\xaa")
    both = read_bios(str(tmp_path / "bios"))
    assert (alone.vga_bios, both.vga_bios) == (b"", b"\x55\xaa")
    assert "vgaroms/vgabios-isavga.bin" in both.files(1 << 24, 0x3F8)
    assert sorted(alone.files(1 << 24, 0x3F8)) == ["etc/e820", "etc/sercon-port"]


def test_the_state_after_reset() -> None:
    """Real mode at F000:FFF0; memory and console as firmware finds them."""
    bios = Bios("bios", bytes(0x10000))
    start = bios.start()
    assert (start.kind, start.cs, start.entry, start.edx >> 8) == ("bios", 0xF000, 0xFFF0, 6)
    assert struct.unpack("<QQI", bios.files(0x8000000, 0x3F8)["etc/e820"]) == (0, 0x8000000, 1)
