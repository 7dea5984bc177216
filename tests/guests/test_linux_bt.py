"""Debian's 32-bit Linux kernels, unmodified, under binary translation: what only translated kernels meet, and their own decompressor.

Knows what a person would type and see. `test_linux.py` has what is the same in guest mode.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from tests.guests.dialogue import Step
from tests.guests.linux import OLD_PC, boot
from tests.require import require_file
from tools.fetch_guests import guest
from vmm.backends.bt import BtOptions
from vmm.boot import linux

_WRONG = re.compile(r"BUG:|WARNING:|Oops|general protection")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_without_pae(tmp_path: Path) -> None:
    """The kernel for old PCs: tables of two levels, no NX; packed data survives its programs."""
    steps = (Step("# ", "md5sum /bin/busybox; gzip -c /bin/busybox | gzip -dc | md5sum\n"), Step("  -", "reboot -f\n"), Step("Restarting system"))
    vm, console = boot("linux", OLD_PC, steps, tmp_path, options=BtOptions())
    sums = re.findall(r"([0-9a-f]{32})  [/-]", console.text)
    assert sums == [hashlib.md5(require_file(guest("busybox"), "BusyBox").read_bytes()).hexdigest()] * 2
    assert vm.stats.audited > 10_000 and not vm.stats.outside
    assert not _WRONG.search(console.text)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("line", ("console=ttyS0 pti=off", "console=ttyS0 nokaslr pti=on"), ids=("kaslr", "pti"))
def test_from_the_entry_of_the_image(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decompressor, translated, chooses where the kernel goes; local and I/O APIC are used; a panic's back-trace says where it came from."""
    monkeypatch.setattr(linux, "_UNPACKERS", ())
    steps = (
        Step("# ", "grep ' _text$' /proc/kallsyms; grep timer /proc/interrupts\n"),
        Step("IO-APIC", "dmesg | grep isolation; echo c >/proc/sysrq-trigger\n"),
        Step("Rebooting in 1 seconds"),
    )
    _, console = boot("linux-pae", f"{line} panic=1", steps, tmp_path, options=BtOptions())
    text = re.search(r"([0-9a-f]{8}) T _text", console.text)
    assert text is not None and (text[1] == "c1000000" or "nokaslr" not in line)
    assert ("page tables isolation: enabled" in console.text) == ("pti=on" in line)
    trace = re.findall(r"^\[[ .\d]+\]  (\w+)", console.text[console.text.index("Call Trace") :], re.MULTILINE)
    called = iter(trace)
    assert all(name in called for name in ("sysrq_handle_crash", "__handle_sysrq", "write_sysrq_trigger", "vfs_write", "ksys_write")), trace
    assert not _WRONG.search(console.text)
