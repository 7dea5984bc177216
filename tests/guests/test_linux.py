"""Debian's Linux, unmodified: to a shell, whose programs compute what the host computes, and to the reboot that ends the run.

Knows what a person would type and see.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import re
from pathlib import Path

import pytest

from tests.guests.dialogue import Step
from tests.guests.linux import OLD_PC, boot
from tests.require import require_file
from tools.fetch_guests import guest
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions


@pytest.mark.timeout(450)
@pytest.mark.parametrize(
    ("kernel", "options"), (("linux-pae", HwOptions()), ("linux-amd64", HwOptions()), ("linux-pae", BtOptions())), ids=("hw", "hw-amd64", "bt")
)
def test_shell(kernel: str, options: Options, tmp_path: Path) -> None:
    """Checksums and packed files agree with the host, `sleep 1` takes a second, the CPU is the VM's, and `reboot -f` ends the run."""
    noise = random.Random(1).randbytes(100_000)
    packed = gzip.compress(noise, mtime=0)
    commands = (
        ("md5sum /noise", hashlib.md5(noise).hexdigest()),
        ("gzip -t /noise.gz && echo packed=$?", "packed=0"),
        ("gzip -dc /noise.gz | sha256sum", hashlib.sha256(noise).hexdigest()),
        ("i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; echo counted $i", "counted 3000"),
        ("seq 1 200 | while read n; do echo $n; done | tail -n 1 | cat", "\n200"),
        ("grep name /proc/cpuinfo", "VMM virtual CPU"),
        ("sleep 0; echo be''fore", "\nbefore"),  # the words are not typed as they are printed: a line's echo may be broken anywhere
        ("sleep 1; echo be''hind", "\nbehind"),
    )
    # Each command is typed at the prompt behind what the one before printed.
    typed = [step for command, wait in commands for step in (Step("# ", command + "\n"), Step(wait))]
    steps = (*typed, Step("# ", "reboot -f\n"), Step("Restarting system"))
    vm, console = boot(kernel, OLD_PC, steps, tmp_path, {"noise": noise, "noise.gz": packed}, options)
    behind, before = console.at[-3], console.at[-4]
    assert 0.9 < behind - before < 3
    assert sum(vm.stats.injected.values()) + vm.stats.architectural["external interrupt"] > 100
    assert "Kernel panic" not in console.text
    assert not re.search(r"BUG:|WARNING:|Call Trace", console.text)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kernel", ("linux-pae", "linux"))
def test_under_shadow_paging(kernel: str, tmp_path: Path) -> None:
    """Shadow paging to the end, and the kernel without PAE, for which it is the default: the shell starts programs, and reboots."""
    steps = (Step("# ", "md5sum /bin/busybox; gzip -c /bin/busybox | gzip -dc | md5sum\n"), Step("  -", "reboot -f\n"), Step("Restarting system"))
    vm, console = boot(kernel, OLD_PC, steps, tmp_path, options=HwOptions(mmu="shadow"))
    sums = re.findall(r"([0-9a-f]{32})  [/-]", console.text)
    assert sums == [hashlib.md5(require_file(guest("busybox"), "BusyBox").read_bytes()).hexdigest()] * 2
    assert vm.stats.architectural["hidden page fault"] > 1000


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kernel", ("linux-pae", "linux-amd64"))
def test_with_pci_and_the_interrupt_controllers_of_an_mp_table(kernel: str, tmp_path: Path) -> None:
    """Without further words on the command line the kernel finds and uses the I/O APIC, the local APIC and the chip set on PCI bus 0."""
    steps = (
        Step("# ", "grep timer /proc/interrupts\n"),
        Step("IO-APIC", "cat /sys/bus/pci/devices/*/class | md5sum\n"),
        Step("  -", "reboot -f\n"),
        Step("Restarting system"),
    )
    _, console = boot(kernel, "console=ttyS0", steps, tmp_path)
    assert "IOAPIC[0]: apic_id 1" in console.text
    assert "PCI: Using configuration type 1 for base access" in console.text
    found = re.findall(r"pci 0000:(\S+) \[(8086:\w+)\]", console.text.replace(": [", " ["))
    assert found == [("00:00.0", "8086:1237"), ("00:01.0", "8086:7000"), ("00:01.1", "8086:7010"), ("00:01.3", "8086:7113")]
    assert hashlib.md5(b"0x060000\n0x060100\n0x010100\n0x068000\n").hexdigest() in console.text
