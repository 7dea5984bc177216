"""Debian's 32-bit Linux kernels, unmodified, under binary translation: what only translated kernels meet, and their own decompressor.

Knows what a person would type and see. `test_linux.py` has what is the same in guest mode.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from tests.assembly import ENTRY, assemble
from tests.guests.dialogue import FINISHED, Dialogue, Step
from tests.guests.linux import OLD_PC, boot
from tests.machine.flat import LGDT, load_flat, pack, quads
from tests.require import missing, require_file
from tools.fetch_guests import extras, guest
from vmm.backends.bt import BtOptions
from vmm.backends.bt.engine import BinaryTranslation
from vmm.boot import linux
from vmm.errors import InputError
from vmm.vm import Vm, machine_for

_WRONG = re.compile(r"BUG:|WARNING:|Oops|general protection")


@pytest.mark.slow
@pytest.mark.timeout(450)
def test_without_pae(tmp_path: Path) -> None:
    """The kernel for old PCs: tables of two levels, no NX; packed data survives its programs. Its memory goes on into the window's first place."""
    steps = (Step("# ", "md5sum /bin/busybox; gzip -c /bin/busybox | gzip -dc | md5sum\n"), Step("  -", "reboot -f\n"), Step("Restarting system"))
    vm, console = boot("linux", OLD_PC, steps, tmp_path, options=BtOptions(), memory_mib=800)
    assert isinstance(vm.backend, BinaryTranslation) and not 0xC0000000 <= vm.backend.window.base < 0xC0000000 + (800 << 20)
    sums = re.findall(r"([0-9a-f]{32})  [/-]", console.text)
    assert sums == [hashlib.md5(require_file(guest("busybox"), "BusyBox").read_bytes()).hexdigest()] * 2
    assert vm.stats.audited > 10_000 and not vm.stats.outside
    assert not _WRONG.search(console.text)


