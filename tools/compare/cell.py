"""One run of one cell in this process: the guest under one of our back-ends, and the VMM's counters where its marks say.

Knows how a VM is put together for a user, and the marks of guest_kernels/lib/rows.h. Decides neither how often nor beside what a cell is run.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import guest_kernels
from tools.compare.model import WAYS, Cell, Sample, Way, kernels
from tools.technique import Technique, options_of
from vmm.console import Recorder
from vmm.devices.disk import Disk
from vmm.errors import InputError
from vmm.exits import End, Stop
from vmm.vm import Vm, machine_for

BEGIN, END = 2, 3
"""Bytes on the debug console: rows.h's MEASURE_BEGIN and MEASURE_END."""
_KINDS: Final = ("architectural", "engine", "callouts", "hypercalls")
_SEEN: Final = "the text came"


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a cell is to be run. count: how often the row's work is to be done; None as the kernel has it. timeout: seconds."""

    cell: Cell
    count: int | None
    timeout: float
    icount: bool = False


@dataclass(frozen=True, slots=True)
class _Reading:
    """cpu_ns, wall_ns: the process's clocks. counts: by kind and reason."""

    cpu_ns: int
    wall_ns: int
    retired: int
    counts: Counter[tuple[str, str]]

    def since(self, before: _Reading) -> _Reading:
        counts = Counter({key: count - before.counts[key] for key, count in self.counts.items()})
        return _Reading(self.cpu_ns - before.cpu_ns, self.wall_ns - before.wall_ns, self.retired - before.retired, counts)


class Meter(Recorder):
    """A console that reads the VM's counters at each mark, and ends a boot when the text that it waits for came."""

    def __init__(self, until: str = "") -> None:
        super().__init__()
        self.readings: list[_Reading] = []
        self.ended = False
        self._until = until.encode()
        self._vm: Vm | None = None

    def attach(self, vm: Vm) -> None:
        """Names the VM whose console this is; a boot is measured from here."""
        self._vm = vm
        if self._until:
            self.readings = [self._read()] * 2

    def write(self, data: bytes) -> None:
        if len(data) == 1 and data[0] in (0, BEGIN, END):
            if data[0]:
                self.readings.append(self._read())
                self.ended = data[0] == END
            return
        super().write(data)
        if self._until and not self.ended and self._until in self.output[-len(data) - len(self._until) :]:
            self.readings.append(self._read())
            self.ended = True
            if self._vm is not None:
                self._vm.stop(Stop(End.QUIT, _SEEN))

    def _read(self) -> _Reading:
        vm = self._vm
        assert vm is not None
        counts = Counter({(kind, name): count for kind in _KINDS for name, count in getattr(vm.stats, kind).items()})
        return _Reading(time.process_time_ns(), time.perf_counter_ns(), vm.backend.retired() if vm.icount else 0, counts)

    @property
    def measuring(self) -> bool:
        """Whether what is measured has begun and not ended."""
        return len(self.readings) == 2 and not self.ended

    def sample(self, count: int, icount: bool) -> Sample:
        """What lies between the marks, less what a mark costs."""
        first, begin, end = self.readings[:3]
        net = end.since(begin).since(begin.since(first))
        kinds = [{name: times for (of, name), times in sorted(net.counts.items()) if of == kind and times > 0} for kind in _KINDS]
        retired = net.retired if icount else None
        return Sample("", count, max(1, net.cpu_ns), max(1, net.wall_ns), kinds[0], kinds[1], kinds[2], kinds[3], retired)


def measure(wanted: Wanted, ready: Callable[[Vm, Meter], object] = lambda vm, meter: None) -> Sample:
    """Runs the cell once; `ready` is called with the VM that is about to run. What keeps it from running is the sample's reason."""
    cell = wanted.cell
    way, kernel = WAYS[cell.way], kernels()[cell.kernel]
    flavour = "xen" if way.paravirtual else "pc"
    if kernel.file:
        return _row(wanted, way, guest_kernels.kernels("any")[kernel.file[flavour]], ready)
    boot = kernel.boot.get(flavour)
    if boot is None:
        return Sample(f"there is no {cell.kernel} for this way")
    if boot.path is None:
        return Sample(f"absent: {boot.absent}")
    if cell.way == "step":
        return Sample("left out: a whole boot, one instruction at a time, takes minutes to hours")
    meter = Meter(boot.until)
    ended = _run(wanted, way, meter, str(boot.path), boot.append, boot.memory_mib, (), ready)
    return meter.sample(1, wanted.icount) if meter.ended else Sample(_why(ended, meter))


def _row(wanted: Wanted, way: Way, guest: guest_kernels.Guest, ready: Callable[[Vm, Meter], object]) -> Sample:
    """A row of a bundled kernel."""
    append = command_line(wanted)
    meter = Meter()
    with ExitStack() as until:
        disks = []
        if guest.disk_bytes:
            image = until.enter_context(tempfile.NamedTemporaryFile(prefix="vmm-disk-"))
            os.truncate(image.fileno(), guest.disk_bytes)
            disks.append(Disk(image.name))
            until.callback(disks[0].close)
        ended = _run(wanted, way, meter, str(guest.file), append, guest.memory_mib, disks, ready)
    return wrong(meter.text) or (meter.sample(count_in(meter.text), wanted.icount) if meter.ended else Sample(_why(ended, meter)))


def command_line(wanted: Wanted) -> str:
    """What the bundled kernel is to be told."""
    count = "" if wanted.count is None else f" n={wanted.count}"
    return f"rows={wanted.cell.row} marks{count}"


def wrong(text: str) -> Sample | None:
    """The sample of a row whose guest says that it went wrong; None when it does not."""
    failed = re.search(r"FAIL: .*", text)
    return Sample(f"wrong result: the guest says {failed[0].strip()!r}") if failed else None


def count_in(text: str) -> int:
    """How often the guest says that it did the row's work."""
    found = re.search(r"PASS: \w+: (\d+)", text)
    return int(found[1]) if found else 1


def _run(
    wanted: Wanted, way: Way, meter: Meter, path: str, append: str, memory_mib: int, disks: Sequence[Disk], ready: Callable[[Vm, Meter], object]
) -> str:
    """Runs the guest to its end; why it ended."""
    assert way.words is not None, "a way of ours"
    options = options_of(Technique(**way.words))
    try:
        vm = Vm(machine_for(memory_mib, options), memory_mib=memory_mib, options=options, disks=disks, console=meter, icount=wanted.icount)
        vm.load(path, append=append)
    except InputError as error:
        return str(error)
    meter.attach(vm)
    ready(vm, meter)
    return vm.run(wanted.timeout).reason


def _why(ended: str, meter: Meter) -> str:
    last = meter.text.strip().rpartition("\n")[2]
    return f"{ended}{f', behind {last!r}' if last else ''}"
