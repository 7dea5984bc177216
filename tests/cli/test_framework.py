"""The package as others use it: the documented script, observers, back-traces, the pytest fixture, and the starter kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vmm
from guest_kernels import kernels
from tests.cli import flat
from tests.layers import ROOT
from tests.require import require
from tools.cli import status
from tools.pytest_plugin import missing_line
from vmm import Exit, InputError, Vcpu, Vm, backtrace, machine_for, observe


def loaded(path: str | Path, memory_mib: int = 16, address: int | None = None) -> Vm:
    """A VM with a kernel in it."""
    made = Vm(machine_for(memory_mib), memory_mib=memory_mib)
    made.load(str(path), address=address)
    return made


def test_the_documented_script(capsys: pytest.CaptureFixture[str]) -> None:
    """The script of docs/FRAMEWORK.md runs as it stands, and is short."""
    (script, *_) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/FRAMEWORK.md").read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(script, "docs/FRAMEWORK.md", "exec"), {"__name__": "script"})
    reason, exits, last = capsys.readouterr().out.splitlines()
    assert "debug exit" in reason and "'SoftwareInterrupt': " in exits and last == "35 passed, 0 failed"


def test_every_public_name_is_there() -> None:
    """Each name of `vmm.__all__` loads; an unknown one is an AttributeError."""
    for name in vmm.__all__:
        assert getattr(vmm, name) is not None
    assert set(vmm.__all__) <= set(dir(vmm))
    with pytest.raises(AttributeError):
        vmm.nothing  # noqa: B018


def test_importing_the_package_loads_no_cpu() -> None:
    """`import vmm` and a part without a CPU leave unicorn and capstone alone."""
    code = "import sys, vmm, vmm.errors; sys.exit(bool({'unicorn', 'capstone', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_run_loads_what_it_needs() -> None:
    """No other command's modules, no other back-end's, and nothing that only reports and mistakes need: each short run would pay for it."""
    code = "import sys; from tools.cli import status; status(['run', 'hello']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=True)
    loaded = set(done.stderr.split())
    needless = ("rich", "dask", "vmm.host", "vmm.snapshot", "tools.together", "tools.dump", "tools.compare", "tools.vms.commands", "tools.demo")
    assert not [name for name in loaded if name.startswith(needless)]
    assert {name for name in loaded if name.startswith("vmm.backends.")} == {name for name in loaded if name.startswith("vmm.backends.bt")} | {
        "vmm.backends.shadowed",
        "vmm.backends.window",
    }


def test_observers() -> None:
    """Each is called before its exits with an exact vCPU, the latest first, until it is ended."""
    made = loaded(kernels()["hello"].file)
    calls: list[str] = []

    def first(exit_: Exit, vcpu: Vcpu) -> None:
        calls.append(f"first {type(exit_).__name__} {vcpu.cpl}")

    end = observe(made, lambda exit_, vcpu: calls.append("never"))
    observe(made, first)
    observe(made, lambda exit_, vcpu: calls.append("second"))
    end()
    made.run(10)
    assert calls[:2] == ["second", "first Sensitive 0"] and "never" not in calls


def test_what_an_observer_raises_comes_out() -> None:
    """An error in a callback is not lost in the engine."""
    made = loaded(kernels()["hello"].file)

    def fail(exit_: Exit, vcpu: Vcpu) -> None:
        raise ZeroDivisionError

    observe(made, fail)
    with pytest.raises(ZeroDivisionError):
        made.run(10)


@pytest.mark.parametrize(
    ("frame", "end"),
    [
        ("mov ebp, 0xfffffff0", "no memory at the frame pointer|is no code"),
        ("mov ebp, 0x8000; mov dword ptr [0x8000], 0x8000; mov dword ptr [0x8004], 0x100000", "does not lie above"),
        ("mov ebp, 0x8000; mov dword ptr [0x8000], 0; mov dword ptr [0x8004], 0", "return address 0x0"),
        ("mov ebp, 0x8000; mov dword ptr [0x8000], 0; mov dword ptr [0x8004], 0x100000", "frame pointer is 0"),
    ],
)
def test_a_wild_stack(tmp_path: Path, frame: str, end: str) -> None:
    """Whatever the frame pointer leads to, a back-trace ends, and says why."""
    path = tmp_path / "guest.bin"
    path.write_bytes(flat.assemble(f"{frame}; cli; hlt"))
    made = loaded(path, 4, flat.ADDRESS)
    made.run(5)
    found = backtrace(made)
    assert re.search(end, found.end), found
    assert 1 <= len(found.frames) <= 2


def test_a_cyclic_stack_is_cut_off(tmp_path: Path) -> None:
    """No more frames than asked for."""
    text = "mov ecx, 100; mov edi, 0x8000; mov ebp, edi; fill: lea eax, [edi+8]; stosd; mov eax, 0x100000; stosd; loop fill; cli; hlt"
    path = tmp_path / "guest.bin"
    path.write_bytes(flat.assemble(text))
    made = loaded(path, 4, flat.ADDRESS)
    made.run(5)
    assert len(backtrace(made).frames) == 32
    assert len(backtrace(made, most=5).frames) == 5


# -- the fixture -------------------------------------------------------------------------------------------------------------------


def test_missing_line() -> None:
    """Whole lines, in order, carriage returns aside."""
    assert missing_line("a\r\nb\r\nc", ["a", "c"]) is None
    assert missing_line("a\r\nb\r\n", ["b", "a"]) == "a"
    assert missing_line("ab\n", ["a"]) == "a"
    assert missing_line("", []) is None


def run_pytest(folder: Path) -> subprocess.CompletedProcess[str]:
    """pytest with the plugin, in `folder`."""
    call = [sys.executable, "-m", "pytest", "-q", "-p", "tools.pytest_plugin", "-p", "no:cacheprovider", "-p", "no:xdist"]
    call += ["--rootdir", str(folder), str(folder)]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_fixture(tmp_path: Path) -> None:
    """It passes, and fails with the console and the death report, or with what was wrong with the input."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(
        "def test_passes(vm):\n"
        "    result = vm('hello', expect=['Hello, me!'], append='who=me', memory_mib=8)\n"
        "    assert result.console == 'Hello, me!\\r\\n' and result.stop.value == 0 and result.vm.stats.outside == 0\n"
        "def test_dies(vm):\n"
        "    assert vm('faults-triple', expect='loading an empty IDT', status=3).status == 3\n"
        "def test_fails(vm):\n"
        "    vm('faults-triple', expect='loading an empty IDT')\n"
        "def test_lacks(vm):\n"
        "    vm('hello', expect='Hello, nobody!')\n"
        "def test_input(vm):\n"
        "    vm('gone')\n"
    )
    result = run_pytest(tmp_path)
    assert "3 failed, 2 passed" in result.stdout, result.stdout + result.stderr
    for part in ("status 3 where 0 was expected", "died: triple fault", "triple_fault+", "lacks the line 'Hello, nobody!'", "gone: neither"):
        assert part in result.stdout, part


