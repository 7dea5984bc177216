"""`vmm start`, `ls`, `attach`, `stats`, `stop`, `snapshot`, `restore` and `migrate`: what a person does with VMs that are processes.

Knows the directories of VMs and how their processes are asked. Runs no VM itself.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time

from tools.keys import Command, EscapeKey
from tools.vms.sockets import CONSOLE, Message, ask, connect
from vmm.errors import InputError
from vmm.store.directory import LOG, Directory, all_directories

_PATIENCE = 60.0  # seconds until a process must have said how its start came out
_LOOK = 0.05


def start(name: str, first: list[str]) -> None:
    """Starts a VM's process and returns when the VM is about to run. Raises InputError with what the process says went wrong."""
    directory = Directory(name)
    directory.config()  # what is wrong with it is said here
    if directory.holder() is not None:
        raise InputError(f"{name}: is running already")
    reader, writer = os.pipe()
    with open(directory.file(LOG), "ab") as log, os.fdopen(reader, "rb") as said:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "tools.vms.process", name, *first, str(writer)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(writer,),
                start_new_session=True,
            )
        finally:
            os.close(writer)
        if not select.select([said], [], [], _PATIENCE)[0]:
            process.kill()
            raise InputError(f"{name}: did not start within {_PATIENCE:g} s (see {directory.file(LOG)})")
        kind, _, text = said.readline().decode(errors="replace").strip().partition(" ")
    if kind == "error":
        process.wait()
        raise InputError(text)
    if kind != "ready":
        process.wait()
        raise InputError(f"{name}: its process has ended (see {directory.file(LOG)})")
    print(f"{name}: process {process.pid}, {text}")
    process.returncode = 0  # it lives on: nobody here waits for it


def list_all() -> None:
    """A line for each VM."""
    rows = [("NAME", "PROCESS", "KERNEL", "MIB", "SNAPSHOTS")]
    for directory in all_directories():
        pid = directory.holder()
        try:
            config = directory.config()
        except InputError as error:
            print(f"vmm: {error}", file=sys.stderr)
            continue
        state = "-" if pid is None else str(pid)
        rows.append((directory.name, state, config.kernel, str(config.memory), " ".join(directory.snapshots()) or "-"))
    widths = [max(len(row[n]) for row in rows) for n in range(4)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[4]]))


def request(name: str, message: Message) -> Message:
    """Asks a VM's process, and returns what it has done."""
    directory = Directory(name)
    for answer in ask(directory.path, name, message):
        if "done" in answer:
            done = answer["done"]
            return done if isinstance(done, dict) else {}
    raise AssertionError("an answer has an end")


def stop(name: str) -> None:
    """Ends a VM's process, and waits until it has let go of everything."""
    directory = Directory(name)
    request(name, {"do": "stop"})
    directory.wait_until_free()


def show_stats(name: str) -> None:
    """What a VM's process says of itself, a line each."""
    for key, value in request(name, {"do": "stats"}).items():
        print(f"{key:<14}{value}")


def snapshot(name: str, as_name: str | None, *, full: bool) -> None:
    """Has a running VM take a snapshot of itself."""
    done = request(name, {"do": "snapshot", "name": as_name, "full": full})
    changes = f"changes since {done['parent']}" if done["parent"] else "whole"
    print(f"{done['name']}: {changes}, {done['frames']} frames, {int(str(done['bytes'])) >> 10} KiB, {done['seconds']} s")


def restore(name: str, snapshot_name: str | None) -> None:
    """Has a VM go on from a snapshot, the newest one if none is named; one that does not run is started."""
    directory = Directory(name)
    names = directory.snapshots()
    chosen = snapshot_name or (names[-1] if names else None)
    if chosen is None:
        raise InputError(f"{name}: there is no snapshot")
    if directory.holder() is None:
        start(name, ["restore", chosen])
    else:
        request(name, {"do": "restore", "name": chosen})
        print(f"{name}: goes on from {chosen}")


def migrate(name: str, address: str) -> None:
    """Has a running VM move its guest to another process."""
    directory = Directory(name)
    for said in ask(directory.path, name, {"do": "migrate", "to": address}):
        match said:
            case {"round": number, "frames": frames, "seconds": seconds}:
                print(f"round {number}: {frames} frames, {seconds} s", flush=True)
            case {"done": {"to": where, "seconds": seconds}}:
                print(f"{name}: runs at {where}; it stood still for {seconds} s")
    directory.wait_until_free()


def attach(name: str) -> None:
    """The VM's console is the terminal, until Ctrl-A d."""
    from tools.terminal import raw_terminal

    directory, escape = Directory(name), EscapeKey()
    with connect(directory.path, CONSOLE, name) as console, raw_terminal(0) as is_terminal:
        print(f"vmm: attached to {name}; {'Ctrl-A d' if is_terminal else 'the end of the input'} detaches", file=sys.stderr)
        watched, typed_end = [console.fileno(), 0], 0.0
        while True:
            ready = select.select(watched, [], [], _LOOK if typed_end else None)[0]
            if console.fileno() in ready:
                data = console.recv(1 << 16)
                if not data:
                    print(f"\nvmm: {name} has ended", file=sys.stderr)
                    return
                os.write(1, data)
            elif typed_end and time.monotonic() > typed_end:
                return
            if 0 in ready:
                typed = os.read(0, 4096)
                sent, commands = escape.take(typed) if is_terminal else (typed, [])
                console.sendall(sent)
                if Command.DETACH in commands or Command.QUIT in commands:
                    print("\nvmm: detached", file=sys.stderr)
                    return
                if not typed:
                    watched, typed_end = [console.fileno()], time.monotonic() + 0.5  # what the guest says to the last of it


def poke(name: str, count: int, seed: int) -> None:
    """Has random bytes written all over a running VM's memory, and says where."""
    done = request(name, {"do": "poke", "bytes": count, "seed": seed})
    for change in str(done["changes"]).split():
        print(change)
    print(f"{name}: {done['bytes']} bytes written, {done['changed']} of them changed something")
