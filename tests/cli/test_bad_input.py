"""Bad input of every kind is one line on standard error that names it and says why, and status 2; nothing is run and nothing written."""

from __future__ import annotations

import fcntl
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from guest_kernels import kernels
from tests.layers import ROOT
from tools.cli import status

HELLO = kernels()["hello"].file.read_bytes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with bad files in it."""
    files = {
        "empty": b"",
        "text": b"no kernel",
        "truncated": HELLO[:5000],
        "elf64": HELLO[:4] + b"\x02" + HELLO[5:18] + struct.pack("<H", 62) + HELLO[20:],
        "odd": bytes(700),
        "disk": bytes(1024),
        "bios": bytes(0x10000),
        "broken.gz": b"\x1f\x8b\x08\x00broken",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


CASES = [
    ("run", "", "neither a bundled kernel nor a file"),
    ("run helo", "helo: neither a bundled kernel nor a file (did you mean hello?)", ""),
    ("run faultspae", "did you mean faults-pae", ""),
    ("run nothing-like-it", "nothing-like-it: ", "(see vmm kernels)"),
    ("run ./hello", "./hello: ", "no such file"),
    ("run .", ".: ", "directory"),
    ("run empty", "empty: ", "empty"),
    ("run text", "text: ", "not a kernel"),
    ("run truncated", "truncated: ", "beyond the end"),
    ("run elf64", "elf64: ", "corrupted ELF header"),
    ("run elf64 --backend bt", "elf64: ", "64-bit x86-64 kernel, which only --backend hw runs"),
    ("run elf64 --backend hw --mmu shadow", "elf64: ", "64-bit"),
    ("run broken.gz", "broken.gz: ", "gzip"),
    ("run rings -m 1", "rings", "memory"),
    ("run --bios gone", "gone: ", "no such file"),
    ("run --bios disk", "disk: 1024 bytes: ", "64 KiB"),
    ("run --bios bios --disk gone", "gone: ", "o such file"),
    ("run hello --bios bios", "KERNEL: ", "--bios"),
    ("run --bios bios --append a", "--append: ", "--bios"),
    ("run --bios bios --backend bt", "--bios bios: ", "--backend hw"),
    ("run hello --module gone", "gone: ", "no such file"),
    ("run hello --initrd gone", "gone: ", "no such file"),
    ("run hello --disk gone", "gone: ", "o such file"),
    ("run hello --disk .", ".: ", "directory"),
    ("run hello --disk empty", "empty: ", "empty"),
    ("run hello --disk odd", "odd: ", "512"),
    ("run hello --disk disk --disk disk", "disk: ", "locked"),
    ("run hello --disk a --disk b --disk c --disk d --disk e", "--disk e: ", "4 drives"),
    ("run hello-pv --table-stores some", "--table-stores some: ", "must be all or lowest"),
    ("run hello --table-stores all", "--table-stores all: ", "no such choice"),
    ("run hello-pv --backend bt", "hello-pv.elf: ", "which --backend pv runs"),
    ("run hello --backend pv", "hello.elf: ", "neither Xen notes nor"),
    ("run elf64 --backend pv", "elf64: ", "64-bit"),
    ("run text --backend pv", "text: ", "not an ELF file"),
    ("run hello --backend pv --stubs trap", "--stubs trap: ", "no such choice"),
    ("run hello --ring 2", "--ring 2: ", "must be 1 or 3"),
    ("run hello --backend hw --mmu direct", "--mmu direct: ", "must be nested or shadow"),
    ("run hello --backend hw --ring 1", "--ring 1: ", "no such choice"),
    ("run hello --backend hw --exit-on everything", "--exit-on everything: ", "cpuid"),
    ("run hello --backend hw --exit-on io:65536", "--exit-on io:65536: ", "below 0x10000"),
    ("run hello --exit-on hlt", "--exit-on hlt: ", "no such choice"),
    ("run hello --backend vmx", "--backend vmx: ", "must be auto or bt"),
    ("run hello --mmu nested", "--mmu nested: ", "not available yet"),
    ("run hello --user some", "--user some: ", "must be direct or translate"),
    ("run hello --stubs some", "--stubs some: ", "must be cache or trap"),
    ("run hello -m 0", "-m 0: ", "1 to 3072"),
    ("run hello -m 4G", "-m 4G: ", "1 to 3072"),
    ("run hello -m much", "-m much: ", "not a size"),
    ("run hello --timeout 0", "--timeout 0: ", "above 0"),
    ("run hello --timeout nan", "--timeout nan: ", "above 0"),
    ("run hello --cache-size 1", "--cache-size 1: ", "64K to 16M"),
    ("run hello --address 5", "hello.elf: ", "address is for flat binaries"),
    ("run text --address end", "--address end: ", "32 bits"),
    ("run hello -d int,everything", "-d everything: ", "int, exec, mmu, io"),
    ("run hello -d int -D gone/log", "gone/log: ", "no such directory"),
    ("run hello --json gone/record", "gone/record: ", "no such directory"),
    ("run hello --json .", ".: ", "is a directory"),
    ("run", "missing argument", "KERNEL"),
    ("run hello --nothing", "no such option: --nothing", ""),
    ("run hello -m", "'-m' requires an argument", ""),
    ("run hello extra", "neither a bundled kernel nor a file", ""),
    ("jump", "no such command 'jump'", ""),
    ("new", "missing argument", "DIR"),
    ("new .", ".: ", "not empty"),
    ("new disk", "disk: ", "not a folder"),
    ("new disk/below", "disk/below: ", "not a directory"),
]


@pytest.mark.parametrize(("command", "name", "reason"), CASES, ids=[case[0] or "no name" for case in CASES])
def test_one_line_and_status_2(folder: Path, capfd: pytest.CaptureFixture[str], command: str, name: str, reason: str) -> None:
    """The line has the name at fault and the reason."""
    before = sorted(folder.iterdir())
    arguments = command.split() if name else ["run", ""]
    assert status(arguments) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("vmm: "), err
    assert name in err and reason in err, err
    assert sorted(folder.iterdir()) == before


def test_a_locked_disk(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A disk that another process holds is refused."""
    with (folder / "disk").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert status(["run", "hello", "--disk", "disk"]) == 2
    assert capfd.readouterr().err.startswith("vmm: disk: locked")


def test_files_that_are_not_for_us(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A device, a FIFO and a name with a NUL byte are refused at once, without waiting for anybody."""
    for name in ("/dev/zero", "a\0b"):
        assert status(["run", name]) == 2
    assert capfd.readouterr().err.count("\n") == 2


def test_as_a_process(folder: Path) -> None:
    """The same from outside: no traceback, and no standard output."""
    call = [sys.executable, "-c", "from tools.cli import main; main()", "run", str(folder / "elf64"), "--backend", "bt"]
    result = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"vmm: {folder / 'elf64'}: 64-bit") or "64-bit" in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_a_command(capfd: pytest.CaptureFixture[str]) -> None:
    """`vmm` alone is bad usage, and says where help is."""
    assert status([]) == 2
    assert capfd.readouterr().err == "vmm: missing command (see vmm --help)\n"
