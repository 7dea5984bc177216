"""A disk overlay: what was written to a disk since a point, as a log that only grows; what stands below it is only read.

Below lies a raw image, or another overlay as it was when its log had some length: so a snapshot of a disk is a length, and going back to it is a new
overlay. Each record has a checksum. What a flush has reported durable is never given up: a damaged record there refuses the file; behind it,
where a host that died may have left half a record, the log ends at the first bad one. Knows files and their format, no controller.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib

from vmm.devices.disk import SECTOR, Disk, DiskError, Point, lock_file, open_file
from vmm.errors import InputError

_MAGIC = b"VMMDISK\x01"
_HEADER = struct.Struct("<8sQQH")  # magic and version, sectors, bytes of the parent's log (0: a raw image), bytes of the parent's name behind it
_DURABLE = struct.Struct("<QI")  # bytes of the log that a flush has promised, their checksum
_RECORD = struct.Struct("<IQI")  # checksum of the rest and of the data, first sector, sectors
_LOG = 8192  # the header's place is a page, that of what is durable another
_MOST = 4096  # bytes of a parent's name, and sectors of a record


class Overlay:
    """An overlay, opened and locked against every other VM until it is closed. Does what a `Disk` does. origin: what it lies on."""

    read_only = False

    def __init__(self, path: str) -> None:
        """Opens `path` and what lies below it. Raises InputError("PATH: reason")."""
        self.path = path
        self._files: list[int] = []
        self._base: Disk | None = None
        self._index: dict[int, int] = {}  # sector -> offset in a file, that file's number above 48 bits
        try:
            self._file = open_file(path, read_only=False)
            self._files.append(self._file)
            lock_file(path, self._file, read_only=False)
            self.sectors, self.origin = _read_header(path, self._file)
            self._end = self._replay(path, 0, None)
            self._open_below()
        except InputError:
            self.close()
            raise

    def _open_below(self) -> None:
        """Opens what the overlay lies on, down to the raw image; what is nearer hides what is farther."""
        point, seen = self.origin, {os.path.realpath(self.path)}
        while point.length:
            if os.path.realpath(point.path) in seen:
                raise InputError(f"{point.path}: lies on itself")
            seen.add(os.path.realpath(point.path))
            file = open_file(point.path, read_only=True)
            self._files.append(file)
            sectors, origin = _read_header(point.path, file)
            if sectors != self.sectors:
                raise InputError(f"{point.path}: has {sectors} sectors, not {self.sectors}")
            self._replay(point.path, len(self._files) - 1, point.length)
            point = origin
        self._base = Disk(point.path, read_only=True)
        if self._base.sectors != self.sectors:
            raise InputError(f"{point.path}: has {self._base.sectors} sectors, not {self.sectors}")

    def _replay(self, path: str, number: int, limit: int | None) -> int:
        """Takes the records of a file into the index, up to `limit` bytes of its log; returns where the log ends in the file."""
        file, index, first = self._files[number], self._index, number == 0
        durable, checksum = _DURABLE.unpack(os.pread(file, _DURABLE.size, _LOG // 2).ljust(_DURABLE.size, b"\0"))
        if checksum != zlib.crc32(durable.to_bytes(8, "little")):
            raise InputError(f"{path}: corrupt: the checksum of its length is wrong")
        at, end = _LOG, os.fstat(file).st_size if limit is None else _LOG + limit
        sure = _LOG + durable if limit is None else end
        mine: dict[int, int] = {}
        while at < end:
            found = _record(file, at, end, self.sectors)
            if found is None:
                break
            lba, count = found
            for n in range(count):
                mine[lba + n] = number << 48 | at + _RECORD.size + n * SECTOR
            at += _RECORD.size + count * SECTOR
        if at < sure:
            raise InputError(f"{path}: corrupt: a record that was durable is damaged, at byte {at}")
        if first:
            index.update(mine)
        else:
            for lba, place in mine.items():
                index.setdefault(lba, place)
        return at

    @property
    def written(self) -> bool:
        """Whether anything was, since it was laid."""
        return self._end > _LOG

    def read(self, lba: int, count: int) -> bytes:
        """`count` sectors from sector `lba` on, all of them or DiskError."""
        self._check(lba, count)
        index, parts = self._index, []
        while count:
            place, run = index.get(lba), 1
            if place is None:
                while run < count and lba + run not in index:
                    run += 1
                assert self._base is not None
                parts.append(self._base.read(lba, run))
            else:
                while run < count and index.get(lba + run) == place + run * SECTOR:
                    run += 1
                parts.append(self._read(place, run * SECTOR))
            lba, count = lba + run, count - run
        return b"".join(parts)

    def write(self, lba: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data`, a whole number of sectors, from sector `lba` on. After a DiskError some of it may be written."""
        self._check(lba, len(data) // SECTOR)
        for first in range(0, len(data), _MOST * SECTOR):
            self._append(lba + first // SECTOR, bytes(data[first : first + _MOST * SECTOR]))

    def _append(self, lba: int, data: bytes) -> None:
        count = len(data) // SECTOR
        body = _RECORD.pack(0, lba, count)[4:] + data
        record = zlib.crc32(body).to_bytes(4, "little") + body
        done = 0
        try:
            while done < len(record):
                done += os.pwrite(self._file, memoryview(record)[done:], self._end + done)
        except OSError as error:  # the next record takes the place of what is there of this one
            raise DiskError(f"{self.path}: {error.strerror}") from error
        first = self._end + _RECORD.size
        for n in range(count):
            self._index[lba + n] = first + n * SECTOR
        self._end += len(record)

    def flush(self) -> None:
        """Return when everything written is on the host's medium (fsync), and known to be."""
        if not self._files:
            raise DiskError(f"{self.path}: closed")
        length = self._end - _LOG
        try:
            os.fdatasync(self._file)
            os.pwrite(self._file, _DURABLE.pack(length, zlib.crc32(length.to_bytes(8, "little"))), _LOG // 2)
            os.fdatasync(self._file)
        except OSError as error:
            raise DiskError(f"{self.path}: {error.strerror}") from error

    def point(self) -> Point:
        """This moment, durable: an overlay can be laid on it at any time. Raises DiskError."""
        self.flush()
        return self.origin if self._end == _LOG else Point(self.path, self._end - _LOG)

    def close(self) -> None:
        """Let go of all files and their locks; twice is the same as once. Every later access is a DiskError."""
        for file in self._files:
            os.close(file)
        self._files.clear()
        self._index.clear()
        if self._base is not None:
            self._base.close()

    def _check(self, lba: int, count: int) -> None:
        if not self._files:
            raise DiskError(f"{self.path}: closed")
        if lba < 0 or count < 0 or lba + count > self.sectors:
            raise DiskError(f"{self.path}: sectors {lba}+{count} of {self.sectors}")

    def _read(self, place: int, size: int) -> bytes:
        try:
            data = os.pread(self._files[place >> 48], size, place & (1 << 48) - 1)
        except OSError as error:
            raise DiskError(f"{self.path}: {error.strerror}") from error
        if len(data) != size:
            raise DiskError(f"{self.path}: the file has become shorter")
        return data


def lay(path: str, below: Point) -> None:
    """Makes an empty overlay on `below`, durable. Raises InputError when the file cannot be made, or is there already, or there is nothing below.

    It is written beside its place, so that no half of one is ever there.
    """
    sectors = _sectors(below)
    name = os.fsencode(os.path.relpath(below.path, os.path.dirname(path) or "."))
    head = _HEADER.pack(_MAGIC, sectors, below.length, len(name)) + name
    if len(name) > _MOST - _HEADER.size - 4:
        raise InputError(f"{below.path}: the name is too long")
    image = bytearray(_LOG)
    image[: len(head) + 4] = head + struct.pack("<I", zlib.crc32(head))
    _DURABLE.pack_into(image, _LOG // 2, 0, zlib.crc32(bytes(8)))
    beside = f"{path}.{os.getpid()}.part"
    try:
        try:
            with open(beside, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(image)
                file.flush()
                os.fsync(file.fileno())
            os.link(beside, path)  # which no file may have yet
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error


def _record(file: int, at: int, end: int, sectors: int) -> tuple[int, int] | None:
    """First sector and number of sectors of the record at a place; None when there is no whole and undamaged one."""
    head = os.pread(file, _RECORD.size, at)
    if len(head) < _RECORD.size:
        return None
    checksum, lba, count = _RECORD.unpack(head)
    behind = at + _RECORD.size + count * SECTOR
    if not 0 < count <= _MOST or behind > end or lba + count > sectors:
        return None
    data = os.pread(file, count * SECTOR, at + _RECORD.size)
    if len(data) != count * SECTOR or zlib.crc32(data, zlib.crc32(head[4:])) != checksum:
        return None
    return lba, count


def _read_header(path: str, file: int) -> tuple[int, Point]:
    """Sectors, and what lies below. Raises InputError."""
    head = os.pread(file, _HEADER.size + _MOST, 0)
    if head[:7] != _MAGIC[:7] or len(head) < _HEADER.size:
        raise InputError(f"{path}: not a disk overlay")
    if head[7] != _MAGIC[7]:
        raise InputError(f"{path}: a disk overlay of format {head[7]}, which this version does not read")
    _, sectors, length, size = _HEADER.unpack_from(head)
    name = head[_HEADER.size : _HEADER.size + size]
    (checksum,) = struct.unpack("<I", head[_HEADER.size + size :][:4].ljust(4, b"\0"))
    if size > _MOST - 4 or zlib.crc32(head[: _HEADER.size + size]) != checksum:
        raise InputError(f"{path}: corrupt: the checksum of its header is wrong")
    return sectors, Point(os.path.join(os.path.dirname(path), os.fsdecode(name)), length)


def _sectors(point: Point) -> int:
    """How many sectors a disk has. Raises InputError."""
    if not point.length:
        disk = Disk(point.path, read_only=True)
        disk.close()
        return disk.sectors
    file = open_file(point.path, read_only=True)
    try:
        return _read_header(point.path, file)[0]
    finally:
        os.close(file)