# -- the starter kernel ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def starter(tmp_path: Path) -> Path:
    """A new starter kernel, built."""
    require("gcc")
    require("make")
    folder = tmp_path / "starter"
    assert status(["new", str(folder)]) == 0
    built = subprocess.run(["make", "-C", str(folder)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "warning" not in built.stderr
    return folder


def test_the_starter_passes_its_own_test(starter: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It builds without a warning, runs, and its test passes with the fixture."""
    (starter / "pytest.ini").write_text("[pytest]\n")
    result = run_pytest(starter)
    assert "2 passed" in result.stdout, result.stdout
    capfd.readouterr()
    assert status(["run", str(starter / "kernel.elf")]) == 0
    assert capfd.readouterr().out == "Hello from my kernel!\r\n"


def test_the_starter_runs_on_qemu(starter: Path) -> None:
    """The same kernel prints the same on QEMU."""
    qemu = require("qemu-system-i386")
    call = [qemu, "-kernel", str(starter / "kernel.elf"), "-display", "none", "-serial", "stdio", "-no-reboot"]
    call += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    result = subprocess.run(call, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (1, b"Hello from my kernel!\r\n")


def test_new_leaves_what_is_there(tmp_path: Path) -> None:
    """An empty folder is filled, with the names that the Makefile and the reader expect."""
    folder = tmp_path / "kernel"
    folder.mkdir()
    assert status(["new", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == {"README.md", "Makefile", "boot.S", "kernel.c", "kernel.ld", "test_kernel.py"}
    shutil.rmtree(folder)


def test_input_errors_are_the_packages_own() -> None:
    """A script catches InputError from `vmm`."""
    with pytest.raises(InputError, match="gone: "):
        loaded("gone")
