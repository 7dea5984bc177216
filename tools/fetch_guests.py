"""Downloads the Debian kernels that tests run as guests, and says where each one is.

Knows packages and the files in them; uses apt-get and dpkg-deb, which verify what they download. Knows nothing of how a guest is run.
The folder is `guests/` at the project's root, or what environment VMM_GUESTS names; it is kept out of git.

    python -m tools.fetch_guests [DIR]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmm.errors import InputError

_DEFAULT: Final = Path(__file__).resolve().parent.parent / "guests"


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package (as apt names it) and the one file in it that is the guest: a glob pattern below the package's root.

    meta: the package only depends on the one that has the file. alone: nothing else of the package is kept but `extras`, patterns as well.
    """

    package: str
    pattern: str
    what: str
    meta: bool = False
    alone: bool = False
    extras: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Where it is unpacked, below the guests' folder."""
        return self.package.removesuffix(":i386").replace(":", "-")


_NE2000: Final = ("lib/modules/*/kernel/drivers/net/ethernet/8390/8390p.ko", "lib/modules/*/kernel/drivers/net/ethernet/8390/ne.ko")
"""The driver of the network adapter that VMs have, in the order in which it is loaded."""
_SELF_TESTS: Final = tuple(f"lib/modules/*/kernel/lib/test_{name}.ko" for name in ("static_key_base", "static_keys", "user_copy", "bpf"))
"""Modules that test the kernel that they are loaded into."""
GUESTS: Final[Mapping[str, Package]] = {
    "gnumach": Package("gnumach-image-1.8-486:i386", "boot/gnumach-1.8-486.gz", "GNU Mach 1.8, multiboot"),
    "gnumach-xen": Package("gnumach-image-1.8-xen-486:i386", "boot/gnumach-1.8-xen-486.gz", "GNU Mach 1.8 as a 32-bit PAE Xen guest"),
    "linux-pae": Package("linux-image-686-pae:i386", "boot/vmlinuz-*", "Linux for 32-bit PCs with PAE", True, True, _NE2000 + _SELF_TESTS),
    "linux": Package("linux-image-686:i386", "boot/vmlinuz-*", "Linux for 32-bit PCs without PAE", True, True, _NE2000),
    "linux-amd64": Package("linux-image-amd64:amd64", "boot/vmlinuz-*", "Linux for 64-bit PCs", meta=True, alone=True),
    "busybox": Package("busybox-static:i386", "bin/busybox", "user programs for a RAM disk, all in one", alone=True),
    "busybox-amd64": Package("busybox-static:amd64", "bin/busybox", "the same for 64-bit kernels", alone=True),
    "grub-xen": Package("grub-xen-host", "usr/lib/grub-xen/grub-i386-xen.bin", "GRUB as a 32-bit PAE Xen guest"),
}


def guests_folder() -> Path:
    """The folder that `guest` looks in."""
    named = os.environ.get("VMM_GUESTS")
    return Path(named) if named else _DEFAULT


def guest(name: str, folder: Path | None = None) -> Path | None:
    """The kernel file of guest `name`, or None when it has not been downloaded. Raises InputError for a name that is not in GUESTS."""
    if name not in GUESTS:
        raise InputError(f"{name}: no such guest (there are {', '.join(GUESTS)})")
    return _newest(name, GUESTS[name].pattern, folder)


def extras(name: str, folder: Path | None = None) -> list[Path]:
    """What is kept of the package of guest `name` beside its kernel, such as modules; none of it when a part has not been downloaded."""
    found = [_newest(name, pattern, folder) for pattern in GUESTS[name].extras]
    return [path for path in found if path is not None] if None not in found else []


def _newest(name: str, pattern: str, folder: Path | None) -> Path | None:
    found = sorted(((folder or guests_folder()) / GUESTS[name].folder).glob(pattern))
    return found[-1] if found else None


def _complete(name: str, folder: Path) -> Path | None:
    """The kernel file of guest `name` if all is there that belongs to it."""
    return guest(name, folder) if len(extras(name, folder)) == len(GUESTS[name].extras) else None


