"""Disk images: whole sectors in and out, one owner at a time, and every way of not being an image."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.devices.disk import SECTOR, Disk, DiskError
from vmm.errors import InputError


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Eight sectors, each full of its number."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([i]) * SECTOR for i in range(8)))
    return path


def test_what_is_written_is_read_and_stays(image: Path) -> None:
    """Sectors go to their place in the file and nowhere else."""
    disk = Disk(str(image))
    assert disk.sectors == 8
    disk.write(3, b"\xaa" * 2 * SECTOR)
    disk.flush()
    assert disk.read(2, 4) == b"\x02" * SECTOR + b"\xaa" * 2 * SECTOR + b"\x05" * SECTOR
    disk.close()
    disk.close()
    assert image.read_bytes()[3 * SECTOR : 5 * SECTOR] == b"\xaa" * 2 * SECTOR
    assert image.stat().st_size == 8 * SECTOR


def test_one_owner(image: Path) -> None:
    """A second owner is refused until the first lets go; readers share."""
    first = Disk(str(image))
    for read_only in (False, True):
        with pytest.raises(InputError, match=r"disk\.img: locked"):
            Disk(str(image), read_only=read_only)
    first.close()
    readers = [Disk(str(image), read_only=True) for _ in range(2)]
    with pytest.raises(InputError, match="locked"):
        Disk(str(image))
    for reader in readers:
        reader.close()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.touch(), "empty"),
        (lambda path: path.write_bytes(b"x" * 513), "not a multiple of 512"),
    ],
)
def test_what_is_no_image(tmp_path: Path, make: Callable[[Path], object], reason: str) -> None:
    """One line that names the file and the reason; nothing waits, nothing is written."""
    path = tmp_path / "thing"
    make(path)
    with pytest.raises(InputError) as error:
        Disk(str(path))
    assert str(error.value).startswith(f"{path}: ") and reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_unreadable(image: Path) -> None:
    """No permission is bad input."""
    image.chmod(0)
    with pytest.raises(InputError, match="permission denied"):
        Disk(str(image))


def test_a_name_that_cannot_be() -> None:
    """A NUL byte in a name is bad input, not a traceback."""
    with pytest.raises(InputError, match="not a file name"):
        Disk("a\0b")


def test_errors_of_the_host(image: Path) -> None:
    """Outside the disk, cut short behind our back, read-only, closed: each is a DiskError."""
    disk = Disk(str(image))
    for lba, count in ((8, 1), (7, 2), (-1, 1)):
        with pytest.raises(DiskError):
            disk.read(lba, count)
    with pytest.raises(DiskError):
        disk.write(8, bytes(SECTOR))
    os.truncate(image, 4 * SECTOR + 100)
    with pytest.raises(DiskError, match="shorter"):
        disk.read(4, 1)
    disk.close()
    for act in (lambda: disk.read(0, 1), lambda: disk.write(0, bytes(SECTOR)), disk.flush):
        with pytest.raises(DiskError):
            act()


def test_read_only(image: Path) -> None:
    """A read-only disk reads, and refuses writes."""
    disk = Disk(str(image), read_only=True)
    assert disk.read(1, 1) == b"\x01" * SECTOR
    with pytest.raises(DiskError, match="read-only"):
        disk.write(1, bytes(SECTOR))
    disk.close()


def test_a_full_disk() -> None:
    """No space left on the host is a DiskError."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    disk = Disk.__new__(Disk)  # the constructor refuses a device, rightly
    disk.path, disk.read_only, disk.sectors = "/dev/full", False, 1
    disk._file = os.open("/dev/full", os.O_RDWR)
    with pytest.raises(DiskError, match="[Nn]o space"):
        disk.write(0, bytes(SECTOR))
    disk.close()
