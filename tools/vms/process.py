"""The process of one VM: boots it or goes on from a snapshot, runs it, and does what others ask for in the turns of its run loop.

Knows how a VM's directory becomes a VM, and each request. `vmm start` makes it, and waits for its word.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from setproctitle import setproctitle

from tools.guest import choose, firmware
from tools.session import make
from tools.technique import Technique, options_of
from tools.vms.server import Server
from vmm.backends import COUNTING, Options
from vmm.boot.bios import read_bios
from vmm.damage import scribble
from vmm.devices.disk import Storage
from vmm.errors import InputError
from vmm.exits import End, Stop
from vmm.migration import Sender, parse_address, receive
from vmm.snapshot import Snapshot
from vmm.snapshot.file import read, write
from vmm.store.config import Config
from vmm.store.directory import CONSOLE_LOG, Directory, close

if TYPE_CHECKING:
    from types import FrameType

    from tools.vms.sockets import Message, Peer
    from vmm.vm import Vm

_MOST_DAMAGE, _SHOWN = 1 << 20, 64  # bytes that one request may damage, and that the answer tells one by one
_STEP = 0.01  # seconds of a turn that a migration takes


class Process:
    """One VM and its process. `run` returns when the guest has ended, or was told to."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        directory.hold()
        self.config: Config = directory.config()
        setproctitle(f"vmm: {directory.name} ({os.path.basename(self.config.kernel)})")
        self.server = Server(directory.path, directory.file(CONSOLE_LOG), self._handle)
        self.disks: list[Storage] = []
        self.vm: Vm | None = None
        self.began, self.restarts = time.monotonic(), 0
        self._last: tuple[Snapshot, str] | None = None  # the snapshot that the guest came from or that was taken last, without its frames; its file
        self._next: Callable[[], None] | None = None  # what makes the VM that is to run next
        self._sender: tuple[Sender, Peer] | None = None
        self.told_to_end = False  # told to stop while no guest was there
        self._requests = {
            "stop": self._stop, "stats": self._stats, "snapshot": self._snapshot, "restore": self._restore, "migrate": self._migrate,
            "poke": self._poke,
        }  # fmt: skip

    # -- making VMs ------------------------------------------------------------------------------------------------------------------

    def options(self, backend: str | None = None) -> Options:
        """How the guest is to be run."""
        config = self.config
        chosen = config.backend if config.backend != "auto" or backend is None else backend
        bios = self._kernel() if config.bios else None
        return options_of(Technique(kernel=self._kernel(), bios=bios, backend=chosen, mmu=None if config.mmu == "auto" else config.mmu))

    def _kernel(self) -> str:
        """The kernel's name or file; relative ones are in the directory."""
        kernel, beside = self.config.kernel, self.directory.file(self.config.kernel)
        return beside if os.sep in kernel and not os.path.isabs(kernel) or os.path.isfile(beside) else kernel

    def boot(self) -> None:
        """Makes the VM that boots the kernel, on the disks as they are."""
        config = self.config
        guest = firmware(self._kernel(), config.memory) if config.bios else choose(self._kernel(), config.memory, config.append)
        bios = read_bios(guest.path) if config.bios else None
        if not self.disks:
            self.disks = self.directory.open_disks(config)
        vm = make(config.memory, self.options(), self.disks, self.server, config.icount, bios=bios)
        if bios is not None:
            vm.reset()
        else:
            initrd = None if not config.initrd else os.path.join(self.directory.path, config.initrd)
            vm.load(guest.path, append=guest.append, initrd=initrd)
        self._take(vm)
        self._last = None

    def go_on(self, snapshot: Snapshot, file: str, disks: list[Storage]) -> None:
        """Makes the VM that is the guest of a snapshot, whose disks are open."""
        options = self.options(snapshot.backend)
        close(self.disks)
        self.disks = disks
        icount = snapshot.counted and options.backend in COUNTING
        vm = make(snapshot.memory_size >> 20, options, disks, self.server, icount, snapshot=snapshot)
        vm.restore(snapshot)
        self._take(vm)
        self._last = _handle_of(snapshot), file

    def restore(self, name: str) -> None:
        """The same, by the snapshot's name."""
        file = self.directory.snapshot(name)
        snapshot = read(file)
        self.go_on(snapshot, file, self.directory.lay_disks(snapshot.disks))

    def listen(self, address: str) -> socket.socket:
        """Where a guest is waited for. Raises InputError."""
        try:
            return socket.create_server(parse_address(address))
        except OSError as error:
            raise InputError(f"{address}: {(error.strerror or str(error)).lower()}") from None

    def wait_for_guest(self, listening: socket.socket) -> None:
        """Waits for one that is migrated here, with whom it works out. Returns without one when it is told to stop."""
        while self.vm is None and not self.told_to_end:
            ready = select.select([listening.fileno(), self.server.fileno()], [], [])[0]
            self.server.poll()
            if listening.fileno() not in ready:
                continue
            connection = listening.accept()[0]
            with connection:
                try:
                    receive(connection, self._prepare)
                except InputError as error:
                    say(f"{self.directory.name}: {error}")
                    self.vm, self.server.room = None, no_room
                    self.directory.drop_disks(self.disks)
                    self.disks = []
                    give_back()
        listening.close()

    def _prepare(self, snapshot: Snapshot) -> None:
        self.go_on(snapshot, "", self.directory.lay_disks(snapshot.disks))
        self._last = None
        snapshot.frames.clear()

    def _take(self, vm: Vm) -> None:
        self.vm = vm
        self.server.room = vm.board.serial.room

    # -- running ---------------------------------------------------------------------------------------------------------------------

    def run(self) -> Stop:
        """Runs until the guest ends. A guest that resets the machine boots anew."""
        while True:
            assert self.vm is not None
            stop = self.vm.run()
            following, self._next = self._next, None
            if following is None and stop.why is not End.RESET:
                return stop
            self.restarts += 1
            self.vm, self.server.room = None, no_room
            give_back()  # its memory goes before the next one is made
            (following or self.boot)()
            following = None
            give_back()

    def end(self) -> None:
        """Closes everything, with the disks on the medium."""
        for disk in self.disks:
            disk.flush()
        close(self.disks)
        self.server.close()

    # -- requests: each is carried out between two runs of the CPU ---------------------------------------------------------------------

    def _handle(self, peer: Peer, request: Message) -> None:
        action = self._requests.get(str(request.get("do")))
        if action is None:
            raise InputError(f"{request.get('do')}: no such request")
        action(peer, request)

    def _now(self) -> Vm:
        if self.vm is None:
            raise InputError(f"{self.directory.name}: waits for a guest")
        return self.vm

    def _stop(self, peer: Peer, request: Message) -> None:
        self.told_to_end = True
        if self.vm is not None:
            self.vm.stop(Stop(End.QUIT, "stopped"))
        self.server.answer(peer, {"done": True})

    def _stats(self, peer: Peer, request: Message) -> None:
        vm = self._now()
        with open("/proc/self/statm", encoding="ascii") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        answer: Message = {
            "name": self.directory.name,
            "pid": os.getpid(),
            "kernel": self.config.kernel,
            "backend": vm.options.backend,
            "memory": vm.memory_size >> 20,
            "seconds": round(time.monotonic() - self.began, 1),
            "cpu_seconds": round(time.process_time(), 2),
            "resident_mib": resident >> 20,
            "exits": sum(vm.stats.architectural.values()),
            "assists": sum(vm.stats.engine.values()),
            "halted": vm.vcpu.halted,
            "restarts": self.restarts,
            "console": self.server.pty,
            "snapshots": len(self.directory.snapshots()),
        }
        self.server.answer(peer, {"done": answer})

    def _snapshot(self, peer: Peer, request: Message) -> None:
        """An incremental one, unless it is told otherwise, or nothing is known that it could tell the changes from."""
        name = str(request.get("name") or self.directory.next_snapshot())
        file = self.directory.snapshot(name)
        if os.path.exists(file):
            raise InputError(f"{name}: there is a snapshot of that name already")
        last = self._last if not request.get("full") and self._last is not None and os.path.exists(self._last[1]) else None
        began = time.monotonic()
        vm, self._last = self._now(), None  # should the file not come about, the next one is whole
        snapshot = vm.snapshot(last[0] if last else None)
        size, frames = write(file, snapshot, last[1] if last else ""), len(snapshot.frames)
        self._last = _handle_of(snapshot), file
        del snapshot
        give_back()
        self.server.answer(
            peer,
            {"done": {"name": name, "bytes": size, "frames": frames, "seconds": round(time.monotonic() - began, 3),
                      "parent": os.path.basename(last[1]).removesuffix(".snapshot") if last else None}},
        )  # fmt: skip

    def _poke(self, peer: Peer, request: Message) -> None:
        """Random bytes at random places of the guest's memory."""
        vm = self._now()
        count, seed = request.get("bytes"), request.get("seed")
        if type(count) is not int or type(seed) is not int or not 0 < count <= _MOST_DAMAGE:
            raise InputError(f"poke: up to {_MOST_DAMAGE} bytes, and a seed")
        if vm.domain is not None:
            raise InputError("poke: not a guest under --backend pv, whose page tables are the CPU's own")
        done = list(scribble(vm.memory, count, seed))
        shown = " ".join(f"{gpa:08x}:{before:02x}->{after:02x}" for gpa, before, after in done[:_SHOWN])
        changed = sum(before != after for _, before, after in done)
        self.server.answer(peer, {"done": {"bytes": count, "changed": changed, "changes": shown}})

    def _restore(self, peer: Peer, request: Message) -> None:
        name = str(request.get("name"))
        file = self.directory.snapshot(name)
        snapshot = read(file)
        disks = self.directory.lay_disks(snapshot.disks)

        def following() -> None:
            self.go_on(snapshot, file, disks)
            self.server.answer(peer, {"done": {"name": name}})

        self._next = following
        self._now().stop(Stop(End.QUIT, "another snapshot"))


    def _migrate(self, peer: Peer, request: Message) -> None:
        if self._sender is not None:
            raise InputError(f"{self.directory.name}: is being migrated already")
        sender = Sender(self._now(), *parse_address(str(request.get("to"))))
        self._sender = sender, peer
        self.server.watch(sender.connection.fileno(), write=True)
        self.server.work = self._go_on_sending

    def _go_on_sending(self) -> None:
        """A part of the migration, between two runs of the CPU."""
        assert self._sender is not None
        sender, peer = self._sender
        told = len(sender.rounds)
        try:
            if sender.vm is not self.vm:
                raise InputError(f"{self.directory.name}: is another guest by now")
            ready = sender.step(_STEP)
            for number, done in enumerate(sender.rounds[told:], told + 1):
                self.server.answer(peer, {"round": number, "frames": done.frames, "seconds": round(done.seconds, 3)})
            if not ready:
                return
            seconds = sender.finish()
        except InputError as error:
            self.server.answer(peer, {"error": f"{error}; the guest goes on here"})
        else:
            self.server.answer(peer, {"done": {"to": sender.where, "rounds": len(sender.rounds), "seconds": round(seconds, 3)}})
            sender.vm.stop(Stop(End.QUIT, f"migrated to {sender.where}"))
        sender.close()
        self._sender, self.server.work = None, lambda: None


