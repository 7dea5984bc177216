"""`vmm demo linux`: a Linux whose memory is damaged beside a healthy one: what is noticed and when, that nobody else saw it, and the way back.

Knows what Linux prints when it finds itself damaged, the host, snapshots, and who does the damage: the VMM, or a module in the guest.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tools.demo import checksum, run_for, shown
from tools.fetch_guests import guest
from tools.initrd import BUSYBOX, READY, make_initrd
from vmm.backends import Options
from vmm.clock import SECOND
from vmm.console import Recorder
from vmm.damage import scribble
from vmm.errors import InputError
from vmm.exits import End, Stop
from vmm.host import Host, Resident
from vmm.machine import Machine
from vmm.snapshot import Snapshot
from vmm.vm import Vm

KERNEL: Final = "linux-pae"
MEMORY_MIB: Final = 128
ROUNDS: Final = 20  # the last one writes half a million bytes
COMMAND_LINE: Final = "console=ttyS0 nolapic noapic acpi=off pci=off panic=1"
"""Without the I/O APIC, whose timer Linux tries: it panics when that seems slow, as on a busy host."""
_WORK = "dd if=/dev/urandom of=/data bs=1M count=4; while :; do echo work $(md5sum </data); usleep 100000; done &\n"
_SUM = re.compile(r"work ([0-9a-f]{32})")
_COMPLAINT = re.compile(
    r"Kernel panic.*|Oops.*|BUG: .*|general protection.*|WARNING: .*|\w+\[\d+\]: segfault.*|traps: .*|Bad page.*|\S+: (?:not found|I/O error).*"
)
_ROUND = re.compile(r"scribble: (round \d+: \d+ random bytes)")
_BOOT = 300.0  # seconds, after which something is wrong with us
_SILENCE = 20  # of the guest's seconds, after which it hangs


@dataclass(frozen=True, slots=True)
class System:
    """What is booted: a kernel's file and a RAM disk's, under which back-end. module: whether the RAM disk has /scribble.ko."""

    kernel: Path
    initrd: Path
    options: Options
    module: bool


class Onlooker(Recorder):
    """Who sits at a guest's console: starts its work at the first prompt, reads its sums, and ends the host's run at what is waited for.

    sums: how many have come, all of them alike unless `noticed` says so; noticed: the first thing that was wrong, by kind and in words.
    """

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host
        self.vm: Vm | None = None
        self.sums, self.expected, self.wanted = 0, "", 0
        self.noticed: tuple[str, str] | None = None
        self.heard = 0  # when, by the guest's clock
        self.show: Callable[[str], None] = lambda line: None
        self._line, self._prompted = "", False

    def write(self, data: bytes) -> None:
        super().write(data)
        self._line += data.decode(errors="replace")
        *lines, self._line = self._line.split("\n")
        for line in lines:
            self._read(line.rstrip("\r"))
        if not self._prompted and READY in self.text and self._line.startswith("# "):
            self._prompted = True
            self.type(_WORK.encode())

    def _read(self, line: str) -> None:
        if self.vm is not None:
            self.heard = self.vm.clock.now()
        if (written := _ROUND.search(line)) is not None:
            self.show(written[1])
        if (found := _SUM.search(line)) is not None:
            self._count(found[1])
        elif self.sums and (complaint := _COMPLAINT.search(line)) is not None:
            self._notice("the kernel's word" if "[" in line else "a program's word", shown(complaint[0]))

    def _count(self, sum_: str) -> None:
        self.expected = self.expected or sum_
        if sum_ != self.expected:
            self._notice("wrong data", f"a file's checksum is {sum_}, and was {self.expected}")
            return
        self.sums += 1
        if self.sums == self.wanted:
            self.host.stop(Stop(End.QUIT, "so many sums"))

    def _notice(self, kind: str, what: str) -> None:
        if self.noticed is None:
            self.noticed = kind, what
            self.host.stop(Stop(End.QUIT, "noticed"))


def the_system(folder: Path, options: Options, module: str | None) -> System:
    """Debian's kernel and a RAM disk in `folder`. Raises InputError when something is not there."""
    kernel, busybox = guest(KERNEL), guest(BUSYBOX[KERNEL])
    if kernel is None or busybox is None:
        raise InputError(f"{KERNEL}: not there (python -m tools.fetch_guests)")
    files = {}
    if module is not None:
        try:
            files["scribble.ko"] = Path(module).read_bytes()
        except OSError as error:
            raise InputError(f"{module}: {(error.strerror or str(error)).lower()}") from None
    initrd = folder / "initrd.cpio"
    initrd.write_bytes(make_initrd(busybox.read_bytes(), files))
    return System(kernel, initrd, options, module is not None)


