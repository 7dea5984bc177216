"""`vmm demo scribble`: damage that repeats exactly, a neighbour that sees nothing of it, and the way back; damage from outside by `vmm.damage`."""

from __future__ import annotations

import signal
import subprocess

import pytest

from tests.guests.test_qemu import QEMU
from tests.machine.flat import flat_vm
from tests.require import require
from tools.cli import status
from tools.demo import GUEST, Ear, boot, frames_in_use, run_for, silent, trial, words
from vmm.backends.bt import BtOptions
from vmm.damage import scribble
from vmm.vm import Vm, machine_for

EVERY = "0.2"


class Stopper:
    """Ends a VM's run as a host would."""

    def __init__(self, vm: Vm) -> None:
        self.stop = vm.stop


def test_the_demonstration(capfd: pytest.CaptureFixture[str]) -> None:
    """The victim's damage is noticed, the healthy guest is to the byte what it is alone, and the restored one is as before, and well."""
    assert status(["demo", "scribble", "--seed", "3", "--every", EVERY]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    lines = out.splitlines()
    for part in ("victim    round 1: 1 random bytes", "noticed ", "silent ", "healthy ", ": the same", ": as in the snapshot", ": all is well"):
        assert any(part in line for line in lines), out


def test_trials(capfd: pytest.CaptureFixture[str]) -> None:
    """A line for each seed, and histograms; not all damage is of one kind, and the same seeds do the same again."""
    printed = []
    for _ in range(2):
        assert status(["demo", "scribble", "--trials", "4", "--every", EVERY]) == 0
        printed.append(capfd.readouterr().out)
    assert printed[0] == printed[1]
    assert [line.split()[1] for line in printed[0].splitlines() if line.startswith("seed ")] == ["1", "2", "3", "4"]
    assert "N at the first damage that was noticed" in printed[0]


def test_a_crash_is_noticed() -> None:
    """Seed 15 ends in a triple fault, which the guest itself cannot tell of."""
    noticed = trial(15, 1.0, BtOptions())
    assert (noticed.kind, noticed.bytes_, noticed.before) == ("crash", 256, 255)


@pytest.mark.parametrize(("arguments", "says"), (
    (["demo", "scribble", "--trials", "0"], "--trials 0: must be a number above 0"),
    (["demo", "scribble", "--every", "never"], "--every never:"),
    (["demo", "scribble", "--every", "1e30"], "--every 1e30: must be 600 s at most"),
    (["demo", "scribble", "--module", "x.ko"], "--module: goes with linux"),
    (["demo", "scribble", "--seed", "x"], "--seed x: must be a number"),
    (["demo", "scribble", "--backend", "hw"], "--backend hw: must be"),
    (["demo", "nonsense"], "nonsense: must be"),
))  # fmt: skip
def test_bad_usage(arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    """One line, and status 2."""
    assert status(arguments) == 2
    assert says in capfd.readouterr().err


def test_the_places_are_the_guests() -> None:
    """The generator here is that of the guest: each frame that is in use only because of the damage is one that it names."""
    ear = Ear(10**12)
    vm = boot(words(2, 0.2, " last=6"), BtOptions(), ear, None, machine_for(GUEST.memory_mib, BtOptions()))
    ear.wanted, ear.host = b"round 1:", Stopper(vm)  # type: ignore[assignment]
    vm.run(60)
    before = frames_in_use(vm)
    vm.stopped = None
    vm.run(60)
    assert "round 6:" in ear.text
    touched = frames_in_use(vm) - before
    assert len(touched) > 20
    assert all(silent(2, 63, frozenset((gfn,))) for gfn in touched)
    assert silent(2, 63, frozenset(range(2048))) == 63


def test_a_signal_ends_it() -> None:
    """Ctrl-C stops the guest between two instructions, and is then what it always is."""
    vm = flat_vm({0x100000: "l: jmp l"}, options=BtOptions())
    vm.clock.at(0, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run_for(vm, 60)
    assert vm.stopped is not None
    assert vm.stopped.reason == "ended by Ctrl-C"


def test_damage_from_outside() -> None:
    """So many bytes, by the seed, at places all over memory; what they were before is told."""
    vm, other = (flat_vm({0x100000: "hlt"}, options=BtOptions()) for _ in range(2))
    done = list(scribble(vm.memory, 64, 7))
    assert done == list(scribble(other.memory, 64, 7))
    assert done != list(scribble(other.memory, 64, 8))
    assert all(vm.memory.read(gpa, 1)[0] == after for gpa, _, after in done[-1:])
    assert len({gpa >> 12 for gpa, _, _ in done}) > 40


def test_on_qemu() -> None:
    """The guest is a kernel like any other: unharmed it comes to its end there."""
    qemu = require(QEMU)
    command = [qemu, "-display", "none", "-no-reboot", "-m", str(GUEST.memory_mib), "-serial", "stdio", "-kernel", str(GUEST.file)]
    command += ["-append", "harmless every=3 last=3", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 1
    assert b"PASS: 3 rounds, and nobody noticed anything" in done.stdout
