"""Linux under binary translation against the same Linux in guest mode: its boot, and what processes do most. It must have been fetched before."""

from __future__ import annotations

import re
import statistics
import subprocess
import time
from pathlib import Path

import pytest

from tests.bench.conftest import Keep
from tests.guests.dialogue import Dialogue
from tests.guests.linux import MEMORY_MIB, OLD_PC, TIMEOUT
from tests.require import require, require_file
from tools.fetch_guests import guest
from tools.initrd import make_initrd
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions
from vmm.exits import End
from vmm.vm import Vm, machine_for

pytestmark = pytest.mark.bench

ROUNDS = 3
TIMES = {"boot": 1, "getppid": 10_000, "fork": 100, "yield": 2_000, "touch": 4_000}
_FLAGS = "-m32 -O1 -static -nostdlib -ffreestanding -fno-pic -no-pie -fno-stack-protector -fcf-protection=none -Wl,--build-id=none".split()


class _Marks(Dialogue):
    """Notes the CPU time of this process where the guest says that it has done something."""

    def __init__(self) -> None:
        super().__init__(())
        self.line = bytearray()
        self.seconds: dict[str, float] = {}
        self.last = time.process_time()

    def write(self, data: bytes) -> None:
        self.line += data
        if not data.endswith(b"\n"):
            return
        found = re.search(rb"done (\w+)", self.line)
        now = time.process_time()
        if found or b"Linux version" in self.line:
            if found:
                self.seconds[found[1].decode()] = now - self.last
            self.last = now
        self.line.clear()


def _measured(options: Options, initrd: Path) -> dict[str, float]:
    """CPU seconds of one time of each thing."""
    console = _Marks()
    vm = Vm(machine_for(MEMORY_MIB, options), memory_mib=MEMORY_MIB, options=options, console=console)
    image = require_file(guest("linux-pae"), "Linux (python -m tools.fetch_guests)")
    vm.load(str(image), append=f"{OLD_PC} rdinit=/bin/busybox", initrd=str(initrd))
    stop = vm.run(TIMEOUT)
    assert stop.why is End.RESET, stop.reason
    return {name: console.seconds[name] / times for name, times in TIMES.items()}


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Translated and in guest mode, in turns. The program stands where BusyBox would."""
    folder = tmp_path_factory.mktemp("calls")
    subprocess.run([require("gcc"), *_FLAGS, "-o", folder / "program", Path(__file__).with_name("linux_calls.c")], check=True)
    initrd = folder / "initrd.cpio"
    initrd.write_bytes(make_initrd((folder / "program").read_bytes()))
    return [(_measured(BtOptions(), initrd), _measured(HwOptions(), initrd)) for _ in range(ROUNDS)]


@pytest.mark.parametrize("name", TIMES)
def test_against_guest_mode(name: str, rounds: list[tuple[dict[str, float], dict[str, float]]], keep: Keep) -> None:
    """By medians."""
    ours, theirs = (statistics.median(pair[side][name] for pair in rounds) for side in range(2))
    keep(f"bt-{name}", ours / theirs, f"{ours * 1e6:,.0f} µs against {theirs * 1e6:,.0f} µs")
