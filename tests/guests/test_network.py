"""Two kernels that work together over a network, under back-ends side by side and on QEMU; one is killed and restored, and the other goes on."""

from __future__ import annotations

import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from guest_kernels import kernels, missing_line
from tests.guests.test_qemu import QEMU
from tests.require import missing, require
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions
from vmm.backends.step import StepOptions
from vmm.console import Recorder
from vmm.exits import End, Stop
from vmm.host import Host
from vmm.machine import Machine
from vmm.network import Port, Switch
from vmm.snapshot import Snapshot
from vmm.vm import Vm

PAIR = kernels("network")
PATIENCE = 120.0
WAYS = [(BtOptions(), BtOptions()), (HwOptions(), BtOptions(ring=3)), (BtOptions(translate_user=True), HwOptions()), (StepOptions(), BtOptions())]


class Watched(Recorder):
    """A console that ends the host's run when a line comes."""

    def __init__(self) -> None:
        super().__init__()
        self.host: Host | None = None
        self.line = b""

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.line and self.line in self.output and self.host is not None:
            self.line = b""
            self.host.stop(Stop(End.QUIT, "the line has come"))


def boot(name: str, options: Options, console: Recorder, port: Port, append: str, snapshot: Snapshot | None, machine: Machine) -> Vm:
    """One of the pair, loaded or out of a snapshot."""
    vm = Vm(machine, memory_mib=PAIR[name].memory_mib, options=options, console=console, network=port)
    if snapshot is None:
        vm.load(str(PAIR[name].file), append=append)
    else:
        vm.restore(snapshot)
    return vm


def pair(server: Options, app: Options, append: str = "") -> tuple[Host, Watched, Watched, Switch]:
    """A host with both, their consoles, and the network between them."""
    host, switch, consoles = Host.for_sizes(((server, 16), (app, 16))), Switch(), (Watched(), Watched())
    for name, options, console in (("fileserver", server, consoles[0]), ("app", app, consoles[1])):
        host.add(name, options, 16, partial(boot, name, options, console, switch.port(), append, None))
        console.host = host
    return host, *consoles, switch


@pytest.mark.parametrize(("server", "app"), WAYS)
def test_they_work_together(server: Options, app: Options) -> None:
    """Each prints what it prints on QEMU, and no packet is lost."""
    host, served, asked, switch = pair(server, app)
    host.run(PATIENCE)
    assert [resident.failure for resident in host.residents] == [None, None]
    assert missing_line(served.text, PAIR["fileserver"].console) is None, served.text
    assert missing_line(asked.text, PAIR["app"].console) is None, asked.text
    assert switch.lost == 0
    assert switch.delivered >= 82


@pytest.mark.parametrize("again", [BtOptions(), HwOptions()])
def test_the_server_is_killed_and_restored(again: Options) -> None:
    """A snapshot of the server, its death some time after, and its return from it, under another back-end too: the app goes on after its retry."""
    host, _, asked, switch = pair(BtOptions(), BtOptions(), "rounds=60")
    server = host.residents[0]
    asked.line = b"app: 20 rounds"
    host.run(PATIENCE)
    host.show(server)
    snapshot = server.vm.snapshot()
    host.resume()
    asked.line = b"app: 40 rounds"
    host.run(PATIENCE)
    server.vm.stopped = Stop(End.DIED, "killed")
    host.residents[1].vm.stopped = None
    asked.line = b"app: no answer: it asks again"
    host.run(PATIENCE)
    host.resume()
    console = Recorder()
    host.replace(server, partial(boot, "fileserver", again, console, switch.ports[0], "", snapshot))
    host.run(PATIENCE)
    for resident in host.residents:
        assert resident.vm.stopped is not None
        assert (resident.vm.stopped.why, resident.vm.stopped.value) == (End.REPORTED, 0), asked.text + console.text
    ends = ("PASS: every round read what it wrote", "PASS: it went on when the server came back")
    expected = ("app: 40 rounds", "app: no answer: it asks again", *ends)
    assert missing_line(asked.text, expected) is None, asked.text


def test_on_qemu(tmp_path: Path) -> None:
    """The same pair on two QEMUs with a wire between them: the kernels run elsewhere too."""
    qemu = require(QEMU)
    if b"stream" not in subprocess.run([qemu, "-netdev", "help"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout:
        missing("QEMU's -netdev stream, of version 7.2")
    wire, spoken = tmp_path / "wire", tmp_path / "server.txt"
    common = [qemu, "-display", "none", "-no-reboot", "-m", "16", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    ends = [f"stream,id=n,server={server},addr.type=unix,addr.path={wire}" for server in ("on", "off")]
    adapters = [f"ne2k_isa,iobase=0x300,irq=9,netdev=n,mac=52:54:00:12:34:{last}" for last in (56, 57)]
    first = [*common, "-kernel", str(PAIR["fileserver"].file), "-serial", f"file:{spoken}", "-netdev", ends[0], "-device", adapters[0]]
    second = [*common, "-kernel", str(PAIR["app"].file), "-serial", "stdio", "-netdev", ends[1], "-device", adapters[1]]
    with subprocess.Popen(first, stdin=subprocess.DEVNULL) as server:
        try:
            end = time.monotonic() + PATIENCE
            while not wire.exists():
                assert server.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
            app = subprocess.run(second, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=PATIENCE, check=False)
            assert missing_line(app.stdout.decode(), PAIR["app"].console) is None
            assert server.wait(PATIENCE) == 1
        finally:
            server.kill()
    assert missing_line(spoken.read_text(), PAIR["fileserver"].console) is None


def test_without_an_adapter() -> None:
    """A guest that looks for one where no network is finds an open bus, and says so."""
    console = Recorder()
    host = Host.for_sizes([(BtOptions(), 16)])

    def alone(machine: Machine) -> Vm:
        vm = Vm(machine, memory_mib=16, options=BtOptions(), console=console)
        vm.load(str(PAIR["app"].file))
        return vm

    host.add("app", BtOptions(), 16, alone)
    host.run(PATIENCE)
    assert "FAIL: an NE2000 adapter" in console.text
