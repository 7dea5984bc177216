"""The directory of a VM: where its configuration, disks, snapshots, log and sockets are, who holds it, and which overlay each disk goes on in.

Knows names and files. A VM that runs holds the lock of its directory. Starts nothing.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Sequence

from vmm.devices.disk import Point, Storage
from vmm.devices.overlay import Overlay, lay
from vmm.errors import InputError
from vmm.store.config import Config, parse, text_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_OVERLAY = re.compile(r"disk(\d)\.(\d+)\.overlay")
CONFIG, LOG, CONSOLE_LOG, LOCK, SNAPSHOTS = "vm.toml", "vm.log", "console.log", "lock", "snapshots"


def home() -> str:
    """The folder that the directories of all VMs are in: VMM_HOME, or one of the user's."""
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.environ.get("VMM_HOME") or os.path.join(data, "vmm")


def checked(name: str, what: str = "a VM") -> str:
    """A name that can be one of a file of ours. Raises InputError."""
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r}: no name for {what}: letters, digits, '-', '_' and '.', at most 64")
    return name


def all_directories() -> Iterator[Directory]:
    """All VMs that there are, by name."""
    try:
        names = sorted(os.listdir(home()))
    except OSError:
        return
    for name in names:
        if _NAME.fullmatch(name) and os.path.exists(os.path.join(home(), name, CONFIG)):
            yield Directory(name)


class Directory:
    """The directory of the VM `name`, which need not exist."""

    def __init__(self, name: str) -> None:
        self.name = checked(name)
        self.path = os.path.join(home(), name)
        self._lock: int | None = None

    def file(self, name: str) -> str:
        """The path of a file in it."""
        return os.path.join(self.path, name)

    def create(self, config: Config, disk_bytes: int = 0) -> None:
        """Makes it, with an empty disk of so many bytes, if not 0. Raises InputError."""
        try:
            os.makedirs(home(), exist_ok=True)
            os.mkdir(self.path)
        except FileExistsError:
            raise InputError(f"{self.name}: there is a VM of that name already") from None
        except OSError as error:
            raise InputError(f"{self.path}: {(error.strerror or str(error)).lower()}") from None
        try:
            os.mkdir(self.file(SNAPSHOTS))
            if disk_bytes:
                with open(self.file("disk.img"), "xb") as disk:
                    disk.truncate(disk_bytes)
            with open(self.file(CONFIG), "x", encoding="utf-8") as file:
                file.write(text_of(config))
        except OSError as error:
            shutil.rmtree(self.path, ignore_errors=True)
            raise InputError(f"{self.path}: {(error.strerror or str(error)).lower()}") from None

    def config(self) -> Config:
        """Its configuration. Raises InputError."""
        path = self.file(CONFIG)
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read(1 << 20)
        except FileNotFoundError:
            raise InputError(f"{self.name}: no such VM (see vmm ls)") from None
        except UnicodeDecodeError:
            raise InputError(f"{path}:1: not UTF-8") from None
        except OSError as error:
            raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from None
        return parse(path, text)

    # -- who holds it --------------------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Takes the lock, for the life of this process. Raises InputError when another process has it."""
        file = self._open_lock()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise InputError(f"{self.name}: is running already") from None
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(file)
            raise InputError(f"{self.file(LOCK)}: {(error.strerror or str(error)).lower()}") from None
        self._lock = file

    def holder(self) -> int | None:
        """The process that runs the VM, or None."""
        file = self._open_lock()
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(file, 32, 0).strip()
            return int(text) if text.isdigit() else 0
        finally:
            os.close(file)
        return None

    def wait_until_free(self) -> None:
        """Returns when no process runs the VM any more."""
        file = self._open_lock()
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
        finally:
            os.close(file)

    def _open_lock(self) -> int:
        try:
            return os.open(self.file(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise InputError(f"{self.name}: no such VM (see vmm ls)") from None
        except OSError as error:
            raise InputError(f"{self.file(LOCK)}: {(error.strerror or str(error)).lower()}") from None

    # -- disks ---------------------------------------------------------------------------------------------------------------------

    def open_disks(self, config: Config) -> list[Storage]:
        """The disks as the VM left them: each by its newest overlay, the first of which lies on the raw image. Raises InputError."""
        opened: list[Storage] = []
        try:
            for number, image in enumerate(config.disks):
                newest = self._newest(number)
                if not newest:
                    self._lay(number, Point(os.path.join(self.path, image), 0))
                opened.append(Overlay(self._overlay(number, self._newest(number))))
        except InputError:
            close(opened)
            raise
        return opened

    def lay_disks(self, points: Sequence[Point]) -> list[Storage]:
        """New overlays on the disks of a snapshot, from now on the newest. Raises InputError, and then the newest are those of before."""
        laid: list[str] = []
        opened: list[Storage] = []
        try:
            for number, point in enumerate(points):
                laid.append(self._lay(number, point))
                opened.append(Overlay(laid[-1]))
        except InputError:
            close(opened)
            for path in laid:
                os.unlink(path)
            raise
        return opened

    def drop_disks(self, disks: Sequence[Storage]) -> None:
        """Closes overlays that were just laid, and takes them away: the newest are those of before."""
        close(disks)
        for disk in disks:
            os.unlink(disk.path)

    def _lay(self, number: int, point: Point) -> str:
        path = self._overlay(number, self._newest(number) + 1)
        lay(path, point)
        return path

    def _overlay(self, number: int, version: int) -> str:
        return self.file(f"disk{number}.{version}.overlay")

    def _newest(self, number: int) -> int:
        """The version of a disk's newest overlay, 0 for none."""
        found = (_OVERLAY.fullmatch(name) for name in os.listdir(self.path))
        return max((int(one[2]) for one in found if one and int(one[1]) == number), default=0)

    # -- snapshots -----------------------------------------------------------------------------------------------------------------

    def snapshot(self, name: str) -> str:
        """The file of a snapshot."""
        return os.path.join(self.file(SNAPSHOTS), checked(name, "a snapshot") + ".snapshot")

    def snapshots(self) -> list[str]:
        """The names of all snapshots, the oldest first."""
        try:
            with os.scandir(self.file(SNAPSHOTS)) as found:
                files = sorted((entry.stat().st_mtime_ns, entry.name) for entry in found if entry.name.endswith(".snapshot"))
        except OSError:
            return []
        return [name.removesuffix(".snapshot") for _, name in files]

    def next_snapshot(self) -> str:
        """A name that no snapshot has."""
        taken, number = set(self.snapshots()), 1
        while f"s{number}" in taken:
            number += 1
        return f"s{number}"


def close(disks: Sequence[Storage]) -> None:
    """Closes disks."""
    for disk in disks:
        disk.close()
