"""Disk overlays: what is read is what was written last; points to go back to; what a died host leaves; damage is refused."""

import os
import random
from pathlib import Path

import pytest

from vmm.devices.disk import SECTOR, Disk, DiskError, Point
from vmm.devices.overlay import Overlay, lay
from vmm.errors import InputError

SECTORS = 64


def raw(tmp_path: Path) -> Path:
    """An image whose sectors say which they are."""
    path = tmp_path / "base.img"
    path.write_bytes(b"".join(bytes([n]) * SECTOR for n in range(SECTORS)))
    return path


def fresh(tmp_path: Path, name: str = "a.disk", below: Point | None = None) -> Overlay:
    base = below or Point(str(raw(tmp_path)), 0)
    lay(str(tmp_path / name), base)
    return Overlay(str(tmp_path / name))


def test_reads_are_what_was_written_last(tmp_path: Path) -> None:
    """Random reads and writes against a plain copy, opened anew now and then; the image below stays as it was."""
    chance, overlay = random.Random(5), fresh(tmp_path)
    before = raw(tmp_path).read_bytes()
    model = bytearray(before)
    for n in range(400):
        lba = chance.randrange(SECTORS)
        count = chance.randrange(SECTORS - lba + 1)
        if chance.randrange(2):
            data = chance.randbytes(count * SECTOR)
            overlay.write(lba, data)
            model[lba * SECTOR : (lba + count) * SECTOR] = data
        assert overlay.read(lba, count) == model[lba * SECTOR : (lba + count) * SECTOR]
        if n % 100 == 99:
            overlay.close()
            overlay = Overlay(overlay.path)
    assert overlay.read(0, SECTORS) == model
    overlay.close()
    assert raw(tmp_path).read_bytes() == before


def test_a_point_can_be_gone_back_to(tmp_path: Path) -> None:
    """While the overlay itself goes on: three layers, each seen as it was."""
    first = fresh(tmp_path)
    first.write(1, b"1" * SECTOR)
    point = first.point()
    first.write(1, b"x" * SECTOR)
    second = fresh(tmp_path, "b.disk", point)
    assert second.origin == point and second.read(0, 3) == bytes(SECTOR) + b"1" * SECTOR + b"\2" * SECTOR
    assert second.point() == point  # nothing was written: the same moment
    second.write(2, b"2" * SECTOR)
    third = fresh(tmp_path, "c.disk", second.point())
    second.write(2, b"y" * SECTOR)
    assert third.read(1, 2) == b"1" * SECTOR + b"2" * SECTOR
    assert first.read(1, 1) == b"x" * SECTOR
    for overlay in (first, second, third):
        overlay.close()


def test_half_a_record_at_the_end_is_no_record(tmp_path: Path) -> None:
    """Cut off at every byte behind what was flushed: all of what was durable is there, and later records whole or not at all."""
    overlay = fresh(tmp_path)
    overlay.write(0, b"d" * SECTOR)
    overlay.flush()
    durable = os.path.getsize(overlay.path)
    overlay.write(0, b"l" * SECTOR)
    overlay.close()
    whole = Path(overlay.path).read_bytes()
    for cut in range(durable, len(whole)):
        Path(overlay.path).write_bytes(whole[:cut])
        with_cut = Overlay(overlay.path)
        assert with_cut.read(0, 1) == b"d" * SECTOR
        with_cut.write(0, b"n" * SECTOR)
        with_cut.close()
        again = Overlay(overlay.path)
        assert again.read(0, 1) == b"n" * SECTOR
        again.close()


def test_damage_to_what_was_durable_is_refused(tmp_path: Path) -> None:
    """One bit anywhere that means something, or a file that is too short: an error that names the file, or nothing has changed."""
    overlay = fresh(tmp_path)
    overlay.write(3, b"d" * SECTOR)
    overlay.flush()
    overlay.close()
    good, refused = Path(overlay.path).read_bytes(), 0
    for at in [*range(60), *range(4096, 4108), *range(8192, len(good), 13)]:
        Path(overlay.path).write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        try:
            damaged = Overlay(overlay.path)
        except InputError as error:
            assert str(error).startswith(overlay.path)
            refused += 1
        else:
            assert damaged.read(3, 1) == b"d" * SECTOR
            damaged.close()
    assert refused > 80
    for size in (0, 5, 100, 4100, 8192, len(good) - 1):
        Path(overlay.path).write_bytes(good[:size])
        with pytest.raises(InputError, match=overlay.path):
            Overlay(overlay.path)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    """Locked, of another format, a parent that is gone or another, an image that is used by a writer."""
    overlay = fresh(tmp_path)
    with pytest.raises(InputError, match="locked"):
        Overlay(overlay.path)
    with pytest.raises(InputError, match="locked"):
        Disk(str(tmp_path / "base.img"))
    with pytest.raises(InputError, match="exists"):
        lay(overlay.path, overlay.origin)
    overlay.close()
    with pytest.raises(DiskError, match="closed"):
        overlay.read(0, 1)
    newer = Path(overlay.path).read_bytes()
    Path(overlay.path).write_bytes(newer[:7] + b"\2" + newer[8:])
    with pytest.raises(InputError, match="format 2"):
        Overlay(overlay.path)
    Path(overlay.path).write_bytes(newer)
    (tmp_path / "base.img").unlink()
    with pytest.raises(InputError, match="no such file"):
        Overlay(overlay.path)
    (tmp_path / "base.img").write_bytes(bytes(SECTOR))
    with pytest.raises(InputError, match="1 sectors, not 64"):
        Overlay(overlay.path)


def test_an_overlay_on_itself_is_refused(tmp_path: Path) -> None:
    """Rather than followed for ever."""
    overlay = fresh(tmp_path)
    overlay.write(0, bytes(SECTOR))
    point = overlay.point()
    overlay.close()
    lay(str(tmp_path / "b.disk"), point)
    os.rename(tmp_path / "b.disk", tmp_path / "a.disk")
    with pytest.raises(InputError, match="lies on itself"):
        Overlay(str(tmp_path / "a.disk"))


def test_a_disk_written_in_place_has_no_point(tmp_path: Path) -> None:
    """One that is only read has."""
    disk = Disk(str(raw(tmp_path)))
    with pytest.raises(DiskError, match="in place"):
        disk.point()
    disk.close()
    disk = Disk(str(raw(tmp_path)), read_only=True)
    assert disk.point() == Point(disk.path, 0)
    disk.close()
