"""GNU Mach of Debian, unmodified, under binary translation, in guest mode and on the bare machine: its boot log against QEMU's, line by line.

Knows which lines speak of hardware that only one of the two machines has; every other line must be the same.
"""

from __future__ import annotations

import gzip
import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.guests.dialogue import FINISHED, Dialogue, Step, talk_to_process
from tests.guests.test_qemu import QEMU
from tests.require import require, require_file
from tools.fetch_guests import guest
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions
from vmm.backends.native import NativeOptions
from vmm.stats import Statistics
from vmm.vm import Vm, machine_for

LAST_LINE = "No bootstrap code loaded with the kernel!"
COMMAND_LINE = "console=com0"
NATIVE: Options = NativeOptions()
TIMEOUT = 60.0

ABSENT_HARDWARE: Mapping[str, str] = {
    # whole lines, as a pattern: why they are not compared
    r"pcibios_init ?: .*|pci_init: .*|Probing PCI hardware\.": "QEMU's machine has a PCI bus and a BIOS32 service; ours is an ISA machine",
    r"ide: (Intel 82371|BM-DMA) .*| +Controller on PCI .*| +ide\d: BM-DMA .*": "QEMU's IDE controller is a PCI device",
    r"intnull\(15\)|hd2: .* CDROM drive|ide1 at .*|Partition check .*": "QEMU has a CD-ROM drive by default",
    r"Floppy drive\(s\): .*|FDC 0 is .*|floppy0: no floppy controllers found": "QEMU has a floppy drive",
    r"lpr0: .*": "QEMU has a parallel port",
    r"RTC time is .*": "the time of day; it is checked by itself",
}


def kernel() -> Path:
    """The downloaded kernel, gzip'ed as the package has it."""
    return require_file(guest("gnumach"), "GNU Mach (python -m tools.fetch_guests)")


def lines(log: str) -> list[str]:
    """The log as lines up to the last one; what a carriage return and erase-line ends counts as a line."""
    wanted = log.partition(LAST_LINE)[0] + LAST_LINE
    return [line.strip("\r") for line in re.split(r"\n|\x1b\[K\r?", wanted)]


def comparable(log: str) -> list[str]:
    """The lines that must be the same on both machines."""
    return [line for line in lines(log) if not any(re.fullmatch(pattern, line) for pattern in ABSENT_HARDWARE)]


_ENDED: dict[tuple[int, int], datetime] = {}  # when each boot was over: boots are kept


@cache
def boot(ring: int, memory_mib: int, options: Options = NATIVE) -> tuple[str, Statistics]:
    """The boot log under bt, or in ring 0 under `options`, and what was counted."""
    console = Dialogue([Step(LAST_LINE)])
    options = BtOptions(ring=ring) if ring else options
    vm = Vm(machine_for(memory_mib, options), memory_mib=memory_mib, options=options, console=console)
    console.attach(vm)
    vm.load(str(kernel()), append=COMMAND_LINE)
    assert vm.run(TIMEOUT).reason == FINISHED, console.text
    _ENDED[ring, memory_mib] = datetime.now(UTC)
    return console.text, vm.stats


@cache
def qemu_log(memory_mib: int) -> str:
    """The boot log on QEMU."""
    with TemporaryDirectory() as folder:
        unpacked = Path(folder) / "gnumach"  # QEMU's multiboot loader does not unpack
        unpacked.write_bytes(gzip.decompress(kernel().read_bytes()))
        command = [require(QEMU), "-kernel", str(unpacked), "-append", COMMAND_LINE, "-m", str(memory_mib)]
        return talk_to_process([*command, "-display", "none", "-serial", "stdio", "-no-reboot"], [Step(LAST_LINE)], TIMEOUT)[0]


@pytest.mark.parametrize("ring", (1, 3))
def test_boots_as_on_qemu(ring: int) -> None:
    """The boot log of `-m 128` is QEMU's but for absent hardware; no kernel instruction ran outside the cache."""
    kernel()
    require(QEMU)
    log, stats = boot(ring, 128)
    assert comparable(log) == comparable(qemu_log(128))
    assert stats.audited > 0
    assert stats.outside == 0


def test_boots_natively_as_on_qemu() -> None:
    """On the bare machine too, the boot log of `-m 128` is QEMU's but for absent hardware; the CPU exits only for what it lacks."""
    kernel()
    require(QEMU)
    log, stats = boot(0, 128)
    assert comparable(log) == comparable(qemu_log(128))
    assert not stats.architectural


def test_boots_in_guest_mode_as_on_qemu() -> None:
    """In guest mode too, the boot log of `-m 128` is QEMU's but for absent hardware."""
    kernel()
    require(QEMU)
    log, stats = boot(0, 128, HwOptions())
    assert comparable(log) == comparable(qemu_log(128))
    assert stats.architectural


@pytest.mark.slow
@pytest.mark.parametrize("memory_mib", (32, 240, 1500))
def test_finds_as_much_memory_as_on_qemu(memory_mib: int) -> None:
    """With other sizes of memory too, the kernel finds the very memory map, page counts and limits that it finds on QEMU."""
    kernel()
    require(QEMU)
    log, _ = boot(1, memory_mib)
    ours, theirs = ([line for line in lines(text) if line.startswith(("biosmem:", "vm_page:"))] for text in (log, qemu_log(memory_mib)))
    assert len(ours) > 8
    assert ours == theirs


def test_tells_the_time() -> None:
    """The RTC that the kernel read gave the host's time in UTC."""
    log, _ = boot(1, 128)
    found = re.search(r"RTC time is (\d+-\d+-\d+ \d+:\d+:\d+)", log)
    assert found, log
    told = datetime.strptime(found[1] + " +0000", "%Y-%m-%d %H:%M:%S %z")
    assert abs((_ENDED[1, 128] - told).total_seconds()) < 30


def test_each_exception_is_needed() -> None:
    """Every pattern of ABSENT_HARDWARE covers a line of one of the two logs: none is left from another version."""
    kernel()
    require(QEMU)
    both = lines(boot(1, 128)[0]) + lines(qemu_log(128))
    assert not [pattern for pattern in ABSENT_HARDWARE if not any(re.fullmatch(pattern, line) for line in both)]


@pytest.mark.parametrize("ring", (1, 3))
def test_the_command_says_so_in_its_json(ring: int, tmp_path: Path) -> None:
    """`vmm run` as a process, ended by an interrupt behind the last line: the same log, and an audit without a miss in the JSON."""
    record = tmp_path / "run.json"
    command = [sys.executable, "-c", "from tools.cli import main; main()", "run", str(kernel()), "-m", "128", "--append", COMMAND_LINE]
    command += ["--ring", str(ring), "--json", str(record)]
    output = bytearray()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        while LAST_LINE.encode() not in output and (data := process.stdout.read(4096)):
            output += data
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        process.wait(TIMEOUT)
    assert LAST_LINE.encode() in output
    audit = json.loads(record.read_text())["audit"]
    assert audit["checked"] > 0
    assert audit["outside"] == 0
