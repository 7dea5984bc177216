"""The bundled kernels' paravirtual flavours: what guests.toml expects, and the very console of the flavour for the PC."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from guest_kernels import Guest, kernels, missing_line
from tests.guests.test_bt import empty_disk
from tools.cli import status
from tools.session import status_of
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.pv import PvOptions
from vmm.console import Recorder
from vmm.devices.disk import Disk
from vmm.machine import FRAME, MIB, Machine
from vmm.vm import Vm, machine_for

GUESTS = kernels("xen")
ATTACK = GUESTS["pv_attack"]
_ABOUT_NX = re.compile(r"\bNX\b")
FLAVOURS = [guest for guest in GUESTS.values() if guest.name.endswith("-pv")]


def run(guest: Guest, options: Options, disk: Path | None) -> tuple[int, str, Vm]:
    """One run of a guest: status, console and VM."""
    console = Recorder()
    disks = [Disk(str(disk))] if disk else []
    vm = Vm(machine_for(guest.memory_mib, options), memory_mib=guest.memory_mib, options=options, disks=disks, console=console)
    try:
        vm.load(str(guest.file), append=guest.command_line)
        status = status_of(vm.run(guest.timeout_s))
    finally:
        for opened in disks:
            opened.close()
    return status, console.text, vm


@pytest.mark.parametrize("guest", GUESTS.values(), ids=lambda guest: guest.name)
@pytest.mark.parametrize("strict", (False, True), ids=("", "strict"))
def test_passes(guest: Guest, strict: bool, tmp_path: Path) -> None:
    """Status and console lines are those of guests.toml, in every run of the guest; nothing was refused but attacks, nor stored into page tables."""
    disk = empty_disk(guest, tmp_path)
    for expected in guest.runs():
        ended, console, vm = run(guest, PvOptions(strict=strict), disk)
        assert (ended, missing_line(console, expected)) == (guest.status, None), console
        if guest is not ATTACK:
            assert not vm.stats.refused
            assert not vm.stats.architectural["page-table store"]


@pytest.mark.parametrize("guest", FLAVOURS, ids=lambda guest: guest.name)
def test_prints_what_the_other_flavour_prints(guest: Guest, tmp_path: Path) -> None:
    """Line by line, the console is that of the same kernel for the PC under binary translation; but a domain has no NX, so its tests are left out."""
    plain = kernels()[guest.name.removesuffix("-pv")]
    disk = empty_disk(guest, tmp_path)
    (tmp_path / "other").mkdir()
    other = empty_disk(plain, tmp_path / "other")
    for _ in guest.runs():
        ours, theirs = run(guest, PvOptions(), disk)[1], run(plain, BtOptions(), other)[1]
        if guest.name == "faults-pae-pv":
            kept = [line for line in theirs.split("\n") if not _ABOUT_NX.search(line)]
            assert ours.split("\n")[:-2] == kept[:-2]
        else:
            assert ours == theirs


def frames(vm: Vm) -> bytes:
    """A hash of all memory of a VM, and of the tables of the VMM's that stand behind it."""
    whole = hashlib.sha256()
    assert vm.domain is not None
    for mfn in [*vm.memory.frames, vm.domain.shared.mfn, vm.domain.mmu.cr3 >> 12]:
        whole.update(vm.machine.memory[mfn * FRAME : (mfn + 1) * FRAME])
    return whole.digest()


def test_an_attack_does_not_reach_another_vm() -> None:
    """Two domains on one machine: whatever the attacker tries, the frames of the other keep their hash."""
    machine = Machine(2 * 32 * MIB + 16 * MIB, 8 * MIB)
    victim = Vm(machine, memory_mib=32, options=PvOptions())
    victim.load(str(GUESTS["rings-pv"].file))
    before = frames(victim)
    attacker = Vm(machine, memory_mib=32, options=PvOptions())
    attacker.load(str(ATTACK.file))
    attacker.run(60)
    assert isinstance(attacker.console, Recorder)
    assert missing_line(attacker.console.text, ATTACK.console) is None, attacker.console.text
    assert attacker.stats.refused.total() > 60
    assert frames(victim) == before


def test_the_command_counts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`vmm run` chooses pv by itself; --stats and --json show hypercalls by name, what was refused, validations and events."""
    record = tmp_path / "run.json"
    assert status(["run", "pv_attack", "--stats", "--json", str(record)]) == 0
    shown = capfd.readouterr().err
    for text in ("hypercalls by name", "mmu_update", "hypercalls refused", "a wild address", "page-table entries validated", "events sent, raised"):
        assert text in shown
    values = json.loads(record.read_text())
    assert (values["backend"], values["ring"]) == ("pv", 1)
    assert values["hypercalls"]["mmu_update"] > 10
    assert values["refused"]["a wild address"] > 40
    assert values["fills"] > 0
    assert values["events"]["sent"] > 0
