"""One `vmm run` from the request to the guest's end: the machine, the disks, restarts, and the exit status that comes of it.

Knows how the parts are put together for a user. Prints nothing; knows no command line and no terminal.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, assert_never

from tools.guest import choose, open_disks
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.console import Console
from vmm.devices.disk import Disk
from vmm.errors import InputError
from vmm.exits import End, Stop
from vmm.vm import Vm, machine_for

GUEST_DIED: Final = 3
TIMED_OUT: Final = 124


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be run and how. What is None stands as the guest or the default has it. timeout: seconds over all restarts."""

    kernel: str
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


@dataclass(frozen=True, slots=True)
class Ended:
    """How a request came out: the last VM, its stop, and how often the guest restarted the machine before."""

    vm: Vm
    stop: Stop
    restarts: int


def run(request: Request, console: Console, ready: Callable[[Vm], object] = lambda vm: None) -> Ended:
    """Runs a guest to its end. `ready` is called with each VM that is loaded and about to run. Raises InputError before anything runs."""
    guest = choose(request.kernel, request.memory_mib, request.append)
    end, restarts = math.inf, 0
    with ExitStack() as until:
        disks = open_disks(guest, request.disks, until)
        while True:
            vm = _boot(request, guest.path, guest.memory_mib, guest.append, disks, console)
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


def _boot(request: Request, path: str, memory_mib: int, append: str, disks: list[Disk], console: Console) -> Vm:
    try:
        machine = machine_for(memory_mib, request.options)
    except OSError as error:
        raise InputError(f"-m {memory_mib}: the host cannot give so much memory: {(error.strerror or str(error)).lower()}") from None
    vm = Vm(machine, memory_mib=memory_mib, options=request.options, disks=disks, console=console, icount=request.icount)
    vm.load(path, append=append, modules=request.modules, initrd=request.initrd, address=request.address)
    return vm


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
