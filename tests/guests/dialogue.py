"""A conversation with a guest over its serial line, the same for a VM of ours and for QEMU: wait for a text, answer, and so on.

Knows consoles and processes. Knows no guest and decides nothing about what was said.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from vmm.console import Recorder
from vmm.exits import End, Stop

if TYPE_CHECKING:
    from vmm.vm import Vm

FINISHED = "the last text of the dialogue came"


@dataclass(frozen=True, slots=True)
class Step:
    """Wait until `wait` appears behind what was waited for before, then type `answer`."""

    wait: str
    answer: str = ""


@dataclass(slots=True)
class Progress:
    """How far a dialogue has come. cpu: user and system seconds that the guest's process had used when each step's text came."""

    steps: Sequence[Step]
    cpu: list[float] = field(default_factory=list)
    seen: int = 0

    def heard(self, output: bytes | bytearray, cpu_seconds: float) -> bytes | None:
        """The answer when the text of the present step is in `output` by now, else None."""
        if self.finished:
            return None
        step = self.steps[len(self.cpu)]
        at = output.find(step.wait.encode(), self.seen)
        if at < 0:
            return None
        self.seen = at + len(step.wait)
        self.cpu.append(cpu_seconds)
        return step.answer.encode()

    @property
    def finished(self) -> bool:
        """Whether the last step's text has come."""
        return len(self.cpu) == len(self.steps)


class Dialogue(Recorder):
    """A console that holds a dialogue and stops its VM behind the last step. `attach` must be called before the run."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self.progress = Progress(steps)
        self.vm: Vm | None = None

    def attach(self, vm: Vm) -> None:
        """Names the VM whose console this is."""
        self.vm = vm

    def write(self, data: bytes) -> None:
        super().write(data)
        answer = self.progress.heard(self.output, time.process_time())
        if answer:
            self.type(answer)
        if self.progress.finished and self.vm is not None:
            self.vm.stop(Stop(End.QUIT, FINISHED))


def talk_to_process(command: Sequence[str], steps: Sequence[Step], timeout: float) -> tuple[str, Progress]:
    """Holds a dialogue with a process at its standard input and output, then ends it; returns all output.

    Raises AssertionError with the output when the dialogue is not through within `timeout` seconds.
    """
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        assert process.stdin is not None and process.stdout is not None
        return _talk(process, process.stdout.fileno(), process.stdin.fileno(), steps, timeout)


def talk_at_terminal(command: Sequence[str], steps: Sequence[Step], timeout: float) -> tuple[str, Progress]:
    """The same with a process whose standard input and output are a terminal."""
    master, slave = pty.openpty()
    try:
        # the terminal is to be the process's own: only who is in front of it may change its mode
        take = partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0)
        with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=subprocess.DEVNULL, start_new_session=True, preexec_fn=take) as process:
            return _talk(process, master, master, steps, timeout)
    finally:
        os.close(master)
        os.close(slave)


def _talk(process: subprocess.Popen[bytes], heard: int, said: int, steps: Sequence[Step], timeout: float) -> tuple[str, Progress]:
    progress, output, end = Progress(steps), bytearray(), time.monotonic() + timeout
    try:
        while not progress.finished:
            ready, _, _ = select.select([heard], [], [], max(0.0, end - time.monotonic()))
            data = os.read(heard, 65536) if ready else b""
            if not data:
                raise AssertionError(f"{process.args}: no {steps[len(progress.cpu)].wait!r} in:\n{output.decode('latin-1')}")
            output += data
            while (answer := progress.heard(output, cpu_of(process.pid))) is not None:
                os.write(said, answer)
    finally:
        process.kill()
    return output.decode("latin-1"), progress


def cpu_of(pid: int) -> float:
    """User and system seconds of a live process so far."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
