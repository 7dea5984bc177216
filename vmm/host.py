"""The host: several VMs that take turns on one physical machine, each for its share of the CPU's time.

Knows when a VM can use the CPU, how much of it each has had, and that its world must be on the machine whenever any part of it is touched.
Knows no back-end, no guest and no terminal.
"""

from __future__ import annotations

import gc
import select
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from vmm.backends import Options, room
from vmm.clock import SECOND
from vmm.errors import InputError
from vmm.exits import End, Stop
from vmm.machine import FRAME, MIB, Machine
from vmm.ticker import LONGEST, Ticker
from vmm.vm import Vm
from vmm.world import World

MOST = 4096 * MIB - FRAME
"""Bytes of host-physical memory that a machine can have."""
_POLL = 0.1  # seconds after which an idle VM's console is looked at that has no descriptor to wait for
_ANYWAY = MIB  # beside what the VMs hold


@dataclass(slots=True, eq=False)
class Resident:
    """A VM on a host. boot: makes it and loads its guest, now and whenever the guest resets the machine.

    share: how much of the CPU it gets, by proportion to the shares of the others that want it. used: nanoseconds of CPU time that it has had,
    turns: how often it had it. restarts: how often the guest has reset it. failure: the fault of ours that has ended it, or None.
    """

    name: str
    boot: Callable[[Machine], Vm]
    share: float
    reboots: bool
    frames: int
    world: World
    vm: Vm
    used: int = 0
    turns: int = 0
    restarts: int = 0
    failure: Exception | None = None
    idle: bool = False
    passed: float = 0.0
    looked: float = field(default_factory=time.monotonic)


