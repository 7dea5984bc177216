"""Different operating systems side by side on one CPU, each under the back-end that suits it: xv6 or GNU Mach, GNU Mach for Xen, and Linux."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from guest_kernels import kernels
from tests.guests.dialogue import FINISHED, Dialogue, Step, talk_at_terminal
from tests.guests.linux import OLD_PC
from tests.guests.linux import TIMEOUT as LINUX_TIMEOUT
from tests.guests.test_gnumach import COMMAND_LINE, LAST_LINE
from tests.guests.test_xv6 import SHELL
from tests.require import require_file, require_xv6
from tools.fetch_guests import guest
from tools.initrd import READY, make_initrd
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions
from vmm.backends.pv import PvOptions
from vmm.host import Host
from vmm.machine import Machine
from vmm.vm import Vm


def boot(path: Path, memory_mib: int, options: Options, console: Dialogue, append: str, initrd: Path | None, machine: Machine) -> Vm:
    """A system on a machine that it shares."""
    vm = Vm(machine, memory_mib=memory_mib, options=options, console=console)
    vm.load(str(path), append=append, initrd=None if initrd is None else str(initrd))
    console.attach(vm)
    return vm


@pytest.mark.parametrize("first", ("gnumach", "xv6"))
def test_three_systems(first: str, tmp_path: Path) -> None:
    """Each comes to where it comes alone: xv6 to what its shell was told, Mach to the end of its log, Linux to the answer of its shell."""
    initrd = tmp_path / "initrd.cpio"
    initrd.write_bytes(make_initrd(require_file(guest("busybox"), "BusyBox (python -m tools.fetch_guests)").read_bytes()))
    xv6 = first == "xv6"
    kernel = require_xv6("kernelmemfs") if xv6 else require_file(guest("gnumach"), "GNU Mach (python -m tools.fetch_guests)")
    linux = require_file(guest("linux-pae"), "Linux (python -m tools.fetch_guests)")
    xen = require_file(guest("gnumach-xen"), "GNU Mach for Xen (python -m tools.fetch_guests)")
    consoles = [Dialogue(SHELL if xv6 else (Step(LAST_LINE),)), Dialogue((Step(READY, "echo $((6*7))\n"), Step("42"))), Dialogue((Step(LAST_LINE),))]
    plans: list[tuple[str, Path, int, Options, str, Path | None]] = [
        (first, kernel, 256 if xv6 else 128, BtOptions(), "" if xv6 else COMMAND_LINE, None),
        ("linux", linux, 256, HwOptions(), OLD_PC, initrd),
        ("gnumach-xen", xen, 128, PvOptions(), "", None),
    ]
    host = Host.for_sizes((options, memory_mib) for _, _, memory_mib, options, _, _ in plans)
    for (name, path, memory_mib, options, append, ramdisk), console in zip(plans, consoles, strict=True):
        host.add(name, options, memory_mib, partial(boot, path, memory_mib, options, console, append, ramdisk), reboots=False)
    host.run(LINUX_TIMEOUT)
    for resident, console in zip(host.residents, consoles, strict=True):
        assert resident.failure is None
        assert resident.vm.stopped is not None
        assert resident.vm.stopped.reason == FINISHED, f"{resident.name}: {resident.vm.stopped}: {console.text[-2000:]}"


@pytest.mark.slow
@pytest.mark.timeout(int(LINUX_TIMEOUT) + 50)
def test_three_systems_at_a_terminal(tmp_path: Path) -> None:
    """`vmm run` with a bundled kernel, Linux and Mach, each under its own back-end: the first ends, and the keys are Linux's."""
    initrd = tmp_path / "initrd.cpio"
    initrd.write_bytes(make_initrd(require_file(guest("busybox"), "BusyBox (python -m tools.fetch_guests)").read_bytes()))
    linux = require_file(guest("linux-pae"), "Linux (python -m tools.fetch_guests)")
    xen = require_file(guest("gnumach-xen"), "GNU Mach for Xen (python -m tools.fetch_guests)")
    command = [sys.executable, "-c", "from tools.cli import main; main()", "run", "rings", str(linux), str(xen), "--backend", "bt,hw,pv"]
    command += ["-m", "16,256,128", "--initrd", f"2:{initrd}", "--append", f"2:{OLD_PC}"]
    steps = (Step(f"{linux.name}: # ", "sleep 2; echo $((6*7))\n"), Step(f"{linux.name}: 42"))
    text, _ = talk_at_terminal(command, steps, LINUX_TIMEOUT)
    lines = text.replace("\r", "").splitlines()
    assert set(kernels()["rings"].console) <= {line.removeprefix("rings: ") for line in lines}
    assert any(line.startswith(f"{xen.name}: ") and LAST_LINE in line for line in lines), text
