"""`vmm demo scribble`: a guest that damages itself, beside a healthy one: what was noticed and when, that nobody else saw anything, and the way back.

Knows the bundled kernel `scribble` by its lines, the host, and snapshots. Virtual time is the number of instructions, so the seed says it all.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import partial

from guest_kernels import kernels
from tools.signals import Interruption, surface
from vmm.backends import Options
from vmm.clock import SECOND
from vmm.console import Recorder
from vmm.exits import End, Stop
from vmm.host import Host, Resident
from vmm.machine import Machine
from vmm.snapshot import Snapshot
from vmm.vm import Vm, machine_for

TICKS = 100  # of the guest's, a second
HEALTHY_ROUNDS = 6
_PATIENCE = 3  # rounds' time without a line, after which the guest hangs
_ROUND = re.compile(r"round (\d+): (\d+) random bytes")
_MOST_SHOWN = 100  # characters of a line
_ALARM = 300.0  # seconds, after which something is wrong with us
GUEST = kernels("damage")["scribble"]


@dataclass(frozen=True, slots=True)
class Noticed:
    """How a guest with damage ended. bytes_: written in the last round; before: in the rounds before it, which nobody noticed.
    seconds: virtual ones. kind: "wrong data", "exception", "crash", "hang" or "nothing"; what: in words.
    """

    round_: int
    bytes_: int
    before: int
    seconds: float
    kind: str
    what: str


class Ear(Recorder):
    """A console that ends the run at a line that is waited for, and when nothing has been said for too long."""

    def __init__(self, silence: int) -> None:
        super().__init__()
        self.silence = silence
        self.vm: Vm | None = None
        self.wanted = b""
        self.host: Host | None = None
        self._last = 0

    def attach(self, vm: Vm) -> None:
        """The VM whose console it is."""
        self.vm = vm
        self._watch(vm)

    def _watch(self, vm: Vm) -> None:
        self._last = vm.clock.now()
        vm.clock.at(self._last + self.silence, lambda: self._look(vm))

    def _look(self, vm: Vm) -> None:
        if vm is not self.vm:
            return
        if vm.clock.now() - self._last >= self.silence:
            vm.stop(Stop(End.TIMEOUT, "nothing is heard of it"))
        else:
            vm.clock.at(self._last + self.silence, lambda: self._look(vm))

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.vm is not None:
            self._last = self.vm.clock.now()
        if self.wanted and self.wanted in self.output and self.host is not None:
            self.wanted = b""
            self.host.stop(Stop(End.QUIT, "heard"))


def shown(said: str) -> str:
    """What a damaged guest said, fit for a person's terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in said[:_MOST_SHOWN]) + ("..." if len(said) > _MOST_SHOWN else "")


def words(seed: int, every: float, more: str = "") -> str:
    """The guest's command line: seconds between rounds as its ticks."""
    return f"seed={seed} every={max(1, round(every * TICKS))}{more}"


def boot(append: str, options: Options, ear: Ear, snapshot: Snapshot | None, machine: Machine) -> Vm:
    """The guest, loaded, or as a snapshot has it."""
    vm = Vm(machine, memory_mib=GUEST.memory_mib, options=options, console=ear, icount=True)
    if snapshot is None:
        vm.load(str(GUEST.file), append=append)
    else:
        vm.restore(snapshot)
    ear.attach(vm)
    return vm


def run_for(guests: Vm | Host, seconds: float) -> None:
    """Runs a VM, or several. A signal ends that between two instructions, and then raises what it would have raised."""
    with Interruption() as interruption:
        interruption.watch(guests)
        guests.run(seconds)
    if interruption.number is not None:
        surface(interruption.number)


def checksum(vm: Vm) -> str:
    """Of all of a VM's memory."""
    return hashlib.sha256(vm.memory.read(0, vm.memory.size)).hexdigest()


def judge(vm: Vm, printed: str) -> Noticed:
    """What came of it, from the guest's lines and its end."""
    rounds = _ROUND.findall(printed)
    number, bytes_ = (int(value) for value in rounds[-1]) if rounds else (0, 0)
    before = sum(int(value) for _, value in rounds[:-1])
    failed = re.search(r"^FAIL: (.*?)\r?$", printed, re.MULTILINE)
    stop = vm.stopped
    assert stop is not None
    if failed is not None:
        kind, what = "exception" if "exception" in failed[1] else "wrong data", shown(failed[1])
    elif stop.why is End.TIMEOUT:
        kind, what = "hang", stop.reason
    elif stop.why is End.REPORTED and stop.value == 0:
        kind, what = "nothing", "it came to its end"
    else:
        kind, what = "crash", stop.reason
    return Noticed(number, bytes_, before, vm.clock.now() / SECOND, kind, what)


def silent(seed: int, written: int, used: frozenset[int]) -> int:
    """How many of the first bytes that the guest writes with this seed, by its own generator, lie in frames that are in use."""
    state, hits = (seed + 1) * 2654435761 & 0xFFFFFFFF, 0
    for _ in range(written):
        state = state * 1664525 + 1013904223 & 0xFFFFFFFF
        hits += (state >> 3 & (GUEST.memory_mib << 20) - 1) >> 12 in used
        state = state * 1664525 + 1013904223 & 0xFFFFFFFF
    return hits