class Host:
    """VMs on one machine: `add` them, then `run`. `for_sizes` makes a machine that has room for them."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.residents: list[Resident] = []
        self.switches = 0
        self._stop: Stop | None = None
        self._passed = 0.0  # of the one that ran last: who wakes up does not catch up on what it never wanted

    @staticmethod
    def for_sizes(guests: Iterable[tuple[Options, int]]) -> Host:
        """A host with room for VMs of these back-ends and MiB of memory. Raises InputError."""
        rooms = [room(options, memory_mib * MIB) for options, memory_mib in guests]
        runs = sum(run for _, run in rooms)
        size = runs + sum(scattered for scattered, _ in rooms) + _ANYWAY
        if size > MOST:
            raise InputError(f"{len(rooms)} VMs need {size // MIB} MiB of one machine, which has at most {MOST // MIB}: give them less memory (-m)")
        try:
            return Host(Machine(size, runs, shared=True))
        except OSError as error:
            raise InputError(f"the host cannot give {size // MIB} MiB of memory: {error.strerror or error}") from None

    def add(
        self, name: str, options: Options, memory_mib: int, boot: Callable[[Machine], Vm], *, share: float = 1.0, reboots: bool = True
    ) -> Resident:
        """Makes a VM by `boot`, which is to use these options and so much memory. Raises what `boot` raises."""
        frames = room(options, memory_mib * MIB)[0] // FRAME
        world = self.machine.new_world(frames)
        try:
            vm = self._boot(world, boot)
        except BaseException:
            self._discard(world)
            raise
        resident = Resident(name, boot, share, reboots, frames, world, vm, passed=self._passed)
        self.residents.append(resident)
        return resident

    def remove(self, resident: Resident) -> None:
        """Ends a VM for good, and frees what it holds of the machine. Its memory can be looked at no more."""
        self.residents.remove(resident)
        self._discard(resident.world)

    def replace(self, resident: Resident, boot: Callable[[Machine], Vm] | None = None) -> None:
        """Puts a new VM in the place of a resident's: the guest starts again, or as `boot` has it this time."""
        self._discard(resident.world)
        resident.world = self.machine.new_world(resident.frames)
        resident.vm, resident.idle, resident.failure = self._boot(resident.world, boot or resident.boot), False, None

    def show(self, resident: Resident) -> None:
        """Puts a resident's world on the machine: for who wants to look at its CPU while nothing runs."""
        self.machine.switch(resident.world)

    def _boot(self, world: World, boot: Callable[[Machine], Vm]) -> Vm:
        self.machine.switch(world)
        return boot(self.machine)

    def _discard(self, world: World) -> None:
        if self.machine.world is world:
            self.machine.switch(self.machine.new_world(0))
        self.machine.discard(world)
        gc.collect()  # a VM is a knot of references: it goes now

    # -- running ---------------------------------------------------------------------------------------------------------------

    def run(self, timeout: float | None = None) -> None:
        """Runs the VMs until each has ended, `timeout` seconds have passed, or somebody calls `stop`. Why each has ended: its `vm.stopped`."""
        end = None if timeout is None else time.monotonic() + timeout
        collecting = gc.isenabled()
        gc.disable()  # as in Vm.run
        try:
            with Ticker(self.machine) as ticker:
                self._run(ticker, end, timeout)
        finally:
            if collecting:
                gc.enable()

    def resume(self) -> None:
        """Lets the VMs go on in the next run that the last one ended before their own end: by time-out, or by `stop`."""
        for resident in self.residents:
            if resident.vm.stopped is not None and resident.vm.stopped.why in (End.TIMEOUT, End.QUIT):
                resident.vm.stopped = None

    def stop(self, stop: Stop) -> None:
        """Ends the run of all VMs; the first reason counts."""
        self._stop = self._stop or stop
        if self.machine.running:
            self.machine.stop()

    def _run(self, ticker: Ticker, end: float | None, timeout: float | None) -> None:
        while running := [resident for resident in self.residents if resident.vm.stopped is None]:
            now = time.monotonic()
            if end is not None and now > end:
                self.stop(Stop(End.TIMEOUT, f"time-out after {timeout:g} s"))
            if self._stop is not None:
                self._end_all(running, self._stop)
                self._stop = None
                return
            wake = self._wake(running, now)
            ready = [resident for resident in running if not resident.idle]
            if ready:
                self._slice(min(ready, key=_passed), ticker, min(wake, now + LONGEST, now + LONGEST if end is None else end))
            else:
                ticker.rest()
                self._sleep(running, min(wake, now + _POLL if end is None else end) - now)

    def _wake(self, running: list[Resident], now: float) -> float:
        """Finds out which idle VMs have something to do; when the next one of the others will."""
        next_ = now + _POLL
        typed = _readable([resident for resident in running if resident.idle], 0)
        for resident in running:
            if resident.idle:
                clock = resident.vm.clock
                deadline = clock.next_deadline()
                left = _POLL if deadline is None else (deadline - clock.now()) / SECOND
                left = min(left, resident.looked + _POLL - now)
                if left <= 0 or resident in typed:
                    resident.idle = False
                    resident.passed = max(resident.passed, self._passed)
                else:
                    next_ = min(next_, now + left)
        return next_

    def _sleep(self, running: list[Resident], seconds: float) -> None:
        """Nobody wants the CPU: until an alarm is due or something is typed."""
        _readable(running, max(0.0, seconds))

    def _slice(self, resident: Resident, ticker: Ticker, until: float) -> None:
        """One turn of a VM, charged to it: its devices', then its guest's until `until` at the latest."""
        vm, began = resident.vm, time.thread_time_ns()
        if self.machine.world is not resident.world:
            self.machine.switch(resident.world)
            self.switches += 1
        resident.looked = time.monotonic()
        try:
            runnable = vm.turn()
            if runnable:
                ticker.due_in(min(vm.until_next(None), until - time.monotonic()))
                vm.backend.run()
            resident.idle = not runnable and vm.icount is None
            if vm.stopped is not None:
                vm.backend.synchronize()
                if vm.stopped.why is End.RESET and resident.reboots:
                    resident.restarts += 1
                    self.replace(resident)  # charged for that too: a guest that does nothing but reset the machine has its share and no more
        except Exception as failure:  # a fault of ours ends one VM; the others are none the worse
            resident.failure = failure
            vm.stopped = Stop(End.DIED, f"a fault of ours: {type(failure).__name__}: {failure}")
        used = time.thread_time_ns() - began
        self._passed = resident.passed
        resident.turns += 1
        resident.used += used
        resident.passed += used / resident.share
        vm.stats.cpu_seconds += used / SECOND

    def _end_all(self, running: list[Resident], stop: Stop) -> None:
        for resident in running:
            self.show(resident)
            resident.vm.stop(stop)
            resident.vm.backend.synchronize()


def _passed(resident: Resident) -> float:
    return resident.passed


def _readable(residents: list[Resident], seconds: float) -> list[Resident]:
    """Those on whose console something has been typed, within so many seconds."""
    waiting: dict[int, list[Resident]] = {}
    for resident in residents:
        if (descriptor := resident.vm.console.fileno()) is not None:
            waiting.setdefault(descriptor, []).append(resident)
    if not waiting:
        if seconds > 0:
            time.sleep(seconds)
        return []
    return [resident for descriptor in select.select(list(waiting), [], [], seconds)[0] for resident in waiting[descriptor]]
