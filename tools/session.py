"""One `vmm run` from the request to the guest's end: the machine, the disks, restarts, and the exit status that comes of it.

Knows how the parts are put together for a user. Prints nothing; knows no command line and no terminal.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, assert_never

from tools.guest import choose, firmware, open_disks, overlays
from vmm.backends import COUNTING, Options
from vmm.backends.bt import BtOptions
from vmm.boot.bios import Bios, read_bios
from vmm.console import Console
from vmm.devices.disk import Storage
from vmm.errors import InputError
from vmm.exits import End, Stop
from vmm.network import Port, Switch
from vmm.vm import Vm, machine_for

if TYPE_CHECKING:
    from vmm.snapshot import Snapshot

GUEST_DIED: Final = 3
TIMED_OUT: Final = 124


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be run and how. What is None stands as the guest or the default has it. timeout: seconds over all restarts.

    restore: a snapshot's file, from which the guest goes on instead of being loaded; `kernel` is of no account then.
    network: the name of the network that the guest is on, with whoever else runs beside it and names the same.
    bios: `kernel` is a BIOS image instead.
    """

    kernel: str
    bios: bool = False
    memory_mib: int | None = None
    append: str | None = None
    initrd: str | None = None
    modules: tuple[str, ...] = ()
    address: int | None = None
    disks: tuple[str, ...] = ()
    options: Options = BtOptions()
    timeout: float | None = None
    reboot: bool = True
    icount: bool = False
    restore: str | None = None
    network: str | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a request came out: the last VM, its stop, and how often the guest restarted the machine before."""

    vm: Vm
    stop: Stop
    restarts: int


def run(request: Request, console: Console, ready: Callable[[Vm], object] = lambda vm: None) -> Ended:
    """Runs a guest to its end. `ready` is called with each VM that is loaded and about to run. Raises InputError before anything runs."""
    if request.restore is not None:
        return _go_on(request, request.restore, console, ready)
    guest = firmware(request.kernel, request.memory_mib) if request.bios else choose(request.kernel, request.memory_mib, request.append)
    bios = read_bios(guest.path) if request.bios else None
    end, restarts = math.inf, 0
    with ExitStack() as until:
        disks = open_disks(guest, request.disks, until)
        port = Switch().port() if request.network else None  # with nobody else on it
        while True:
            vm = make(guest.memory_mib, request.options, disks, console, request.icount, port, bios)
            if bios is not None:
                vm.reset()
            else:
                vm.load(guest.path, append=guest.append, modules=request.modules, initrd=request.initrd, address=request.address)
            ready(vm)
            if not restarts and request.timeout is not None:
                end = time.monotonic() + request.timeout
            stop = vm.run(None if end == math.inf else max(0.0, end - time.monotonic()))
            if stop.why is End.TIMEOUT:
                stop = Stop(End.TIMEOUT, f"time-out after {request.timeout:g} s")
            if stop.why is not End.RESET or not request.reboot:
                return Ended(vm, stop, restarts)
            restarts += 1
            del vm
            gc.collect()  # a VM is a knot of references: its memory goes now, not after the next one has been made


def _go_on(request: Request, path: str, console: Console, ready: Callable[[Vm], object]) -> Ended:
    """Runs a guest from a snapshot. What it writes to its disks from there on is nobody else's, and gone with the run. A reset is its end."""
    from vmm.snapshot.file import read

    snapshot = read(path)
    with ExitStack() as until:
        disks = overlays(snapshot.disks, until)
        icount = request.icount or snapshot.counted and request.options.backend in COUNTING
        vm = make(snapshot.memory_size >> 20, request.options, disks, console, icount, snapshot=snapshot)
        vm.restore(snapshot)
        ready(vm)
        return Ended(vm, vm.run(request.timeout), 0)


def make(
    memory_mib: int,
    options: Options,
    disks: Sequence[Storage],
    console: Console,
    icount: bool,
    network: Port | None = None,
    bios: Bios | None = None,
    snapshot: Snapshot | None = None,
) -> Vm:
    """A VM with nothing in it, on a machine of its own; or one that can be restored to a snapshot. Raises InputError."""
    bios = snapshot.bios if snapshot is not None else bios
    if snapshot is not None and bios is not None:
        options = _for_firmware(options)
    try:
        machine = machine_for(memory_mib, options)
    except OSError as error:
        raise InputError(f"-m {memory_mib}: the host cannot give so much memory: {(error.strerror or str(error)).lower()}") from None
    if snapshot is not None and snapshot.domain is not None and options.backend == "pv":
        from vmm.snapshot.domain import arrange

        arrange(machine, snapshot.domain)
    return Vm(machine, memory_mib=memory_mib, options=options, disks=disks, console=console, icount=icount, network=network, bios=bios)


def _for_firmware(options: Options) -> Options:
    """Guest mode's default, which a machine that began in a BIOS cannot have, becomes what it takes."""
    from vmm.backends.hw.options import HwOptions

    return HwOptions(mmu="nested") if options == HwOptions() else options


def status_of(stop: Stop, *, like_qemu: bool = False) -> int:
    """The exit status of a run: DESIGN's table. like_qemu: what the guest reports comes out as (value << 1) | 1, in a status's 8 bits."""
    match stop.why:
        case End.REPORTED:
            return (stop.value << 1 | 1) & 0xFF if like_qemu else int(stop.value != 0)
        case End.SHUTDOWN | End.RESET | End.QUIT:
            return 0
        case End.DIED | End.UNSUPPORTED:
            return GUEST_DIED
        case End.TIMEOUT:
            return TIMED_OUT
        case _:
            assert_never(stop.why)
