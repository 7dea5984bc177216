"""`vmm run` as a person sees it: a session at the terminal, then what is to be said of its end.

Knows the terminal, the reports and the exit status, and leaves the run itself to the session.
"""

from __future__ import annotations

import errno
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace

from tools.log import Log
from tools.report import death_report, record, show_statistics, whereabouts, write_record
from tools.session import Ended, Request, run, status_of
from tools.signals import Interruption
from tools.terminal import Terminal
from tools.timing import Timing
from vmm.console import Console, Recorder
from vmm.errors import InputError
from vmm.exits import End
from vmm.vm import Vm

BROKEN_PIPE = 141
_REFERENCE = 60.0  # seconds for the run that the lesson of `--explain` compares with


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is wanted beside the run. record, log_file: names of files, or None."""

    statistics: bool
    record: str | None
    like_qemu: bool
    vga: bool
    logs: frozenset[str]
    log_file: str | None
    explain: bool = False


def run_kernel(request: Request, wishes: Wishes) -> int:
    """Runs a guest at the terminal, reports as wished, and returns the exit status. Raises InputError."""
    # A descriptor that was closed when the process began may be a file of ours by now: it is not the console.
    stdin, stdout, stderr = (number if stream else -1 for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)))
    timing = Timing() if wishes.statistics else None
    with Interruption() as interruption, ExitStack() as until, Terminal(stdin, stdout, stderr, vga=wishes.vga) as terminal:
        log: Log | None = None

        def ready(vm: Vm) -> None:
            nonlocal log
            if wishes.logs:
                log = log or _open_log(wishes, until)
                log.attach(vm)
            if timing:
                timing.attach(vm)
            terminal.attach(vm)
            interruption.watch(vm)

        heard = Heard(terminal)
        ended = run(request, heard if wishes.explain else terminal, ready)
        terminal.finish()
    status = _status(ended, terminal.failure, interruption.number, wishes.like_qemu)
    _say_end(ended)
    if timing:
        show_statistics(ended, timing.seconds)
    if wishes.explain and ended.stop.why is not End.QUIT:
        _explain(request, heard.text)
    if wishes.record is not None:
        write_record(wishes.record, record(ended, request.kernel, status))
    return status


class Heard:
    """A console that keeps what another one is told."""

    def __init__(self, console: Console) -> None:
        self.poll, self.fileno, self._tell = console.poll, console.fileno, console.write
        self._output = bytearray()

    @property
    def text(self) -> str:
        return self._output.decode(errors="replace")

    def write(self, data: bytes) -> None:
        self._output += data
        self._tell(data)


def _explain(request: Request, seen: str) -> None:
    """Runs the guest once more with every sensitive instruction emulated, and prints what that teaches."""
    from tools.slips import report
    from vmm.backends.step import StepOptions

    console = Recorder()
    with Interruption() as interruption:
        ended = run(replace(request, options=StepOptions(), timeout=request.timeout or _REFERENCE), console, interruption.watch)
    if ended.stop.why is not End.QUIT:
        for line in report(request.kernel, seen, console.text, ended.vm.stats.callouts):
            print(line, file=sys.stderr)


def _open_log(wishes: Wishes, until: ExitStack) -> Log:
    if wishes.log_file is None:
        return Log(wishes.logs, sys.stderr)
    try:
        return Log(wishes.logs, until.enter_context(open(wishes.log_file, "w", encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{wishes.log_file}: {(error.strerror or str(error)).lower()}") from None


def _status(ended: Ended, failure: OSError | None, signal: int | None, like_qemu: bool) -> int:
    """A signal and a lost standard output end runs that are not the guest's own end."""
    if ended.stop.why is End.QUIT:
        if signal is not None:
            return 128 + signal
        if failure is not None:
            if failure.errno == errno.EPIPE:
                return BROKEN_PIPE
            raise InputError(ended.stop.reason)
    return status_of(ended.stop, like_qemu=like_qemu)


def _say_end(ended: Ended) -> None:
    """A line for an end that the exit status alone does not explain; the report for a death."""
    vm, stop = ended.vm, ended.stop
    match stop.why:
        case End.REPORTED if stop.value:
            print(f"vmm: the guest reported {stop.value} (debug-exit port F4h)", file=sys.stderr)
        case End.DIED | End.UNSUPPORTED:
            print(f"vmm: {death_report(vm, stop)}", end="", file=sys.stderr)
        case End.TIMEOUT:
            print(f"vmm: {stop.reason}, {whereabouts(vm)}", file=sys.stderr)
        case _:
            pass
