"""The commands about VMs that are files and processes, as `vmm` has them.

Knows the command line and nothing behind it: as tools/cli.py.
"""

from __future__ import annotations

from typing import Annotated

import typer

from vmm.errors import InputError

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The VM's name (vmm ls).")]


def add_commands(app: typer.Typer) -> None:
    """Adds them."""
    for command in (create, start, ls, attach, stats, stop, snapshot, restore, migrate, poke):
        app.command()(command)


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name for it.")],
    kernel: Annotated[str, typer.Argument(metavar="KERNEL", help="A bundled kernel's name (vmm kernels) or a file.")],
    append: Annotated[str | None, typer.Option(metavar="TEXT", help="The kernel's command line.")] = None,
    initrd: Annotated[str, typer.Option(metavar="FILE", help="Linux's RAM disk, or boot modules.")] = "",
    memory: Annotated[str | None, typer.Option("-m", metavar="MIB", help="Guest memory; also 512M, 1G. Default: 128, or as bundled.")] = None,
    backend: Annotated[str, typer.Option(metavar="auto|bt|hw|pv|trap|step|native", help="How guest code is run.")] = "auto",
    disk: Annotated[list[str] | None, typer.Option(metavar="FILE", help="A raw image, up to four times; it is only read.")] = None,
    disk_size: Annotated[str | None, typer.Option(metavar="SIZE", help="Make an empty disk of that size, such as 64M.")] = None,
    icount: Annotated[bool, typer.Option("--icount", help="Virtual time is the number of instructions.")] = False,
    bios: Annotated[bool, typer.Option("--bios", help="KERNEL is a BIOS image, which boots a disk.")] = False,
) -> None:
    """Make a VM: a directory with a configuration, disks and snapshots, in VMM_HOME."""
    from tools.vms.making import Wanted, create_vm

    create_vm(Wanted(name, kernel, append, initrd, memory, backend, tuple(disk or ()), disk_size, icount, bios))


def start(
    name: _Name,
    restore: Annotated[str | None, typer.Option(metavar="SNAPSHOT", help="Go on from a snapshot instead of booting.")] = None,
    incoming: Annotated[str | None, typer.Option(metavar="tcp:HOST:PORT", help="Wait there for a guest that is migrated.")] = None,
    attached: Annotated[bool, typer.Option("--attach", help="And attach to its console.")] = False,
) -> None:
    """Start a VM, as a process of its own."""
    from tools.vms import commands

    if restore is not None and incoming is not None:
        raise InputError("--incoming: not with --restore")
    commands.start(name, ["incoming", incoming] if incoming else ["restore", restore] if restore else ["boot"])
    if attached:
        commands.attach(name)


def ls() -> None:
    """List the VMs: name, process, kernel, memory, snapshots."""
    from tools.vms.commands import list_all

    list_all()


def attach(name: _Name) -> None:
    """Sit down at a VM's console; Ctrl-A d gets up again."""
    from tools.vms import commands

    commands.attach(name)


def stats(name: _Name) -> None:
    """Show what a VM's process says of itself."""
    from tools.vms.commands import show_stats

    show_stats(name)


def stop(name: _Name) -> None:
    """End a VM's process, as by switching it off."""
    from tools.vms import commands

    commands.stop(name)


def snapshot(
    name: _Name,
    snapshot: Annotated[str | None, typer.Argument(metavar="SNAPSHOT", help="Its name; default: s1, s2, ...")] = None,
    full: Annotated[bool, typer.Option("--full", help="Whole, and not the changes since the one before.")] = False,
) -> None:
    """Have a running VM take a snapshot of itself."""
    from tools.vms import commands

    commands.snapshot(name, snapshot, full=full)


def restore(name: _Name, snapshot: Annotated[str | None, typer.Argument(metavar="SNAPSHOT", help="Default: the newest.")] = None) -> None:
    """Have a VM go on from a snapshot."""
    from tools.vms import commands

    commands.restore(name, snapshot)


def poke(
    name: _Name,
    count: Annotated[str, typer.Option("--bytes", metavar="N", help="How many.")] = "1",
    seed: Annotated[str, typer.Option(metavar="N", help="The same number does the same damage.")] = "1",
) -> None:
    """Damage a running VM: random bytes at random places of its memory. It needs no help of the guest."""
    from tools import options
    from tools.vms import commands

    commands.poke(name, options.count("--bytes", count), options.seed(seed))


def migrate(name: _Name, address: Annotated[str, typer.Argument(metavar="tcp:HOST:PORT", help="Where a VM waits (vmm start --incoming).")]) -> None:
    """Move a running guest to a VM that waits for it, while it runs."""
    from tools.vms import commands

    commands.migrate(name, address)