@pytest.mark.slow
@pytest.mark.timeout(450)
@pytest.mark.parametrize(
    ("kernel", "line"),
    (("linux-pae", "console=ttyS0 pti=off"), ("linux-pae", "console=ttyS0 nokaslr pti=on"), ("linux", "console=ttyS0")),
    ids=("kaslr", "pti", "kaslr-without-pae"),
)
def test_from_the_entry_of_the_image(kernel: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decompressor, translated, chooses where the kernel goes; local and I/O APIC are used; a panic's back-trace says where it came from."""
    monkeypatch.setattr(linux, "_UNPACKERS", ())
    steps = (
        Step("# ", "grep ' _text$' /proc/kallsyms; grep timer /proc/interrupts\n"),
        Step("IO-APIC", "dmesg | grep isolation; echo c >/proc/sysrq-trigger\n"),
        Step("Rebooting in 1 seconds"),
    )
    _, console = boot(kernel, f"{line} panic=1", steps, tmp_path, options=BtOptions())
    text = re.search(r"([0-9a-f]{8}) T _text", console.text)
    assert text is not None and (text[1] == "c1000000" or "nokaslr" not in line)
    assert ("page tables isolation: enabled" in console.text) == ("pti=on" in line)
    trace = re.findall(r"^\[[ .\d]+\]  (\w+)", console.text[console.text.index("Call Trace") :], re.MULTILINE)
    called = iter(trace)
    assert all(name in called for name in ("sysrq_handle_crash", "__handle_sysrq", "write_sysrq_trigger", "vfs_write", "ksys_write")), trace
    assert not _WRONG.search(console.text)


_TRACING = (
    "mount -t tracefs t /sys/kernel/tracing; cd /sys/kernel/tracing",
    "echo p:probe do_sys_openat2 >kprobe_events; echo 1 >events/kprobes/enable; cat /proc/version; echo 0 >events/kprobes/enable",
    "echo probed $(grep -c probe: trace)",
    "echo >trace; echo function >current_tracer; md5sum /bin/busybox; echo 0 >tracing_on",
    "echo sites $(wc -l <enabled_functions), reads $(grep -c ' vfs_read ' trace); echo nop >current_tracer; echo left $(wc -l <enabled_functions)",
    "cd /; md5sum /bin/busybox",
)


@pytest.mark.slow
@pytest.mark.timeout(450)
def test_a_kernel_that_rewrites_itself(tmp_path: Path) -> None:
    """A kprobe, and ftrace on all functions, on and off: each puts breakpoints into running code through another mapping, and takes them away."""
    waits = ("\n# ", "Linux version", "probed ", "  /bin/busybox", "left ", "  /bin/busybox")
    answers = [f"{command}\n" for command in _TRACING] + ["reboot -f\n"]
    steps = (*(Step(text, answer) for text, answer in zip(("# ", *waits), answers, strict=True)), Step("Restarting system"))
    # 35,000 functions are patched in one go, which on a slow machine takes longer than the kernel thinks right.
    _, console = boot("linux-pae", f"{OLD_PC} nosoftlockup", steps, tmp_path, options=BtOptions())
    probed, sites, reads, left = (int(number) for number in re.findall(r"(?:probed|sites|reads|left) (\d+)", console.text))
    assert probed >= 1
    assert sites > 30_000
    assert reads > 100
    assert left == 0
    assert len(re.findall(r"^[0-9a-f]{32}  /bin/busybox", console.text, re.MULTILINE)) == 2
    assert len(set(re.findall(r"([0-9a-f]{32})  /bin/busybox", console.text))) == 1
    assert not _WRONG.search(console.text)


_MODULES = (
    ("insmod /test_static_key_base.ko && insmod /test_static_keys.ko; echo keys $?", "\nkeys 0"),
    ("insmod /test_user_copy.ko; echo copies $?", "\ncopies 0"),
    ("echo 1 >/proc/sys/net/core/bpf_jit_enable; insmod /test_bpf.ko test_suite=test_bpf test_range=49,119; echo bpf $?", "\nbpf 0"),
    ("insmod /8390p.ko; lsmod | cut -d' ' -f1 | grep -v Module | sort | xargs echo loaded", "loaded 8390p test_bpf test_static_key_base test_static"),
    ("rmmod test_bpf test_static_keys test_static_key_base; echo gone $?", "\ngone 0"),
    ("insmod /test_static_key_base.ko && insmod /test_static_keys.ko; echo again $?", "\nagain 0"),
    ("dmesg | grep -c 'test_bpf.*jited:1.*PASS'; dmesg | grep 'Summary\\|tests passed'; echo e''nd", "\nend"),
)


@pytest.mark.slow
@pytest.mark.timeout(450)
def test_modules(tmp_path: Path) -> None:
    """Modules test the kernel that loads them: jump labels that are switched, faults in copies to users, and code that the kernel compiles."""
    files = {path.name: path.read_bytes() for path in extras("linux-pae")}
    if not files:
        missing("the modules are not here (python -m tools.fetch_guests)")
    steps = [step for command, wait in _MODULES for step in (Step("# ", command + "\n"), Step(wait))]
    line = f"{OLD_PC} pti=off loglevel=4"
    _, console = boot("linux-pae", line, (*steps, Step("# ", "reboot -f\n"), Step("Restarting system")), tmp_path, files, BtOptions())
    passed = re.search(r"test_bpf: Summary: (\d+) PASSED, (\d+) FAILED, \[(\d+)/(\d+) JIT'ed\]", console.text)
    assert passed is not None and passed[2] == "0" and int(passed[1]) == 71 and passed[3] == passed[4], console.text[-3000:]
    assert "test_user_copy: tests passed" in console.text
    assert not _WRONG.search(console.text)


_SETUP, _BEHIND = 0x90000, 0x9020  # where the boot protocol puts a kernel's real-mode part, and the segment behind its boot sector
_REAL_MODE = {
    ENTRY: f"{LGDT.format(0x700)}; ljmp 0x08:0x600",
    0x500: b"\xcf",  # a BIOS that does nothing: each vector leads to this IRET
    0x600: assemble("mov ax,0x10; mov ds,ax; mov es,ax; mov ss,ax; mov eax,cr0; and al,0xfe; mov cr0,eax; ljmp 0:0x640", 0x600, wide=False),
    0x640: assemble(f"mov ax,{_SETUP >> 4:#x}; mov ds,ax; mov es,ax; mov ss,ax; mov sp,0xfff0; ljmp {_BEHIND:#x}:0", 0x640, wide=False),
    0x700: pack([0x710 << 16 | 0x17, 0]),
    0x710: quads([0, 0x00009B00_0000FFFF, 0x00009300_0000FFFF]),
    0: pack([0x500] * 256),
}


def test_a_kernel_that_needs_another_cpu() -> None:
    """The real-mode part of the 64-bit kernel, translated, finds no long mode and says so. What a user starts is refused in a line before that."""
    image = require_file(guest("linux-amd64"), "Linux (python -m tools.fetch_guests)").read_bytes()
    setup = bytearray(image[: (image[0x1F1] + 1) * 512])
    setup[0x210] = 0xFF  # a boot loader without a number of its own
    setup[0x228:0x22C] = (_SETUP + 0x8000).to_bytes(4, "little")
    console = Dialogue([Step("requires an x86-64 CPU, but only detected an i686 CPU"), Step("use a kernel appropriate for your CPU.")])
    vm = Vm(machine_for(16), memory_mib=16, console=console)
    console.attach(vm)
    load_flat(vm, _REAL_MODE | {_SETUP: bytes(setup), _SETUP + 0x8000: b"earlyprintk=serial,ttyS0,115200\0"})
    assert vm.run(60).reason == FINISHED, console.text
    with pytest.raises(InputError, match="64-bit x86-64 kernel, which only --backend hw runs"):
        vm.load(str(guest("linux-amd64")))
