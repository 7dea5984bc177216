"""Eight idle guests, each a process: what they cost in CPU time, and Linux in memory; tools/fetch_guests.py must have been run."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from tests.bench.conftest import Keep
from tests.cli.vms import LONG, Talk, home, started
from tests.guests.dialogue import cpu_of
from tests.guests.linux import BUSYBOX, OLD_PC
from tests.require import require_file
from tools.cli import status
from tools.fetch_guests import guest
from tools.initrd import READY, make_initrd
from vmm.store.directory import Directory

__all__ = ["home"]

pytestmark = pytest.mark.bench

COUNT, MEMORY_MIB, SECONDS = 8, 128, 10.0


def test_idle_vms(keep: Keep, home: Path) -> None:
    """Guests that wait for a key with their CPU halted."""
    for n in range(COUNT):
        started(home, f"vm{n}")
    share = idle_share([f"vm{n}" for n in range(COUNT)])
    keep("idle", 100 * share, f"{100 * share:.2f} % of a core")


def test_idle_linux(keep: Keep, home: Path) -> None:
    """One is booted, and the others go on from its snapshot. At their prompts they have 250 interrupts a second: they find no clock to sleep by."""
    image = require_file(guest("linux-pae"), "Linux (python -m tools.fetch_guests)")
    busybox = require_file(guest(BUSYBOX["linux-pae"]), "BusyBox (python -m tools.fetch_guests)")
    initrd = home / "initrd.cpio"
    initrd.write_bytes(make_initrd(busybox.read_bytes(), {}))
    names = [f"vm{n}" for n in range(COUNT)]
    for name in names:
        assert status(["create", name, str(image), "-m", str(MEMORY_MIB), "--append", OLD_PC, "--initrd", str(initrd)]) == 0
    assert status(["start", names[0]]) == 0
    talk = Talk(names[0])
    talk.console.settimeout(3 * LONG)
    talk.until(READY)
    talk.until("# ")
    assert status(["snapshot", names[0], "idle"]) == 0
    for name in names[1:]:
        os.link(Directory(names[0]).snapshot("idle"), Directory(name).snapshot("idle"))
        assert status(["start", name, "--restore", "idle"]) == 0
        Talk(name).console.sendall(b"\n")
    share = idle_share(names)
    beside = [proportional(pid) - guest_resident(pid) for pid in processes(names)]
    keep("vm-memory", max(beside), f"{beside[0]:.1f} MiB that was booted, {max(beside[1:]):.1f} MiB that was restored")
    keep("idle-linux", 100 * share, f"{100 * share:.1f} % of a core: 250 interrupts a second each")


def processes(names: list[str]) -> list[int]:
    found = [pid for pid in (Directory(name).holder() for name in names) if pid]
    assert len(found) == COUNT
    return found


def idle_share(names: list[str]) -> float:
    """CPU seconds a second of all processes together, once they have come to rest."""
    time.sleep(5)
    before = {pid: cpu_of(pid) for pid in processes(names)}
    time.sleep(SECONDS)
    return sum(cpu_of(pid) - used for pid, used in before.items()) / SECONDS


def proportional(pid: int) -> float:
    """MiB of a process in memory; of a page that processes share, its part."""
    found = re.search(r"^Pss: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024


def guest_resident(pid: int) -> float:
    """MiB of them that belong to the mapping which is the physical machine: guest memory, and the VMM's tables in it, which are few."""
    size, found = 0, 0.0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            begin, end = (int(at, 16) for at in line.split()[0].split("-"))
            size = end - begin
        elif line.startswith("Rss:") and size >= MEMORY_MIB << 20:
            found += int(line.split()[1]) / 1024
    return min(found, MEMORY_MIB)
