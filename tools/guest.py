"""The guest that a user named: a bundled kernel by its name, or a file, with what goes with it.

Knows the list of bundled kernels. Opens disks; loads and runs nothing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from guest_kernels import kernels
from vmm.devices.disk import Disk, Point, Storage
from vmm.errors import InputError

MEMORY_MIB = 128
"""Guest memory when nobody says otherwise, as in QEMU."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A kernel and its machine. disk_bytes: size of the empty disk that it gets when no other is given; None for no disk.

    platform: what a bundled kernel needs ("pc" for any file).
    """

    name: str
    path: str
    memory_mib: int
    append: str
    disk_bytes: int | None
    platform: str = "pc"


def choose(kernel: str, memory_mib: int | None = None, append: str | None = None) -> Guest:
    """The guest behind `kernel`; what is None stands as guests.toml has it, or as the default. A bundled name goes before a file's:
    ./hello is a file in any case. Raises InputError, with near matches for a name that is nothing."""
    bundled = kernels("any")
    if kernel not in bundled:
        if not os.path.lexists(kernel) and os.sep not in kernel:
            near = _near(kernel, [name for name, guest in bundled.items() if guest.platform != "xen" or "pv" in kernel])
            raise InputError(f"{kernel or repr(kernel)}: neither a bundled kernel nor a file{near}")
        return Guest(kernel, kernel, memory_mib or MEMORY_MIB, append or "", None)
    guest = bundled[kernel]
    return Guest(
        kernel,
        str(guest.file),
        guest.memory_mib if memory_mib is None else memory_mib,
        guest.command_line if append is None else append,
        guest.disk_bytes,
        guest.platform,
    )


def firmware(path: str, memory_mib: int | None = None) -> Guest:
    """The guest that begins in the BIOS image `path`."""
    return Guest(path, path, memory_mib or MEMORY_MIB, "", None)


def open_disks(guest: Guest, paths: Sequence[str], until: ExitStack) -> list[Storage]:
    """Opens and locks the disk images, or makes the guest's empty one in the temporary folder; `until` closes and removes them."""
    if not paths and guest.disk_bytes:
        image = until.enter_context(tempfile.NamedTemporaryFile(prefix="vmm-disk-"))
        os.truncate(image.fileno(), guest.disk_bytes)
        paths = [image.name]
    disks: list[Storage] = []
    for path in paths:
        disks.append(Disk(path))
        until.callback(disks[-1].close)
    return disks


def overlays(points: Sequence[Point], until: ExitStack) -> list[Storage]:
    """Opens the disks of a snapshot, each under an overlay in the temporary folder; `until` closes and removes those."""
    from vmm.devices.overlay import Overlay, lay  # only these guests need it

    disks: list[Storage] = []
    for point in points:
        folder = until.enter_context(tempfile.TemporaryDirectory(prefix="vmm-disk-"))
        path = os.path.join(folder, "overlay")
        lay(path, point)
        disks.append(Overlay(path))
        until.callback(disks[-1].close)
    return disks


def _near(kernel: str, names: list[str]) -> str:
    from difflib import get_close_matches  # only a mistake needs it

    near = get_close_matches(kernel, names, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(near)}?)" if near else " (see vmm kernels)"
