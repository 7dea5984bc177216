"""xv6-public, unmodified, under binary translation: its shell, its programs and its own tests. Needs XV6=DIR, a tree that you have built.

Knows what a person would type and see. Both kinds of kernel: `kernelmemfs` with its file system in memory, and `kernel` with two disks.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.guests.dialogue import FINISHED, Dialogue, Step, talk_to_process
from tests.guests.footprint import MEMORY_MIB, measure
from tests.guests.test_qemu import QEMU
from tests.require import require, require_xv6
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions
from vmm.backends.native import NativeOptions
from vmm.devices.disk import Disk
from vmm.machine import MIB
from vmm.vm import Vm, machine_for

PROMPT = "\n$ "
SHELL = (
    Step("init: starting sh" + PROMPT, "ls\n"),
    Step("console" + " " * 8),
    Step(PROMPT, "echo hi | wc\n"),
    Step("1 1 3 " + PROMPT, "forktest\n"),
    Step("fork test OK" + PROMPT),
)
USER_TESTS = (Step("init: starting sh" + PROMPT, "usertests\n"), Step("usertests starting\n"), Step("ALL TESTS PASSED\n"))
BESIDE_LIMIT = 80 * MIB
GROWTH_LIMIT = 2 * MIB  # the allocator's own unrest
OPTIONS: dict[str, Options] = {
    "ring1": BtOptions(),
    "ring3": BtOptions(ring=3),
    "ring1-trap": BtOptions(stubs_in_cache=False),
    "ring1-translate": BtOptions(translate_user=True),
    "ring3-translate": BtOptions(ring=3, translate_user=True),
    "native": NativeOptions(),
    "hw": HwOptions(),
}


@contextmanager
def machine(kernel: str, options: Options, folder: Path) -> Iterator[tuple[Path, list[Disk], list[str]]]:
    """The kernel's file, its disks (copies), and the same disks in QEMU's words."""
    with ExitStack() as until:
        disks: list[Disk] = []
        words: list[str] = []
        for index, name in enumerate(("xv6.img", "fs.img") if kernel == "kernel" else ()):
            copy = shutil.copyfile(require_xv6(name), folder / name)
            disks.append(Disk(str(copy)))
            until.callback(disks[-1].close)
            words += ["-drive", f"file={copy},index={index},if=ide,format=raw"]
        yield require_xv6(kernel), disks, words


def talk(kernel: str, steps: Sequence[Step], options: Options, folder: Path, timeout: float) -> str:
    """Holds a dialogue with xv6 in a VM; returns the console. Fails when it is not through, or kernel code ran outside the cache."""
    console = Dialogue(steps)
    with machine(kernel, options, folder) as (path, disks, _):
        vm = Vm(machine_for(MEMORY_MIB, options), memory_mib=MEMORY_MIB, options=options, disks=disks, console=console)
        console.attach(vm)
        vm.load(str(path))
        stop = vm.run(timeout)
    assert stop.reason == FINISHED, f"{stop.reason}, before {steps[len(console.progress.cpu)].wait!r}, behind:\n{console.text[-2000:]}"
    assert vm.stats.audited > 0 or options.backend in ("native", "hw")  # where no code is translated there is nothing to audit
    assert vm.stats.outside == 0
    return console.text


@pytest.mark.parametrize("how", OPTIONS)
@pytest.mark.parametrize("kernel", ("kernelmemfs", "kernel"))
def test_shell(kernel: str, how: str, tmp_path: Path) -> None:
    """Prompt, `ls`, `echo hi | wc` and `forktest`: the console is the very one of QEMU's run, where QEMU is installed."""
    printed = talk(kernel, SHELL, OPTIONS[how], tmp_path, 120)
    qemu = require(QEMU)
    with machine(kernel, OPTIONS[how], tmp_path) as (path, _, words):
        command = [qemu, "-kernel", str(path), "-m", str(MEMORY_MIB), *words]
        reference, _ = talk_to_process([*command, "-display", "none", "-serial", "stdio", "-no-reboot"], SHELL, 120)
    assert printed == reference.replace("\r", "")


def test_the_disk_keeps_what_was_written(tmp_path: Path) -> None:
    """A file that the shell writes in one run is there in the next, on the same image."""
    image = shutil.copyfile(require_xv6("fs.img"), tmp_path / "fs.img")
    boot = shutil.copyfile(require_xv6("xv6.img"), tmp_path / "xv6.img")
    write = [Step("init: starting sh" + PROMPT, "echo kept > note\n"), Step(PROMPT, "cat note\n"), Step("kept\n$ ")]
    read = [Step("init: starting sh" + PROMPT, "cat note\n"), Step("kept\n$ ")]
    for steps in (write, read):
        console, disks = Dialogue(steps), [Disk(str(boot)), Disk(str(image))]
        vm = Vm(machine_for(MEMORY_MIB), memory_mib=MEMORY_MIB, disks=disks, console=console)
        console.attach(vm)
        vm.load(str(require_xv6("kernel")))
        stop = vm.run(60)
        for disk in disks:
            disk.close()
        assert stop.reason == FINISHED, console.text


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kernel", ("kernelmemfs", "kernel"))
def test_user_tests(kernel: str, tmp_path: Path) -> None:
    """xv6's own `usertests`, to "ALL TESTS PASSED": one process grows to all of memory, the disk is filled, bad pointers everywhere."""
    talk(kernel, USER_TESTS, BtOptions(), tmp_path, 1500)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_user_tests_in_ring_3(tmp_path: Path) -> None:
    """The same with the lecture's scheme."""
    talk("kernelmemfs", USER_TESTS, BtOptions(ring=3), tmp_path, 1500)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_does_not_grow() -> None:
    """Beside the guest's own memory at most 80 MiB are resident, and 200 rounds of `forktest` behind the first 100 add nothing.

    Until about the 80th round the engine's buffer for compiled code fills (16 MiB, `vmm.machine`); then it is emptied as a whole, again and again.
    """
    after = measure(require_xv6("kernelmemfs"), (100, 300), 800)
    assert [footprint.rounds for footprint in after] == [100, 300]
    beside = [f"{footprint.beside / MIB:.1f} MiB" for footprint in after]
    assert after[-1].beside <= BESIDE_LIMIT, beside
    assert after[-1].resident - after[0].resident <= GROWTH_LIMIT, beside
