"""Debian's Linux through a snapshot in the midst of its work: it goes on in another VM, and what it computes is right."""

import hashlib
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guests.linux import BUSYBOX, OLD_PC
from tests.require import require_file
from tools.fetch_guests import guest
from tools.initrd import READY, make_initrd
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.bt.engine import BinaryTranslation
from vmm.backends.hw import HwOptions
from vmm.backends.native import NativeOptions
from vmm.exits import End, Stop
from vmm.snapshot import Snapshot
from vmm.snapshot.file import read, write
from vmm.vm import Vm, machine_for

MEMORY_MIB = 128
LONG = 200.0
TIMES = 200
BT, BT_3 = BtOptions(translate_user=True), BtOptions(ring=3, translate_user=True)  # a guest that began under hw has SYSENTER: docs/QUIRKS.md 24


class Typist:
    """A console that types, and stops the VM when it has read what it waits for."""

    def __init__(self) -> None:
        self.text, self.keys, self.wanted = "", b"", ""
        self.vm: Vm | None = None

    def write(self, data: bytes) -> None:
        self.text += data.decode(errors="replace")
        if self.wanted and self.wanted in self.text and self.vm is not None:
            self.vm.stop(Stop(End.QUIT, "read"))

    def poll(self) -> bytes:
        keys, self.keys = self.keys, b""
        return keys

    def fileno(self) -> None:
        return None

    def until(self, vm: Vm, wanted: str, keys: str = "") -> None:
        """Types, and runs until the guest has printed a text since."""
        self.text, self.keys, self.wanted, self.vm, vm.stopped = "", keys.encode(), wanted, vm, None
        stop = vm.run(LONG)
        assert stop.reason == "read", f"{stop.reason}, behind:\n{self.text[-2000:]}"


@dataclass
class Shell:
    """A guest at its prompt, with a file of noise."""

    vm: Vm
    console: Typist
    checksum: str


def empty(console: Typist, options: Options) -> Vm:
    return Vm(machine_for(MEMORY_MIB, options), memory_mib=MEMORY_MIB, options=options, console=console)


def at_the_prompt(kernel: str, folder: Path) -> Shell:
    """Boots to the shell."""
    image = require_file(guest(kernel), "Linux (python -m tools.fetch_guests)")
    busybox = require_file(guest(BUSYBOX[kernel]), "BusyBox (python -m tools.fetch_guests)")
    noise = random.Random(1).randbytes(100_000)
    initrd = folder / "initrd.cpio"
    initrd.write_bytes(make_initrd(busybox.read_bytes(), {"noise": noise}))
    console = Typist()
    vm = empty(console, HwOptions())
    vm.load(str(image), append=OLD_PC, initrd=str(initrd))
    console.until(vm, READY)
    console.until(vm, "# ")  # typed ahead, a line would be read in two modes of the terminal
    return Shell(vm, console, hashlib.md5(noise).hexdigest())


def through_a_file(snapshot: Snapshot, path: Path) -> Snapshot:
    write(str(path), snapshot)
    return read(str(path))


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    "kernel, ways",
    [("linux-pae", (BT, HwOptions())), ("linux", (NativeOptions(), BT_3, HwOptions())), ("linux-amd64", (HwOptions(), HwOptions()))],
    ids=("PAE by bt to hw", "686 by native and bt --ring 3 to hw", "amd64"),
)
def test_work_goes_on(kernel: str, ways: tuple[Options, ...], tmp_path: Path) -> None:
    """A loop of checksums, begun under hw and interrupted by snapshots, each of which goes on in another VM, under another back-end where one can;
    then the clock still runs, and the shell answers."""
    shell = at_the_prompt(kernel, tmp_path)
    vm, console = shell.vm, shell.console
    command = f"i=0; while [ $i -lt {TIMES} ]; do md5sum /noise; i=$((i+1)); done | sort | uniq -c; echo d''one\n"
    console.text, console.keys, console.wanted, vm.stopped = "", command.encode(), "", None
    for n, way in enumerate(ways):
        stop = vm.run(0.3)
        assert stop.why is End.TIMEOUT
        snapshot = through_a_file(vm.snapshot(), tmp_path / str(n))
        vm = empty(console, way)
        vm.restore(snapshot)
        console.vm = vm
    said = console.text
    assert "\ndone" not in said, "a fast machine was through with its work before the last snapshot"
    console.until(vm, "\ndone")
    assert f"{TIMES} {shell.checksum}  /noise" in said + console.text
    before = time.monotonic()
    console.until(vm, "\nafter", "sleep 1; echo a''fter\n")
    assert 0.9 < time.monotonic() - before < 100
    assert "Kernel panic" not in console.text


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_work_goes_on_in_a_small_cache(tmp_path: Path) -> None:
    """Booted in guest mode, it goes on under binary translation with room for 256 KiB of code, which overflows again and again."""
    shell = at_the_prompt("linux-pae", tmp_path)
    console = Typist()
    vm = empty(console, BtOptions(translate_user=True, cache_size=256 << 10))  # its programs have been told of SYSENTER: docs/QUIRKS.md 24
    vm.restore(shell.vm.snapshot())
    console.until(vm, "\ndone", "md5sum /noise; gzip -c /noise | gzip -dc | md5sum; (exit 3); echo status $?; echo d''one\n")
    assert console.text.count(shell.checksum) == 2 and "\nstatus 3" in console.text, console.text
    assert isinstance(vm.backend, BinaryTranslation)
    assert vm.backend.kernel.cache.flushes > 2 and vm.stats.audited > 1000 and not vm.stats.outside