def boot(system: System, ear: Onlooker, snapshot: Snapshot | None, machine: Machine) -> Vm:
    """The guest, loaded, or as a snapshot has it."""
    vm = Vm(machine, memory_mib=MEMORY_MIB, options=system.options, console=ear)
    if snapshot is None:
        vm.load(str(system.kernel), append=COMMAND_LINE, initrd=str(system.initrd))
    else:
        vm.restore(snapshot)
    ear.vm, ear.heard = vm, vm.clock.now()
    return vm


def show_linux(seed: int, every: float, options: Options, module: str | None) -> int:
    """The demonstration. Returns 0 when the healthy guest saw nothing and the restored one is whole."""
    with tempfile.TemporaryDirectory(prefix="vmm-demo-") as folder:
        return _show(the_system(Path(folder), options, module), seed, every)


def _show(system: System, seed: int, every: float) -> int:
    host = Host.for_sizes([(system.options, MEMORY_MIB)] * 2)
    ears = [Onlooker(host), Onlooker(host)]
    victim, healthy = (
        host.add(name, system.options, MEMORY_MIB, partial(boot, system, ear, None), reboots=False)
        for name, ear in zip(("victim", "healthy"), ears, strict=True)
    )
    if not all(_until(host, ear, 2) for ear in ears):
        for resident, ear in zip(host.residents, ears, strict=True):
            print(f"snapshot  none: {resident.name} is not at work: {resident.vm.stopped}: {shown(ear.text[-100:])}", flush=True)
        return 1
    host.show(victim)
    snapshot, whole = victim.vm.snapshot(), checksum(victim.vm)
    print(f"snapshot  the victim at work before any damage: memory {whole[:16]}, {len(snapshot.frames)} frames that are not zero", flush=True)
    began = victim.vm.clock.now()
    ears[0].show = lambda line: print(f"victim    {line}", flush=True)
    kind, what = _damage(host, victim, ears[0], system.module, seed, every)
    print(f"noticed   {kind}, {(victim.vm.clock.now() - began) / SECOND:.1f} s after the snapshot: {what}")
    victim.vm.stopped = Stop(End.DIED, "it has had its turn")
    sound = _until(host, ears[1], ears[1].sums + 2)
    print(f"healthy   {ears[1].sums} checksums, {'all the same' if sound else f'BUT {ears[1].noticed or healthy.vm.stopped}'}", flush=True)
    again, ear = _restore(host, victim, system, snapshot, ears[0].expected)
    print(f"restored  memory {again[:16]}: {'as in the snapshot' if again == whole else 'NOT AS IN THE SNAPSHOT'}", flush=True)
    well = _until(host, ear, 3)
    print(f"restored  {'it works on, with the checksum as before' if well else f'IT DOES NOT WORK: {ear.noticed or victim.vm.stopped}'}")
    return 0 if sound and again == whole and well else 1


def _until(host: Host, ear: Onlooker, sums: int) -> bool:
    """Runs the guests until so many sums have come: whether they have, and nothing else."""
    ear.wanted = sums
    if ear.sums < sums and ear.noticed is None:
        host.resume()
        run_for(host, _BOOT)
    return ear.sums >= sums and ear.noticed is None


def _damage(host: Host, victim: Resident, ear: Onlooker, module: bool, seed: int, every: float) -> tuple[str, str]:
    """Rounds of damage until something is noticed: by what, and in words."""
    if module:
        ear.type(f"insmod /scribble.ko every={max(1, round(every))} seed={seed} last={ROUNDS}; dmesg | grep scribble\n".encode())
    for round_ in range(ROUNDS + 1):
        if not module and round_ < ROUNDS:
            ear.show(f"round {round_ + 1}: {1 << round_} random bytes")
            for _ in scribble(victim.vm.memory, 1 << round_, seed * ROUNDS + round_):
                pass
        host.resume()
        run_for(host, every if round_ < ROUNDS else _SILENCE + every)
        stop = victim.vm.stopped
        if ear.noticed is not None:
            return ear.noticed
        if stop is not None and stop.why not in (End.QUIT, End.TIMEOUT):
            return "crash", stop.reason
        if victim.vm.clock.now() - ear.heard > _SILENCE * SECOND:
            return "hang", f"nothing has been heard of it for {_SILENCE} s"
    return "nothing", "it works as if nothing had been"


def _restore(host: Host, victim: Resident, system: System, snapshot: Snapshot, expected: str) -> tuple[str, Onlooker]:
    """Puts the victim back; the checksum of its memory, and who sits at it now."""
    ear = Onlooker(host)
    ear.expected = expected
    host.replace(victim, partial(boot, system, ear, snapshot))
    return checksum(victim.vm), ear