def say(text: str) -> None:
    """A line for the log."""
    print(f"{time.strftime('%F %T')} {text}", flush=True)


def give_back() -> None:
    """Memory that is not used any more goes back to the host: a VM is a knot of references, and what snapshots held is scattered."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def no_room() -> int:
    """While there is no VM."""
    return 0


def _handle_of(snapshot: Snapshot) -> Snapshot:
    """A snapshot by which a later one can be told the changes from, without the memory that it holds: the VM remembers that."""
    return replace(snapshot, frames={}, parent=None)


def main(arguments: list[str]) -> int:
    """name, what to do first ("boot", "restore" and a snapshot, "incoming" and an address), and the descriptor to say on how that came out."""
    name, first, ready = arguments[0], arguments[1:-1], int(arguments[-1])
    try:
        process = Process(Directory(name))
        listening = process.listen(first[1]) if first[0] == "incoming" else None
        if first[0] == "restore":
            process.restore(first[1])
            give_back()
        elif listening is None:
            process.boot()
    except InputError as error:
        _say(ready, f"error {error}")
        return 2
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: _told(process, number, frame))
    where = f", waits at port {listening.getsockname()[1]}" if listening else ""
    _say(ready, f"ready {process.server.pty}{where}")
    if listening is not None:
        process.wait_for_guest(listening)
    if process.vm is not None:
        stop = process.run()
        say(f"{name}: {stop.why.value}: {stop.reason}")
    process.end()
    return 0


def _told(process: Process, number: int, frame: FrameType | None) -> None:
    process.told_to_end = True
    if process.vm is not None:
        process.vm.stop(Stop(End.QUIT, f"ended by {signal.Signals(number).name}"))


def _say(descriptor: int, text: str) -> None:
    os.write(descriptor, text.encode(errors="replace") + b"\n")
    os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
