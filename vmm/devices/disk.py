"""A disk image: a raw file on the host, read and written by sector.

Knows the file, its lock and the host's errors. Must not know what controller it hangs on, nor which guest uses it.
"""

import errno
import fcntl
import os
import stat
from typing import NamedTuple, Protocol

from vmm.errors import InputError

SECTOR = 512
"""Bytes."""


class DiskError(Exception):
    """The host could not do it (an I/O error, a full disk, a file cut short): the drive's controller reports an error to the guest."""


class Point(NamedTuple):
    """A moment of a disk that can be gone back to: an image that is only read (length 0), or an overlay whose log was so long."""

    path: str
    length: int


class Storage(Protocol):
    """What a drive keeps its sectors in: `sectors` of 512 bytes. read, write and flush raise DiskError."""

    path: str

    @property
    def sectors(self) -> int: ...

    @property
    def read_only(self) -> bool: ...

    def read(self, lba: int, count: int) -> bytes: ...

    def write(self, lba: int, data: bytes | bytearray | memoryview) -> None: ...

    def flush(self) -> None: ...

    def point(self) -> Point: ...

    def close(self) -> None: ...


class Disk:
    """A raw image of `sectors` sectors of 512 bytes, locked against every other VM until it is closed.

    A writable disk excludes all others; read-only ones share the image with each other.
    """

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        """Opens and locks `path`. Raises InputError("PATH: reason") when it is not there, may not be opened, is not a regular file, is
        locked by another, or has a size that is not a whole number of sectors, at least one."""
        self.path = path
        self.read_only = read_only
        self._file = open_file(path, read_only)
        try:
            lock_file(path, self._file, read_only)
            self.sectors = _sectors(path, self._file)
        except InputError:
            self.close()
            raise

    def read(self, lba: int, count: int) -> bytes:
        """`count` sectors from sector `lba` on, all of them or DiskError."""
        self._check(lba, count)
        data = self._pread(count * SECTOR, lba * SECTOR)
        while len(data) < count * SECTOR:
            more = self._pread(count * SECTOR - len(data), lba * SECTOR + len(data))
            if not more:
                raise DiskError(f"{self.path}: the file has become shorter")
            data += more
        return data

    def write(self, lba: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data`, a whole number of sectors, from sector `lba` on. After a DiskError some of it may be written."""
        self._check(lba, len(data) // SECTOR)
        if self.read_only:
            raise DiskError(f"{self.path}: read-only")
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(self._file, memoryview(data)[done:], lba * SECTOR + done)
            except OSError as error:
                raise DiskError(f"{self.path}: {error.strerror}") from error

    def flush(self) -> None:
        """Return when everything written is on the host's medium (fsync)."""
        if self._file < 0:
            raise DiskError(f"{self.path}: closed")  # os.fsync would call -1 a ValueError
        try:
            os.fsync(self._file)
        except OSError as error:
            # Some file systems (a read-only mount, some FUSE ones) have nothing to flush and say so.
            if error.errno not in (errno.EINVAL, errno.EROFS):
                raise DiskError(f"{self.path}: {error.strerror}") from error

    def point(self) -> Point:
        """This moment. Raises DiskError for an image that is written in place: there is no way back to it."""
        if not self.read_only:
            raise DiskError(f"{self.path}: is written in place: put an overlay on it")
        return Point(self.path, 0)

    def close(self) -> None:
        """Let go of the file and its lock; twice is the same as once. Every later access is a DiskError."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _check(self, lba: int, count: int) -> None:
        if lba < 0 or count < 0 or lba + count > self.sectors:
            raise DiskError(f"{self.path}: sectors {lba}+{count} of {self.sectors}")

    def _pread(self, size: int, at: int) -> bytes:
        try:
            return os.pread(self._file, size, at)
        except OSError as error:
            raise DiskError(f"{self.path}: {error.strerror}") from error


def open_file(path: str, read_only: bool) -> int:
    """A descriptor of a regular file. Raises InputError."""
    try:
        # Asked before opening: to open a FIFO waits, and to open a device can do things.
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{path}: is a directory")
        if not stat.S_ISREG(mode):
            raise InputError(f"{path}: not a regular file")
        return os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{path or repr(path)}: {(error.strerror or 'cannot be opened').lower()}") from error
    except ValueError:  # a NUL byte: no such name can exist
        raise InputError(f"{path!r}: not a file name") from None


def lock_file(path: str, file: int, read_only: bool) -> None:
    """Locks an open file against other VMs: those that write against all, those that read against those that write. Raises InputError."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{path}: locked: another virtual machine uses it") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be locked: {error.strerror}") from error


def _sectors(path: str, file: int) -> int:
    size = os.fstat(file).st_size
    if size == 0:
        raise InputError(f"{path}: empty file")
    if size % SECTOR:
        raise InputError(f"{path}: {size} bytes, not a multiple of {SECTOR}")
    return size // SECTOR
