"""Two Linux guests on one network: one CPU, Debian's driver of the adapter, BusyBox at both ends. What is typed is what docs/MACHINES.md has."""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path

import pytest

from tests.guests.dialogue import Step, talk_at_terminal
from tests.guests.linux import MEMORY_MIB, OLD_PC, TIMEOUT
from tests.require import missing, require_file
from tools.fetch_guests import extras, guest
from tools.initrd import make_initrd

_FILE = random.Random("a file to copy").randbytes(300_000)
_VMM = (sys.executable, "-c", "from tools.cli import main; main()")
_NEXT = "\x01n"


def ram_disk(folder: Path, name: str, kernel: str, files: dict[str, bytes]) -> str:
    """A RAM disk with the kernel's driver of the adapter, and `files`."""
    drivers = {path.name: path.read_bytes() for path in extras(kernel)}
    if not drivers:
        missing("the driver of the network adapter is not here (python -m tools.fetch_guests)")
    busybox = require_file(guest("busybox"), "BusyBox (python -m tools.fetch_guests)").read_bytes()
    (folder / name).write_bytes(make_initrd(busybox, drivers | files))
    return str(folder / name)


def plug_in(number: int) -> str:
    """What is typed to have a network."""
    return f"insmod /8390p.ko; insmod /ne.ko io=0x300 irq=9; ifconfig eth0 10.0.0.{number} && "


@pytest.mark.slow
@pytest.mark.timeout(int(TIMEOUT) + 50)
def test_two_linux_guests(tmp_path: Path) -> None:
    """They ping each other without a loss, and a file that only one of them had is the same at the other."""
    kernel = str(require_file(guest("linux-pae"), "Linux (python -m tools.fetch_guests)"))
    one, two = ram_disk(tmp_path, "one", "linux-pae", {"file": _FILE}), ram_disk(tmp_path, "two", "linux-pae", {})
    command = [*_VMM, "run", kernel, kernel, "--net", "lan", "-m", str(MEMORY_MIB), "--initrd", f"1:{one}", "--initrd", f"2:{two}"]
    command += ["--append", f"1:{OLD_PC}", "--append", f"2:{OLD_PC}"]
    first, second = (f"{kernel.rpartition('/')[2]}{number}: " for number in ("", "-2"))
    steps = (
        Step(f"{first}# ", f"{plug_in(1)}httpd -h / && echo serv''ed\n"),
        Step(f"{first}served", _NEXT),
        Step(f"{second}# ", f"{plug_in(2)}ping -c 3 -i 0.1 10.0.0.1; wget -q -O /tmp/copy http://10.0.0.1/file; md5sum /tmp/copy\n"),
        Step("3 packets transmitted, 3 packets received"),
        Step("  /tmp/copy", _NEXT),
        Step(f"{first}# ", "ping -c 2 -i 0.1 10.0.0.2\n"),
        Step("2 packets transmitted, 2 packets received"),
    )
    text, _ = talk_at_terminal(command, steps, TIMEOUT)
    assert f"{second}{hashlib.md5(_FILE).hexdigest()}  /tmp/copy" in text, text[-3000:]
