"""Eight VMs on one machine for so long: python -m tests.guests.eight [SECONDS]

Each has a share of its own, and runs bundled kernels one behind the other, again and again. What a kernel prints has to be what it prints alone on a
machine, and at the end each VM must have had its share of the CPU time, within 5 %. Prints a line for each VM.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from guest_kernels import Guest, kernels, missing_line
from tests.guests.test_bt import ALIKE, empty_disk, run
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions
from vmm.backends.pv import PvOptions
from vmm.console import Recorder
from vmm.devices.disk import Disk
from vmm.exits import End
from vmm.host import Host, Resident
from vmm.machine import Machine
from vmm.vm import Vm

WITHIN = 0.05
_TURN = 0.1  # seconds after which VMs whose kernel has ended get their next one: they catch up on what they have missed
_PC, _XEN = list(kernels().values()), list(kernels("xen").values())
_PLANS: tuple[tuple[float, Options, list[Guest]], ...] = (
    (4, BtOptions(), _PC),
    (3, HwOptions(), _PC[5:] + _PC[:5]),
    (2, PvOptions(), _XEN),
    (1, BtOptions(ring=3), _PC[10:] + _PC[:10]),
    (4, HwOptions(mmu="shadow"), _PC[::-1]),
    (3, BtOptions(translate_user=True), _PC),
    (2, PvOptions(), _XEN[::-1]),
    (1, BtOptions(), _PC[15:] + _PC[:15]),
)


@dataclass
class Place:
    """One of the eight: whose turn it is, and what there is to say of those before."""

    options: Options
    guests: Iterator[Guest]
    folder: Path
    until: ExitStack
    guest: Guest = field(init=False)
    console: Recorder = field(init=False)
    runs: int = 0
    wrong: list[str] = field(default_factory=list)
    alone: dict[str, str] = field(default_factory=dict)

    def boot(self, machine: Machine) -> Vm:
        """The next kernel."""
        self.guest, self.console = next(self.guests), Recorder()
        image = self.disk()
        disks = [Disk(str(image))] if image else []
        for disk in disks:
            self.until.callback(disk.close)
        vm = Vm(machine, memory_mib=self.guest.memory_mib, options=self.options, disks=disks, console=self.console)
        vm.load(str(self.guest.file), append=self.guest.command_line)
        return vm

    def disk(self) -> Path | None:
        """A new disk for the kernel, when it wants one."""
        (self.folder / "disk.img").unlink(missing_ok=True)
        return empty_disk(self.guest, self.folder)

    def judge(self, resident: Resident) -> None:
        """Compares what the kernel has printed up to its end."""
        guest, stop, printed = self.guest, resident.vm.stopped, self.console.output.decode("latin-1")
        self.until.close()
        self.runs += 1
        fit = guest.platform == "xen" or guest.name in ALIKE
        if fit and guest.name not in self.alone:
            self.alone[guest.name] = run(guest, self.options, self.disk())[1]
        right = missing_line(printed, guest.console) is None and (not fit or printed == self.alone[guest.name])
        if resident.failure or stop is None or stop.why is not (End.DIED if guest.status == 3 else End.REPORTED) or not right:
            self.wrong.append(f"{guest.name}: {resident.failure or stop}: {printed}")


def run_eight(seconds: float) -> int:
    """Runs them until they have had so many seconds of CPU time; returns how much was wrong."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as until:
        host, places = Host.for_sizes((options, _largest(guests)) for _, options, guests in _PLANS), []
        for n, (share, options, guests) in enumerate(_PLANS):
            places.append(Place(options, cycle(guests), Path(folder, str(n)), until.enter_context(ExitStack())))
            places[n].folder.mkdir()
            host.add(str(n), options, _largest(guests), places[n].boot, share=share, reboots=False)
        while sum(resident.used for resident in host.residents) < seconds * 1e9:
            host.run(_TURN)
            for place, resident in zip(places, host.residents, strict=True):
                if resident.vm.stopped is None or resident.vm.stopped.why is not End.TIMEOUT:
                    place.judge(resident)
                    host.replace(resident)
            host.resume()
        return sum(_report(place, resident, host) for place, resident in zip(places, host.residents, strict=True))


def _largest(guests: list[Guest]) -> int:
    return max(guest.memory_mib for guest in guests)


def _report(place: Place, resident: Resident, host: Host) -> int:
    """Prints the line of one of them; returns how much is wrong."""
    had = resident.used / sum(other.used for other in host.residents)
    due = resident.share / sum(other.share for other in host.residents)
    off = abs(had / due - 1) > WITHIN
    shares = f"{had:.2%} of the CPU for {due:.2%}{' NOT WITHIN 5 %' if off else ''}"
    print(f"{resident.name} under {place.options.backend}: {shares}, {place.runs} kernels, {len(place.wrong)} wrong")
    for wrong in place.wrong:
        print(wrong)
    return off + len(place.wrong)


if __name__ == "__main__":
    sys.exit(min(run_eight(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0), 100))
