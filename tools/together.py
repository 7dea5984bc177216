"""`vmm run A B ...`: several guests side by side on one machine, from what was typed to the exit status.

Knows the host, the terminal that the guests share, and the reports. Runs nothing itself.
"""

from __future__ import annotations

import errno
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tools import options
from tools.guest import Guest, choose, open_disks
from tools.labels import Desk, Seat
from tools.pty_console import PtyConsole
from tools.report import death_report, record, write_record
from tools.run import BROKEN_PIPE, Wishes
from tools.session import Ended, Request, status_of
from tools.signals import Interruption
from tools.terminal import Terminal
from vmm.devices.disk import Storage
from vmm.errors import InputError
from vmm.exits import End, Stop
from vmm.host import Host, Resident
from vmm.machine import Machine
from vmm.network import Port, Switch
from vmm.vm import Vm

if TYPE_CHECKING:
    from vmm.console import Console

OUR_FAULT = 70


@dataclass(frozen=True, slots=True)
class Part:
    """One of the guests: what is to be run, by which name, for which share of the CPU's time."""

    name: str
    request: Request
    share: float


def names_of(kernels: Sequence[str]) -> list[str]:
    """A short name for each kernel, different from the others."""
    names: list[str] = []
    for kernel in kernels:
        name = plain = kernel.rstrip("/").rpartition("/")[2] or kernel
        number = 2
        while name in names:
            name, number = f"{plain}-{number}", number + 1
        names.append(name)
    return names


def run_together(parts: Sequence[Part], wishes: Wishes, *, ptys: bool) -> int:
    """Runs the guests until each has ended; returns the first status that is not 0. Raises InputError before anything runs."""
    timeout = parts[0].request.timeout
    stdin, stdout, stderr = (number if stream else -1 for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)))
    with ExitStack() as until:
        guests = [choose(part.request.kernel, part.request.memory_mib, part.request.append) for part in parts]
        disks = [open_disks(guest, part.request.disks, until) for guest, part in zip(guests, parts, strict=True)]
        host = Host.for_sizes((part.request.options, guest.memory_mib) for part, guest in zip(parts, guests, strict=True))
        with Interruption() as interruption, Terminal(stdin, stdout, stderr) as terminal:
            desk = Desk(terminal)
            terminal.on_quit = host.stop
            interruption.watch(host)
            switches: defaultdict[str, Switch] = defaultdict(Switch)
            for part, guest, own in zip(parts, guests, disks, strict=True):
                console = _pty(part.name, until) if ptys else desk.seat(part.name)
                port = switches[part.request.network].port() if part.request.network else None
                boot = partial(_boot, part.request, guest, own, console, port)
                host.add(part.name, part.request.options, guest.memory_mib, boot, share=part.share, reboots=part.request.reboot)
            host.run(timeout)
            desk.finish()
            terminal.finish()
    if terminal.failure is not None and terminal.failure.errno != errno.EPIPE:
        raise InputError(f"standard output: {(terminal.failure.strerror or str(terminal.failure)).lower()}")
    status = _report(host, parts, wishes, interruption.number)
    return status if terminal.failure is None else BROKEN_PIPE


def _pty(name: str, until: ExitStack) -> PtyConsole:
    console = PtyConsole()
    until.callback(console.close)
    print(f"vmm: the console of {name} is {console.path}", file=sys.stderr)
    return console


def _boot(request: Request, guest: Guest, disks: list[Storage], console: Console, network: Port | None, machine: Machine) -> Vm:
    options, icount = request.options, request.icount
    vm = Vm(machine, memory_mib=guest.memory_mib, options=options, disks=disks, console=console, icount=icount, network=network)
    vm.load(guest.path, append=guest.append, modules=request.modules, initrd=request.initrd, address=request.address)
    if isinstance(console, Seat):
        console.attach(vm)
    return vm


def _report(host: Host, parts: Sequence[Part], wishes: Wishes, signal: int | None) -> int:
    """Says what there is to say about each end, and returns the status of it all."""
    statuses, records = [], []
    for part, resident in zip(parts, host.residents, strict=True):
        host.show(resident)
        stop = resident.vm.stopped
        assert stop is not None
        status = OUR_FAULT if resident.failure else 128 + signal if signal is not None and stop.why is End.QUIT else status_of(stop)
        statuses.append(status)
        _say_end(part.name, resident, stop)
        records.append(record(Ended(resident.vm, stop, resident.restarts), part.request.kernel, status) | {"name": part.name, "share": part.share})
    if wishes.statistics:
        _show_shares(host, parts)
    if wishes.record is not None:
        write_record(wishes.record, {"vms": records, "world_switches": host.switches})
    return next((status for status in statuses if status), 0)


def _say_end(name: str, resident: Resident, stop: Stop) -> None:
    if stop.why in (End.DIED, End.UNSUPPORTED) and resident.failure is None:
        print(f"vmm: {name}: {death_report(resident.vm, stop)}", end="", file=sys.stderr)
    elif stop.why in (End.DIED, End.TIMEOUT):
        print(f"vmm: {name}: {stop.reason}", file=sys.stderr)
    elif stop.why is End.REPORTED and stop.value:
        print(f"vmm: {name}: the guest reported {stop.value} (debug-exit port F4h)", file=sys.stderr)


def _show_shares(host: Host, parts: Sequence[Part]) -> None:
    """The table of `--stats`: who had how much of the CPU."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console as Printer
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for heading in ("VM", "back-end"):
        table.add_column(heading)
    for heading in ("share", "CPU s", "of all", "turns", "restarts"):
        table.add_column(heading, justify="right")
    whole = sum(resident.used for resident in host.residents) or 1
    for part, resident in zip(parts, host.residents, strict=True):
        numbers = (f"{part.share:g}", f"{resident.used / 1e9:.3f}", f"{resident.used / whole:.1%}", f"{resident.turns:,}", f"{resident.restarts:,}")
        table.add_row(part.name, part.request.options.backend, *numbers)
    Printer(stderr=True, highlight=False).print(table)
    print(f"{host.switches:,} world switches", file=sys.stderr)


def shares(text: str | None, count: int) -> list[float]:
    """The numbers in "3,1": each above 0."""
    return [options.share(value or "1") for value in options.for_each("--share", text, count)]


def parts_of(kernels: Sequence[str], requests: Sequence[Request], share: str | None) -> list[Part]:
    """The guests with their names and shares."""
    return [Part(name, request, value) for name, request, value in zip(names_of(kernels), requests, shares(share, len(kernels)), strict=True)]
