"""Snapshots of paravirtual guests: a domain goes on from one, in the machine frames that it knows, as if nothing had been."""

import copy
import json
import random
from pathlib import Path

import pytest

from guest_kernels import kernels
from tests.guests.test_gnumach import LAST_LINE
from tests.guests.test_linux_snapshot import Typist
from tests.guests.test_snapshot import fresh, loaded, run_until
from tests.guests.test_xen import grub, mach
from tests.machine.pv import CODE, LOG, domain_of, pv_vm
from tests.machine.test_pv_guest import leaf_table
from tools.session import make
from vmm.backends.bt import BtOptions
from vmm.backends.pv import Paravirtual, PvOptions
from vmm.console import Console, Recorder
from vmm.devices.disk import Point
from vmm.devices.overlay import Overlay, lay
from vmm.errors import InputError
from vmm.exits import End, Stop
from vmm.machine import MIB, Machine
from vmm.snapshot import Snapshot
from vmm.snapshot.domain import DomainState, Plain, arrange
from vmm.snapshot.file import read, write
from vmm.vm import Vm, machine_for

PV = PvOptions()


def restored(snapshot: Snapshot, console: Console, disks: tuple[Overlay, ...] = ()) -> Vm:
    vm = make(snapshot.memory_size >> 20, PV, disks, console, snapshot.counted, snapshot=snapshot)
    vm.restore(snapshot)
    return vm