def frames_in_use(vm: Vm) -> frozenset[int]:
    """Those that are not all zero."""
    return frozenset(gfn for gfn in range(vm.memory.count) if any(vm.memory.read(gfn << 12, 4096)))


def trial(seed: int, every: float, options: Options) -> Noticed:
    """One guest by itself, to the first thing that is noticed."""
    ear = Ear(_silence(every))
    vm = boot(words(seed, every), options, ear, None, machine_for(GUEST.memory_mib, options))
    run_for(vm, _ALARM)
    return judge(vm, ear.text)


def _silence(every: float) -> int:
    return round(_PATIENCE * (every + 1) * SECOND)


def show_trials(first: int, count: int, every: float, options: Options) -> None:
    """Prints a line for each trial, and histograms."""
    used = frames_in_use(_healthy_alone(every, options)[0])
    found, unseen = [], []
    for seed in range(first, first + count):
        noticed = trial(seed, every, options)
        found.append(noticed)
        unseen.append(silent(seed, noticed.before, used))
        print(f"seed {seed:<6} N = {noticed.bytes_:<8,} {unseen[-1]:>6,} silent  {noticed.kind}: {noticed.what}", flush=True)
    _histogram("N at the first damage that was noticed", Counter(noticed.bytes_ for noticed in found if noticed.kind != "nothing"))
    _histogram("bytes in use that had been overwritten before that, which nobody noticed", Counter(unseen))
    for kind, times in Counter(noticed.kind for noticed in found).most_common():
        print(f"{times:>5} x {kind}")


def _histogram(title: str, counts: Counter[int]) -> None:
    print(f"\n{title}")
    for value, count in sorted(counts.items()):
        print(f"{value:>10,} {count:>5} {'#' * round(60 * count / max(counts.values()))}")


def show_scribble(seed: int, every: float, options: Options) -> int:
    """The demonstration. Returns 0 when the healthy guest saw nothing and the restored one is whole."""
    reference, alone = _healthy_alone(every, options)
    used = frames_in_use(reference)
    host = Host.for_sizes([(options, GUEST.memory_mib)] * 2)
    ear, healthy_ear = Ear(_silence(every)), Ear(_silence(every))
    victim = host.add("victim", options, GUEST.memory_mib, partial(boot, words(seed, every), options, ear, None), reboots=False)
    harmless = words(0, every, f" harmless last={HEALTHY_ROUNDS}")
    healthy = host.add("healthy", options, GUEST.memory_mib, partial(boot, harmless, options, healthy_ear, None), reboots=False)
    ear.host, ear.wanted = host, b"scribble: ready"
    run_for(host, _ALARM)
    host.show(victim)
    snapshot = victim.vm.snapshot()
    whole = checksum(victim.vm)
    print(f"snapshot  the victim before any damage: memory {whole[:16]}, {len(snapshot.frames)} frames that are not zero")
    host.resume()
    run_for(host, _ALARM)
    noticed = judge(victim.vm, ear.text)
    for line in ear.text.replace("\r", "").splitlines():
        print(f"victim    {shown(line)}")
    print(f"noticed   {noticed.kind}, {noticed.seconds:.1f} s after its start, in round {noticed.round_}: {noticed.what}")
    unseen = silent(seed, noticed.before, used)
    print(f"silent    {noticed.before:,} bytes had been written before, {unseen:,} of them in frames in use, and nobody had noticed")
    here, there = checksum(healthy.vm), checksum(reference)
    same = here == there and healthy_ear.text == alone
    print(f"healthy   memory {here[:16]}, alone on a machine {there[:16]}: {'the same' if same else 'NOT THE SAME'}")
    again = _restore(host, victim, snapshot, every, options)
    print(f"restored  memory {again[:16]}: {'as in the snapshot' if again == whole else 'NOT AS IN THE SNAPSHOT'}")
    well = _goes_on(host, victim)
    print(f"restored  its own check says: {'all is well' if well else 'NOT WELL'}")
    return 0 if same and again == whole and well else 1


def _healthy_alone(every: float, options: Options) -> tuple[Vm, str]:
    """The healthy guest, and its lines, when it has a machine of its own."""
    ear = Ear(_silence(every))
    harmless = words(0, every, f" harmless last={HEALTHY_ROUNDS}")
    vm = boot(harmless, options, ear, None, machine_for(GUEST.memory_mib, options))
    run_for(vm, _ALARM)
    return vm, ear.text


def _restore(host: Host, victim: Resident, snapshot: Snapshot, every: float, options: Options) -> str:
    ear = Ear(_silence(every))
    ear.host, ear.wanted = host, b"all is well"
    host.replace(victim, partial(boot, "", options, ear, snapshot))
    return checksum(victim.vm)


def _goes_on(host: Host, victim: Resident) -> bool:
    run_for(host, _ALARM)
    console = victim.vm.console
    return isinstance(console, Ear) and "all is well" in console.text
