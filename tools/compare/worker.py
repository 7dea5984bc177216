"""A process that runs cells: a job as a line of JSON on standard input, its sample as a line of JSON on standard output.

    python -m tools.compare.worker <jobs.json

Knows which of the three runners a way belongs to. Each cell runs in a process of its own, a fork of the worker in which everything is imported and
nothing has run: it cannot take another cell with it, whatever its guest does, and inherits nothing from one.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from select import select
from types import TracebackType
from typing import Final, NoReturn

from tools.compare.cell import Wanted, measure
from tools.compare.model import Cell, Sample

_GRACE: Final = 20.0
"""Seconds beyond the time limit until a cell that does not end is ended."""
_LOOK: Final = 0.2
"""Seconds between looks at whether all is over."""
_MOST: Final = 1 << 20
"""Bytes that an answer may have."""


class Worker:
    """The process, from outside; a context manager. It is started when a cell is run, and again when one has taken it with it."""

    def __init__(self, over: Callable[[], str] = lambda: "") -> None:
        """over: asked again and again while a cell runs; once it gives a reason the cell is ended with that, and none is begun."""
        self._over = over
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()
        self._errors.close()

    def run(self, wanted: Wanted) -> Sample:
        """Runs a cell. Whatever goes wrong there is the sample's reason."""
        if reason := self._over():
            return Sample(reason)
        try:
            answer = self._ask(json.dumps(asdict(wanted)).encode() + b"\n", time.monotonic() + wanted.timeout + _GRACE)
        except TimeoutError:
            self._end()
            return Sample(self._over() or f"no answer within {wanted.timeout + _GRACE:g} s")
        if not answer.endswith(b"\n"):
            self._end()
            return Sample(self._over() or f"its process failed: {self._complaint()}")
        values = json.loads(answer)
        assert isinstance(values, dict)
        return Sample(**values)

    def _ask(self, question: bytes, end: float) -> bytes:
        """The worker's answer; less than a line when it failed. Raises TimeoutError when there is none in time, or nobody wants it any more."""
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        answer = b""
        try:
            process.stdin.write(question)
        except BrokenPipeError:
            return answer
        while not answer.endswith(b"\n") and len(answer) < _MOST:
            if self._over() or time.monotonic() > end:
                raise TimeoutError
            if select([process.stdout], [], [], _LOOK)[0]:
                came = os.read(process.stdout.fileno(), 65536)
                if not came:
                    break
                answer += came
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "tools.compare.worker"]  # -P: a folder "tools" where the user stands is none of ours
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        # In a session of its own: Ctrl-C is the business of who asks, and whatever a cell has started ends with it.
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0, start_new_session=True
        )
        return self._process

    def _end(self) -> None:
        """Ends the worker and all that it has started."""
        process, self._process = self._process, None
        if process is not None:
            with process:
                process.kill()
                with suppress(ProcessLookupError):  # a signal may have ended it before it had a session
                    os.killpg(process.pid, signal.SIGKILL)

    def _complaint(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]


def run_here(wanted: Wanted) -> Sample:
    """Runs a cell in this process."""
    if wanted.cell.way == "qemu":
        from tools.compare.outside import on_qemu

        return on_qemu(wanted)
    if wanted.cell.way == "unicorn":
        from tools.compare.bare import on_unicorn

        return on_unicorn(wanted)
    return measure(wanted)


def main() -> None:
    """The process: imports, and then a fork for each job."""
    for name in ("bt", "hw", "native", "pv", "step", "trap"):
        import_module(f"vmm.backends.{name}")
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _carry_out(line)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            _answer(Sample(f"its process ended by signal {-status}" if status < 0 else f"its process failed with status {status}"))


def _carry_out(line: str) -> NoReturn:
    """Runs one cell and ends the process."""
    job = json.loads(line)
    try:
        _answer(run_here(Wanted(Cell(**job.pop("cell")), **job)))
    except Exception as error:  # a fault of ours, in this cell alone
        _answer(Sample(f"its process failed: {type(error).__name__}: {error}"))
    os._exit(0)


def _answer(sample: Sample) -> None:
    sys.stdout.write(json.dumps(asdict(sample)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
