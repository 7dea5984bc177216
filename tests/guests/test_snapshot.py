"""Snapshots: a guest goes on from one as if nothing had been, on whichever back-end.

With virtual time by instructions the end of a run is exact, so a run with snapshots in it must end as the one without.
"""

from functools import cache

import pytest

from guest_kernels import kernels
from tests.oracle.test_bundled_kernels import End, agree, end_of
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions
from vmm.backends.native import NativeOptions
from vmm.backends.step import StepOptions
from vmm.console import Recorder
from vmm.errors import InputError
from vmm.exits import End as Why
from vmm.exits import Stop
from vmm.icount import NANOSECONDS
from vmm.snapshot import Snapshot
from vmm.vm import Vm, machine_for

NATIVE, BT, RING_3, STEP, HW = NativeOptions(), BtOptions(translate_user=True), BtOptions(ring=3, translate_user=True), StepOptions(), HwOptions()

DIRECT, DIRECT_3, SHADOW = BtOptions(), BtOptions(ring=3, stubs_in_cache=False), HwOptions(mmu="shadow")
IN_REAL_TIME = [
    ("rings", HW, DIRECT),
    ("rings", DIRECT, DIRECT_3),
    ("rings", DIRECT_3, NATIVE),
    ("rings", NATIVE, SHADOW),
    ("rings", SHADOW, BT),
    ("real16", HW, HW),
    ("faults-pae", DIRECT, HW),
    ("faults-pae", HW, NATIVE),
    ("faults-pae", SHADOW, DIRECT_3),
]


def fresh(name: str, options: Options, console: Recorder, *, icount: bool = True) -> Vm:
    """A VM for a bundled kernel with nothing in it."""
    memory = kernels("any")[name].memory_mib
    return Vm(machine_for(memory, options), memory_mib=memory, options=options, console=console, icount=icount)


def loaded(name: str, options: Options, console: Recorder, *, icount: bool = True) -> Vm:
    guest, vm = kernels("any")[name], fresh(name, options, console, icount=icount)
    vm.load(str(guest.file), append=guest.command_line)
    return vm


def run_until(vm: Vm, instructions: int) -> None:
    """Runs a VM that counts to the first boundary behind so many instructions."""
    vm.clock.at(instructions * NANOSECONDS, lambda: vm.stop(Stop(Why.QUIT, "here")))
    stop = vm.run(100)
    assert stop.reason == "here", stop


@cache
def length(name: str) -> int:
    """Instructions of the whole run on the bare machine."""
    vm = loaded(name, NATIVE, Recorder())
    vm.run(100)
    return vm.backend.retired()


def relay(name: str, ways: list[Options]) -> End:
    """Runs a bundled kernel to its end, handing it on from one back-end to the next by snapshots at equal distances."""
    console, total = Recorder(), length(name)
    vm = loaded(name, ways[0], console)
    for n, way in enumerate(ways[1:], 1):
        run_until(vm, total * n // len(ways))
        snapshot = vm.snapshot()
        vm = fresh(name, way, console)
        vm.restore(snapshot)
    stop = vm.run(200)
    return end_of(vm, stop, console)


@pytest.mark.parametrize("ways", [[NATIVE, NATIVE], [BT, BT], [NATIVE, BT, RING_3, HW, NATIVE, HW, BT]], ids=["native", "bt", "relay"])
@pytest.mark.parametrize("name", ["hello", "faults", "faults-pae", "stale-shadow", "lost-if"])
def test_the_end_is_that_of_the_bare_machine(name: str, ways: list[Options]) -> None:
    """Console, registers, memory and the number of instructions."""
    agree(name, relay(name, ways))


@pytest.mark.slow
def test_interrupts_come_at_the_same_instructions() -> None:
    """`rings`, which the timer pre-empts, handed on ten times."""
    agree("rings", relay("rings", [BT, NATIVE, RING_3, BT, NATIVE, BT, RING_3, BT, NATIVE, BT]), images=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hello", "faults-io", "faults-step", "lost-if"])
def test_stepping_takes_over(name: str) -> None:
    """The back-end that runs one instruction at a time, in turn with the others."""
    agree(name, relay(name, [STEP, BT, STEP, NATIVE, STEP]))


@pytest.mark.parametrize("name, before, after", IN_REAL_TIME)
def test_in_real_time(name: str, before: Options, after: Options) -> None:
    """What the guest says is complete, whoever ran it before and after, and wherever it was stopped."""
    guest, console = kernels("any")[name], Recorder()
    vm = loaded(name, before, console, icount=False)
    for pause in (0.05, 0.1):
        vm.run(pause)
        if vm.stopped is not None and vm.stopped.why is not Why.TIMEOUT:
            break
        snapshot = vm.snapshot()
        vm = fresh(name, after, console, icount=False)
        vm.restore(snapshot)
    else:
        vm.run(60)
    assert vm.stopped is not None and vm.stopped.why is Why.REPORTED, vm.stopped
    missing = iter(console.text.replace("\r", "").splitlines())
    assert all(any(wanted == line for line in missing) for wanted in guest.console), console.text


def test_a_chain_of_snapshots() -> None:
    """Each tells only the frames that changed since the one before; the VM itself goes on; any of them can be gone back to."""
    console = Recorder()
    vm = loaded("faults", BT, console)
    chain: list[Snapshot] = []
    for n in range(1, 5):
        run_until(vm, length("faults") * n // 6)
        chain.append(vm.snapshot(chain[-1] if chain else None))
        vm.stopped = None
    whole = vm.snapshot()
    assert whole.memory() == chain[-1].memory()
    assert 0 < len(chain[-1].frames) < len(whole.frames)
    agree("faults", end_of(vm, vm.run(100), console))
    for snapshot in chain:
        again = Recorder()
        vm = fresh("faults", BT, again)
        vm.restore(snapshot)
        stop = vm.run(100)
        assert stop.why is Why.REPORTED and console.text.endswith(again.text)


def test_a_snapshot_of_a_vm_of_another_process_can_be_a_parent() -> None:
    """What changed since is told by what the parent holds, wherever it was taken."""
    vm = loaded("faults", NATIVE, Recorder())
    run_until(vm, length("faults") // 2)
    parent = vm.snapshot()
    other = fresh("faults", BT, Recorder())
    other.restore(parent)
    run_until(other, length("faults") * 2 // 3)
    child = other.snapshot(parent)
    assert len(child.frames) < len(parent.frames)
    assert child.memory() == other.snapshot().memory()


def test_what_has_no_snapshot() -> None:
    """A guest that has ended, a machine of another size."""
    vm = loaded("hello", BT, Recorder())
    vm.run(20)
    with pytest.raises(InputError, match="has ended"):
        vm.snapshot()
    small, large = loaded("hello", BT, Recorder()), fresh("faults", BT, Recorder())
    snapshot = small.snapshot()
    with pytest.raises(InputError, match="16 MiB of memory, not 32"):
        large.restore(snapshot)