def fetch(name: str, folder: Path) -> Path:
    """The kernel file of guest `name` in `folder`, downloaded unless it is there. Raises InputError when it cannot be had."""
    present = _complete(name, folder)
    if present is not None:
        return present
    entry = GUESTS[name]
    # A folder of its own beside the others: a download that stops half-way leaves nothing that looks whole.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        package = _dependency(entry.package) if entry.meta else entry.package
        _run(package, ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download", package], scratch)
        archives = list(Path(scratch).glob("*.deb"))
        if len(archives) != 1:
            raise InputError(f"{entry.package}: apt-get download left {len(archives)} packages instead of one")
        unpacked = Path(scratch) / "unpacked"
        _run(entry.package, ["dpkg-deb", "-x", str(archives[0]), str(unpacked)], scratch)
        for pattern in (entry.pattern, *entry.extras):
            if not list(unpacked.glob(pattern)):
                raise InputError(f"{entry.package}: {archives[0].name} has no {pattern}")
        if entry.alone:
            unpacked = _only(unpacked, (entry.pattern, *entry.extras), Path(scratch) / "kept")
        shutil.rmtree(folder / entry.folder, ignore_errors=True)
        unpacked.rename(folder / entry.folder)
    fetched = _complete(name, folder)
    if fetched is None:
        raise InputError(f"{entry.package}: vanished from {folder} while it was unpacked")
    return fetched


def _dependency(package: str) -> str:
    """The first package that a meta package depends on, of the same architecture. Raises InputError."""
    for line in _run(package, ["apt-cache", "show", "--no-all-versions", package]).splitlines():
        if line.startswith("Depends: "):
            return f"{line.split()[1]}:{package.rpartition(':')[2]}"
    raise InputError(f"{package}: depends on nothing")


def _only(unpacked: Path, patterns: Sequence[str], kept: Path) -> Path:
    """A folder with nothing but what matches: an unpacked Linux has 200 MB of modules."""
    for found in [path for pattern in patterns for path in unpacked.glob(pattern)]:
        target = kept / found.relative_to(unpacked)
        target.parent.mkdir(parents=True, exist_ok=True)
        found.rename(target)
    return kept


def prepare() -> None:
    """Makes apt know i386 packages. Raises InputError when it does not and we may not change that."""
    for tool in ("apt-get", "dpkg-deb", "dpkg"):
        if shutil.which(tool) is None:
            raise InputError(f"{tool}: not installed: the guests are Debian packages, fetch them on a Debian machine")
    architectures = _run("dpkg", ["dpkg", "--print-architecture"]) + _run("dpkg", ["dpkg", "--print-foreign-architectures"])
    if "i386" in architectures.split():
        return
    if os.geteuid() != 0:
        raise InputError("i386: apt has no i386 packages; as root: dpkg --add-architecture i386 && apt-get update")
    _run("i386", ["dpkg", "--add-architecture", "i386"])
    with suppress(InputError):  # a mirror in the middle of an update fails one list of many: what is then missing, the download names
        _run("i386", ["apt-get", "-q", "update"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 0 when every guest is there, else 2 after one line for each that is not."""
    parser = argparse.ArgumentParser(prog="python -m tools.fetch_guests", description="Download the Debian kernels that tests run as guests.")
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="where to (default: $VMM_GUESTS, else guests/)")
    folder: Path = parser.parse_args(arguments).folder or guests_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(_complete(name, folder) is None for name in GUESTS):
            prepare()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{folder}: {error.strerror}", file=sys.stderr)
        return 2
    return max(_report(name, folder) for name in GUESTS)


def _report(name: str, folder: Path) -> int:
    try:
        print(f"{name:13} {fetch(name, folder)}", flush=True)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{name}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _run(what: str, command: Sequence[str], folder: str | None = None) -> str:
    """The standard output of `command`. Raises InputError "WHAT: reason" with the command's own last complaint."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False)
    if result.returncode:
        complaints = [line for line in result.stderr.splitlines() if line.strip()] or [f"exit status {result.returncode}"]
        raise InputError(f"{what}: {command[0]} failed: {complaints[-1].strip()}")
    return result.stdout


if __name__ == "__main__":
    sys.exit(main())