@pytest.mark.parametrize("name", ["hello-pv", "rings-pv", "faults-pv", "faults-pae-pv", "pv_batch", "pv_attack"])
def test_the_end_is_that_of_a_run_without(name: str) -> None:
    """Console and number of instructions, handed on six times at equal distances."""
    expected, console = Recorder(), Recorder()
    whole = loaded(name, PV, expected)
    end = whole.run(100)
    assert whole.icount is not None
    vm = loaded(name, PV, console)
    for n in range(1, 7):
        run_until(vm, whole.icount.total() * n // 7)
        vm = restored(vm.snapshot(), console)
    assert vm.run(100) == end
    assert vm.icount is not None and vm.icount.total() == whole.icount.total()
    assert console.text == expected.text


def test_disks_go_along(tmp_path: Path) -> None:
    """In the midst of the test of a disk, whose ring and event channel the device must find again."""
    guest, expected, console = kernels("any")["disk-pv"], Recorder(), Recorder()
    assert guest.disk_bytes
    (tmp_path / "disk.img").write_bytes(bytes(guest.disk_bytes))

    def overlay(number: int, below: Point) -> Overlay:
        lay(str(tmp_path / str(number)), below)
        return Overlay(str(tmp_path / str(number)))

    def begin(disk: Overlay, console: Recorder) -> Vm:
        vm = Vm(machine_for(guest.memory_mib, PV), memory_mib=guest.memory_mib, options=PV, disks=[disk], console=console, icount=True)
        vm.load(str(guest.file), append=guest.command_line)
        return vm

    disk = overlay(0, Point(str(tmp_path / "disk.img"), 0))
    whole = begin(disk, expected)
    end = whole.run(60)
    assert end.why is End.REPORTED and whole.icount is not None
    disk = overlay(1, Point(str(tmp_path / "disk.img"), 0))
    vm = begin(disk, console)
    for n in range(1, 9):
        run_until(vm, whole.icount.total() * n // 9)
        snapshot = vm.snapshot()
        disk.close()
        disk = overlay(1 + n, snapshot.disks[0])
        vm = restored(snapshot, console, (disk,))
    assert (vm.run(60), console.text) == (end, expected.text)


def test_mach_in_the_midst_of_its_boot(tmp_path: Path) -> None:
    """GNU Mach goes to the same end by the same number of instructions, with the same log."""

    def booted(console: Recorder) -> Vm:
        vm = Vm(machine_for(64, PV), memory_mib=64, options=PV, console=console, icount=True)
        vm.load(str(mach()))
        return vm

    expected, console = Recorder(), Recorder()
    whole = booted(expected)
    end = whole.run(60)
    assert LAST_LINE in expected.text and whole.icount is not None
    vm = booted(console)
    for n in range(1, 10):
        run_until(vm, whole.icount.total() * n // 10)
        write(str(tmp_path / str(n)), vm.snapshot())
        vm = restored(read(str(tmp_path / str(n))), console)
    assert (vm.run(60), console.text) == (end, expected.text)
    assert vm.icount is not None and vm.icount.total() == whole.icount.total()


def test_grub_at_its_prompt(tmp_path: Path) -> None:
    """A domain that sleeps goes on where its frames are free, on a machine that others use too; what it was sent and polls for still reaches it."""
    console = Typist()
    vm = Vm(machine_for(64, PV), memory_mib=64, options=PV, console=console)
    vm.load(str(grub()))
    console.until(vm, "grub> ")
    vm.stopped = None
    vm.run(0.2)
    path = str(tmp_path / "one")
    write(path, vm.snapshot())
    console.until(vm, "first", "echo first\n")
    snapshot = read(path)
    assert snapshot.domain is not None
    machine = Machine(300 * MIB, 50 * MIB)
    machine.allocate(5)
    arrange(machine, snapshot.domain)
    vm = Vm(machine, memory_mib=64, options=PV, console=console)
    vm.restore(snapshot)
    console.until(vm, "second", "echo second\n")
    console.until(vm, "available RAM", "lsmmap\n")
    taken = Machine(300 * MIB, 50 * MIB)
    taken.claim(vm.memory.frames[1000:1001])
    with pytest.raises(InputError, match="not free on this machine"):
        arrange(taken, snapshot.domain)
    other = Machine(300 * MIB, 50 * MIB)
    other.allocate(1)
    with pytest.raises(InputError, match="not free on this machine"):
        Vm(other, memory_mib=64, options=PV).restore(snapshot)


def test_a_step_is_ended_first() -> None:
    """Where the engine stops between a store into a page table and the single step that emulates it: each store is done once."""
    entry = leaf_table() + 8 * 0x30
    vm = pv_vm({CODE: f"mov dword ptr [{entry}],0; l: add dword ptr [{entry}],0x1000; inc dword ptr [{LOG}]; jmp l"})
    for n in range(1, 20):
        stop_in_front_of_the_step(vm)
        vm.run(20)
        snapshot, vm.stopped = vm.snapshot(), None
        vm = restored(snapshot, Recorder())
        domain = domain_of(vm)
        done = domain.arguments.words(LOG, 1)[0]
        assert domain.arguments.words(entry, 1)[0] == n - 1 << 12 and done == max(0, n - 2)


def stop_in_front_of_the_step(vm: Vm) -> None:
    engine = vm.backend
    assert isinstance(engine, Paravirtual)
    begin = engine.stores.begin

    def begin_and_stop(gva: int) -> None:
        begin(gva)
        vm.stop(Stop(End.QUIT, "here"))

    engine.stores.begin = begin_and_stop  # type: ignore[method-assign]


def test_only_to_its_like() -> None:
    """A domain is no PC, and a PC no domain: one line each."""
    domain = loaded("hello-pv", PV, Recorder()).snapshot()
    with pytest.raises(InputError, match="takes --backend pv"):
        fresh("hello-pv", BtOptions(), Recorder()).restore(domain)
    pc = loaded("hello", BtOptions(), Recorder()).snapshot()
    with pytest.raises(InputError, match="not a paravirtual guest"):
        fresh("hello-pv", PV, Recorder()).restore(pc)


def test_what_is_no_domain_is_refused() -> None:
    """Whatever stands in a snapshot's file: one line, or a guest that runs, if only to its own death."""
    vm = loaded("faults-pv", PV, Recorder())
    run_until(vm, 600_000)
    snapshot, chance = vm.snapshot(), random.Random(1)
    assert snapshot.domain is not None
    refused = 0
    for _ in range(60):
        wrong = copy.copy(snapshot)
        object.__setattr__(wrong, "domain", spoilt(snapshot.domain, chance))
        try:
            one = make(snapshot.memory_size >> 20, PV, (), Recorder(), True, snapshot=wrong)
            one.restore(wrong)
        except InputError:
            refused += 1
            continue
        one.clock.at(one.clock.now() + 1_000_000, lambda vm=one: vm.stop(Stop(End.QUIT, "enough")))  # type: ignore[misc]
        one.run(20)
        one.snapshot() if one.stopped is not None and one.stopped.why is End.QUIT else None
    assert 15 < refused < 60


def spoilt(state: DomainState, chance: random.Random) -> DomainState:
    """One value of a state is another, or gone."""
    wrong: DomainState = json.loads(json.dumps(state))
    place: Plain = wrong
    while True:
        assert isinstance(place, (dict, list))
        key = chance.choice([*place]) if isinstance(place, dict) else chance.randrange(len(place))
        value = place[key]  # type: ignore[index]
        if isinstance(value, (dict, list)) and value and chance.random() < 0.9:
            place = value
            continue
        if chance.random() < 0.1:
            del place[key]  # type: ignore[arg-type]
        else:
            place[key] = chance.choice([None, -1, 0, 1, 7, 1 << 12, 1 << 40, "", "00", [], {}, True, 0xFFFFFFFF])  # type: ignore[index]
        return wrong
