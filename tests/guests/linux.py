"""A Linux of Debian's booted to the shell of a RAM disk, and a conversation with it. Knows where guests are, nothing of what is asked them."""

from __future__ import annotations

import time
from pathlib import Path

from tests.guests.dialogue import Dialogue, Step
from tests.require import require_file
from tools.fetch_guests import guest
from tools.initrd import BUSYBOX, READY, make_initrd
from vmm.backends import Options
from vmm.backends.hw import HwOptions
from vmm.exits import End
from vmm.vm import Vm, machine_for

MEMORY_MIB = 256
TIMEOUT = 400.0
OLD_PC = "console=ttyS0 nolapic noapic acpi=off pci=off"


class Timed(Dialogue):
    """A dialogue that notes when each step's text came."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        super().__init__(steps)
        self.at: list[float] = []

    def write(self, data: bytes) -> None:
        before = len(self.progress.cpu)
        super().write(data)
        self.at += [time.monotonic()] * (len(self.progress.cpu) - before)


def boot(
    kernel: str,
    command_line: str,
    steps: tuple[Step, ...],
    folder: Path,
    files: dict[str, bytes] | None = None,
    options: Options | None = None,
    memory_mib: int = MEMORY_MIB,
) -> tuple[Vm, Timed]:
    """Boots to the shell, holds the dialogue and reboots; the run must end by that. options: of the back-end; `hw` as it is by default."""
    image = require_file(guest(kernel), "Linux (python -m tools.fetch_guests)")
    busybox = require_file(guest(BUSYBOX[kernel]), "BusyBox (python -m tools.fetch_guests)")
    initrd = folder / "initrd.cpio"
    initrd.write_bytes(make_initrd(busybox.read_bytes(), files))
    console = Timed((Step(READY), *steps))
    options = options or HwOptions()
    vm = Vm(machine_for(memory_mib, options), memory_mib=memory_mib, options=options, console=console)
    vm.load(str(image), append=command_line, initrd=str(initrd))
    stop = vm.run(TIMEOUT)
    assert stop.why is End.RESET, f"{stop.reason}, behind:\n{console.text[-3000:]}"
    assert console.progress.finished, console.text[-3000:]
    return vm, console
