"""`vmm create`: from what was asked for to a VM's directory.

Knows what can be checked before the VM runs. Runs nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from tools import options
from tools.guest import choose, firmware
from vmm.boot.bios import read_bios
from vmm.devices.disk import SECTOR, Disk
from vmm.errors import InputError
from vmm.store.config import BACKENDS, Config
from vmm.store.directory import Directory


@dataclass(frozen=True, slots=True)
class Wanted:
    """The words of the command line, as typed."""

    name: str
    kernel: str
    append: str | None
    initrd: str
    memory: str | None
    backend: str
    disks: tuple[str, ...]
    disk_size: str | None
    icount: bool
    bios: bool = False


def create_vm(wanted: Wanted) -> None:
    """Makes the VM, and says where. Files are named by their whole paths, so that they are found from anywhere. Raises InputError."""
    memory = None if wanted.memory is None else options.memory(wanted.memory)
    if wanted.bios and (wanted.append is not None or wanted.initrd):
        raise InputError("--bios: not with --append or --initrd: the guest is what a disk holds")
    guest = firmware(wanted.kernel, memory) if wanted.bios else choose(wanted.kernel, memory, wanted.append)
    kernel = os.path.abspath(guest.path) if guest.path == wanted.kernel else wanted.kernel
    for file in (guest.path, wanted.initrd):
        if file and not os.path.isfile(file):
            raise InputError(f"{file}: no such file")
    if wanted.bios:
        read_bios(guest.path)
    for path in options.disks(wanted.disks):
        Disk(path, read_only=True).close()
    size = guest.disk_bytes or 0 if not wanted.disks else 0
    if wanted.disk_size is not None:
        size = options.size("--disk-size", wanted.disk_size)
        if not size or size % SECTOR:
            raise InputError(f"--disk-size {wanted.disk_size}: must be a whole number of sectors of {SECTOR} bytes")
    directory = Directory(wanted.name)
    config = Config(
        kernel=kernel,
        bios=wanted.bios,
        append=wanted.append,
        initrd=os.path.abspath(wanted.initrd) if wanted.initrd else "",
        memory=guest.memory_mib,
        backend=options.choice("--backend", wanted.backend, BACKENDS),
        icount=wanted.icount,
        disks=options.disks((*(("disk.img",) if size else ()), *map(os.path.abspath, wanted.disks))),
    )
    directory.create(config, size)
    print(directory.path)
