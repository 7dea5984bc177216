"""The pytest plugin of the package: the fixture `vm`, with which anybody's tests run a kernel.

Loaded into every pytest of an environment that has the package, so it imports nothing of ours before a test uses the fixture.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from vmm.backends import Options
    from vmm.exits import Stop
    from vmm.vm import Vm

_TAIL = 30


@dataclass(frozen=True, slots=True)
class Result:
    """How a kernel's run ended. console: what it printed, undecodable bytes replaced. status: as `vmm run`'s. vm: the stopped VM."""

    console: str
    status: int
    stop: Stop
    vm: Vm


class RunKernel(Protocol):
    """The type of the fixture `vm`."""

    def __call__(
        self,
        kernel: str | os.PathLike[str],
        expect: str | Sequence[str] = (),
        *,
        status: int | None = 0,
        timeout: float = 10.0,
        append: str | None = None,
        memory_mib: int | None = None,
        disks: Sequence[str | os.PathLike[str]] = (),
        modules: Sequence[str] = (),
        keys: bytes = b"",
        options: Options | None = None,
    ) -> Result: ...


@pytest.fixture
def vm() -> RunKernel:
    """Runs a kernel in a VM of its own until it ends: `vm("hello", expect="Hello, students!")`.

    kernel: a bundled kernel's name or a file. expect: whole console lines that must appear in this order. status: what
    `vmm run` would end with, None for anything (a reset ends the run with 0). timeout: seconds. keys: typed on the serial line. What is not
    given stands as the bundled kernel has it. Fails with the end of the console and the report of the guest's death.
    """
    return _run


def _run(
    kernel: str | os.PathLike[str],
    expect: str | Sequence[str] = (),
    *,
    status: int | None = 0,
    timeout: float = 10.0,
    append: str | None = None,
    memory_mib: int | None = None,
    disks: Sequence[str | os.PathLike[str]] = (),
    modules: Sequence[str] = (),
    keys: bytes = b"",
    options: Options | None = None,
) -> Result:
    __tracebackhide__ = True
    from tools.session import Request, run, status_of
    from vmm.backends.bt import BtOptions
    from vmm.console import Recorder
    from vmm.errors import InputError

    console = Recorder(keys)
    request = Request(
        kernel=os.fspath(kernel),
        memory_mib=memory_mib,
        append=append,
        disks=tuple(os.fspath(disk) for disk in disks),
        modules=tuple(modules),
        options=options or BtOptions(),
        timeout=timeout,
        reboot=False,
    )
    try:
        ended = run(request, console)
    except InputError as error:
        pytest.fail(str(error), pytrace=False)
    result = Result(console.text, status_of(ended.stop), ended.stop, ended.vm)
    missing = missing_line(result.console, [expect] if isinstance(expect, str) else expect)
    if missing is not None:
        _fail(result, f"the console lacks the line {missing!r}")
    if status is not None and result.status != status:
        _fail(result, f"status {result.status} where {status} was expected")
    return result


def missing_line(console: str, expected: Sequence[str]) -> str | None:
    """The first of `expected` that is no whole line of `console` behind the ones before it, or None."""
    rest = iter([line.rstrip("\r") for line in console.split("\n")])
    return next((line for line in expected if line not in rest), None)


def _fail(result: Result, reason: str) -> None:
    __tracebackhide__ = True
    from tools.report import death_report

    lines = result.console.splitlines()
    shown = lines[-_TAIL:]
    omitted = [f"({len(lines) - len(shown)} lines before)"] if len(lines) > len(shown) else []
    text = [reason, "", "console:", *omitted, *shown, "", f"end of the run: {death_report(result.vm, result.stop)}"]
    pytest.fail("\n".join(text), pytrace=False)
