"""Snapshots: everything that a guest is, at one moment, in no back-end's terms; and a VM made of one.

Knows which parts there are: the virtual CPU, memory, devices, time, and the domain of a paravirtual guest. Knows no file.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.boot.bios import Bios
from vmm.boot.symbols import Symbols
from vmm.devices.disk import DiskError, Point, Storage
from vmm.devices.overlay import Overlay
from vmm.errors import InputError
from vmm.snapshot import cpu, devices, domain
from vmm.snapshot.cpu import CpuState
from vmm.snapshot.devices import DeviceState
from vmm.snapshot.domain import DomainState
from vmm.snapshot.frames import Watch, fill
from vmm.start import GDT, Start

if TYPE_CHECKING:
    from vmm.vm import Vm

__all__ = ["CpuState", "DeviceState", "DomainState", "Snapshot", "Watch", "restore", "take"]

_SCRATCH = 0x1000  # gpa of a descriptor table for the start of the back-end, before memory is the guest's


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One moment of one guest.

    identity: 128 bits of chance, as hexadecimal text. parent: the snapshot that this one tells the changes from; None: it tells all. frames: guest
    frames by number; those that neither it nor a parent has are zero. now: virtual time in nanoseconds. retired: instructions, where they were
    counted. kind: what kind of image the guest was loaded from. kernel: its name, for people. backend: what it ran under. counted: whether
    virtual time was the number of instructions. disks: where each disk stood. domain: a paravirtual guest's. bios: what the machine
    started with, if it did.
    """

    identity: str
    parent: Snapshot | None
    memory_size: int
    kind: str
    kernel: str
    backend: str
    counted: bool
    now: int
    retired: int
    cpu: CpuState
    devices: DeviceState
    frames: dict[int, bytes]
    disks: tuple[Point, ...] = ()
    domain: DomainState | None = None
    bios: Bios | None = None

    def memory(self) -> dict[int, bytes]:
        """All frames that are not zero, whichever snapshot of the chain tells of them."""
        chain: list[Snapshot] = []
        one: Snapshot | None = self
        while one is not None:
            chain.append(one)
            one = one.parent
        frames: dict[int, bytes] = {}
        for one in reversed(chain):
            frames.update(one.frames)
        return frames


def take(vm: Vm, frames: dict[int, bytes], parent: Snapshot | None = None) -> Snapshot:
    """A snapshot of a VM that has settled, with these frames of its memory. Raises InputError when there is none of such a guest."""
    assert vm.start is not None, "nothing is loaded"
    return Snapshot(
        identity=secrets.token_hex(16),
        parent=parent,
        memory_size=vm.memory_size,
        kind=vm.start.kind,
        kernel=vm.start.symbols.source,
        backend=vm.options.backend,
        counted=vm.icount is not None,
        now=vm.clock.now(),
        retired=vm.icount.total() if vm.icount else 0,
        cpu=cpu.save(vm),
        devices=devices.save(vm.board),
        frames=frames,
        disks=_points(vm),
        domain=domain.save(vm.domain) if vm.domain else None,
        bios=vm.bios,
    )


def below(disk: Storage) -> Point:
    """The point that a disk starts from: what a fresh overlay was laid on."""
    point = disk.origin if isinstance(disk, Overlay) and not disk.written else Point(disk.path, 0)
    return Point(os.path.realpath(point.path), point.length)


def _points(vm: Vm) -> tuple[Point, ...]:
    try:
        return tuple(disk.point() for disk in vm.disks)
    except DiskError as error:
        raise InputError(f"snapshot: {error}") from None


def restore(vm: Vm, snapshot: Snapshot, frames: Mapping[int, bytes]) -> None:
    """Makes a VM that was built alike, with nothing in it, the guest of a snapshot with these frames. Raises InputError when it cannot be."""
    if vm.domain is None and snapshot.domain is not None:
        raise InputError("--restore: a paravirtual guest, which takes --backend pv")
    if vm.domain is not None and snapshot.domain is None:
        raise InputError("--restore: not a paravirtual guest: not under --backend pv")
    if (vm.bios is None) != (snapshot.bios is None):
        raise InputError("--restore: a guest that began in a BIOS goes on beside it, and no other does")
    if vm.memory_size != snapshot.memory_size:
        raise InputError(f"snapshot: of a guest with {snapshot.memory_size >> 20} MiB of memory, not {vm.memory_size >> 20}")
    if [below(disk) for disk in vm.disks] != [Point(os.path.realpath(point.path), point.length) for point in snapshot.disks]:
        raise InputError("snapshot: its disks are not those of this VM, as they were then")
    assert vm.start is None, "something is loaded already"
    vm.memory.write(_SCRATCH, GDT)
    vm.start = Start(entry=0, kind=snapshot.kind, symbols=Symbols(snapshot.kernel), gdt_base=_SCRATCH)
    vm.backend.start(vm.start)
    fill(vm.memory, frames)
    if vm.icount:
        vm.icount.go_on_from(snapshot.now, snapshot.retired)
    else:
        vm.clock.go_on_from(snapshot.now)
    devices.restore(vm.board, vm.clock, snapshot.devices)
    cpu.restore(vm, snapshot.cpu)
    if snapshot.domain is not None:
        domain.restore(vm, snapshot.domain)
    vm.backend.interrupts_changed(vm.board.interrupts.asserted)
