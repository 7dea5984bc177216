"""Snapshots as files: what is read is what was written; each damage is refused; a killed writer leaves the old one or the new one."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.machine.flat import flat_vm
from tests.machine.small_kernel import small_kernel
from vmm.backends.bt import BtOptions
from vmm.errors import InputError
from vmm.snapshot import Snapshot
from vmm.snapshot.cpu import CpuState
from vmm.snapshot.file import FORMAT, read, write
from vmm.snapshot.sections import HEADER, stored, unpack
from vmm.vm import Vm, machine_for


@pytest.fixture(scope="module")
def chain() -> tuple[Snapshot, Snapshot]:
    """A snapshot of a guest that counts, and one of the same guest a little later."""
    vm = flat_vm(small_kernel("mov edi,0x200000; xor eax,eax; l: inc eax; stosd; and edi,0x20ffff; or edi,0x200000; jmp l"))
    vm.run(0.1)
    first = vm.snapshot()
    vm.stopped = None
    vm.run(0.05)
    return first, vm.snapshot(first)


def test_what_is_read_is_what_was_written(chain: tuple[Snapshot, Snapshot], tmp_path: Path) -> None:
    """Both of a chain, the second by its parent's file."""
    first, second = chain
    write(str(tmp_path / "one"), first)
    assert read(str(tmp_path / "one")) == first
    write(str(tmp_path / "two"), second, str(tmp_path / "one"))
    assert read(str(tmp_path / "two")) == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    vm = Vm(machine_for(4, BtOptions()), memory_mib=4)
    vm.restore(read(str(tmp_path / "two")))
    vm.run(0.05)
    assert vm.memory.read(0x200000, 4096) != bytes(4096)


def test_every_damage_is_refused(chain: tuple[Snapshot, Snapshot], tmp_path: Path) -> None:
    """A bit turned anywhere, and the file cut off anywhere: one line that names the file."""
    path = tmp_path / "one"
    write(str(path), chain[0])
    good = path.read_bytes()
    places = [*range(200), *range(200, len(good), max(1, len(good) // 150)), *range(len(good) - 40, len(good))]
    for at in places:
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        with pytest.raises(InputError, match=f"^{path}: [^\n]*$"):
            read(str(path))
    for at in places:
        path.write_bytes(good[:at])
        with pytest.raises(InputError, match=f"^{path}: (cut off|not a snapshot)"):
            read(str(path))


def test_what_is_none_is_said_to_be_none(chain: tuple[Snapshot, Snapshot], tmp_path: Path) -> None:
    """Another file, a folder, nothing, a newer format."""
    path = tmp_path / "one"
    path.write_bytes(b"\x7fELF" * 10)
    with pytest.raises(InputError, match="not a snapshot"):
        read(str(path))
    with pytest.raises(InputError, match="is a directory"):
        read(str(tmp_path))
    with pytest.raises(InputError, match="no such file"):
        read(str(tmp_path / "none"))
    write(str(path), chain[0])
    path.write_bytes(path.read_bytes()[:8] + (FORMAT + 1).to_bytes(4, "little") + path.read_bytes()[12:])
    with pytest.raises(InputError, match=f"newer format \\({FORMAT + 1}\\)"):
        read(str(path))


def test_a_parent_that_is_gone_or_another(chain: tuple[Snapshot, Snapshot], tmp_path: Path) -> None:
    """The child is refused by the parent's name."""
    first, second = chain
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    write(two, second, one)
    with pytest.raises(InputError, match="one: no such file"):
        read(two)
    write(one, replace(first, identity="f" * 32))
    with pytest.raises(InputError, match="is not the snapshot that it tells the changes from"):
        read(two)
    write(one, replace(first, identity=second.identity, parent=second), two)
    write(two, replace(second, parent=replace(first, identity=second.identity)), one)
    with pytest.raises(InputError, match="no end|is not the snapshot"):
        read(two)


def test_a_full_disk_is_an_error_and_leaves_nothing(chain: tuple[Snapshot, Snapshot]) -> None:
    """/dev/full is no folder, so a limit on the size of files stands for it."""
    child = """
import resource, signal, sys
from vmm.snapshot.file import read, write
from vmm.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
snapshot = read(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    write(sys.argv[1], snapshot)
except InputError as error:
    print(error)
"""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "one")
        write(path, chain[0])
        done = subprocess.run([sys.executable, "-c", child, path], capture_output=True, text=True, check=True)
        assert done.stdout == f"{path}: file too large\n"
        assert os.listdir(folder) == ["one"] and read(path) == chain[0]


WRITER = """
import sys
from vmm.snapshot.file import read, write
one, two = read(sys.argv[1]), read(sys.argv[2])
print("ready", flush=True)
while True:
    write(sys.argv[3], one)
    print(one.identity, flush=True)
    write(sys.argv[3], two)
    print(two.identity, flush=True)
"""


def test_a_writer_that_is_killed(chain: tuple[Snapshot, Snapshot], tmp_path: Path) -> None:
    """By kill -9 at several moments: the file is always whole, and it is the one reported last or a later one."""
    first, second = chain
    names = [str(tmp_path / name) for name in ("one", "two", "three")]
    write(names[0], first)
    whole = replace(second, parent=None, frames=second.memory())
    write(names[1], whole)
    identities = [first.identity, second.identity]
    for lines in (1, 2, 4, 7):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, *names], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        said = [writer.stdout.readline().strip() for _ in range(lines + 1)][1:]
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.read().split()
        writer.wait()
        writer.stdout.close()
        there = read(names[2])
        assert there.identity in {said[-1], identities[(identities.index(said[-1]) + 1) % 2]}


def test_there_is_nothing_of_the_engine_in_it(tmp_path: Path) -> None:
    """A file names what it holds as the manuals do; how this build of the CPU engine lays out its state is nowhere in it."""
    vm = flat_vm(small_kernel("l: jmp l"))
    vm.run(0.02)
    write(str(tmp_path / "one"), vm.snapshot())
    data, sections = (tmp_path / "one").read_bytes()[12:], {}
    while data:
        head, size = data[: HEADER.size], stored(data[: HEADER.size])
        name, sections[name] = unpack(head, data[HEADER.size : HEADER.size + size])
        data = data[HEADER.size + size :]
    assert sections.keys() == {b"META", b"CPU ", b"DEVS", b"PAGE", b"END "}
    cpu = json.loads(sections[b"CPU "])
    assert cpu.keys() == CpuState.__dataclass_fields__.keys()
    x87 = {"FPCW", "FPSW", "FPTAG", "FOP", "FIP", "FCS", "FDP", "FDS", "MXCSR"}
    assert cpu["floats"].keys() == x87 | {f"XMM{n}" for n in range(16)} | {f"R{n}" for n in range(8)}
    state = bytes(vm.machine.state.cast("B")[:4096])
    runs = {state[at : at + 32] for at in range(0, len(state), 32)}
    assert not [run for run in runs if len(set(run)) > 8 and any(run in section for section in sections.values())]
