"""`vmm run` on a pseudo-terminal: escape keys, signals, the screen, and a terminal that is afterwards what it was before."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli import flat
from tests.layers import ROOT

PATIENCE = 20.0


class Seat:
    """A terminal with `vmm run` at it."""

    def __init__(self, arguments: list[str]) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from tools.cli import main; main()", "run", *arguments],
            cwd=ROOT,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=self._take_terminal,
        )

    def _take_terminal(self) -> None:
        import fcntl

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def expect(self, text: bytes) -> None:
        """Waits until `text` has been printed."""
        end = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 4096)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        """The exit status; the terminal's mode is back by then."""
        status = self.process.wait(PATIENCE)
        assert termios.tcgetattr(self.slave) == self.before
        return status


@contextmanager
def seat(arguments: list[str]) -> Iterator[Seat]:
    sitting = Seat(arguments)
    try:
        yield sitting
    finally:
        sitting.process.kill()
        sitting.process.wait()
        os.close(sitting.master)
        os.close(sitting.slave)


def test_keys_and_escape(tmp_path: Path) -> None:
    """Keys reach the guest one by one and unechoed; Ctrl-A a is a Ctrl-A, Ctrl-A h helps, Ctrl-A x ends the run with 0."""
    with seat(flat.write(tmp_path, flat.ECHO)) as at:
        at.expect(b">")
        at.type(b"k")
        at.expect(b">k")
        at.type(b"\x01a")
        at.expect(b">k\x01")
        at.type(b"\x1a\x1c")  # Ctrl-Z and Ctrl-\ are the guest's
        at.expect(b"\x1a\x1c")
        at.type(b"\x01h")
        at.expect(b"Ctrl-A x   end the run")
        at.type(b"\x01x")
        assert at.end() == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """Ctrl-C and SIGTERM end the run cleanly, with the record written and the terminal restored."""
    record = tmp_path / "record.json"
    with seat([*flat.write(tmp_path, flat.ECHO), "--json", str(record)]) as at:
        at.expect(b">")
        if number == signal.SIGINT:
            at.type(b"\x03")
        else:
            at.process.send_signal(number)
        assert at.end() == status
    assert f'"status": {status}' in record.read_text()
    assert b"Traceback" not in at.seen


def test_the_screen_lives(tmp_path: Path) -> None:
    """The screen of a guest that is silent on the serial line is drawn, and keys are its keyboard's."""
    with seat(flat.write(tmp_path, flat.SCREEN_AND_KEYBOARD)) as at:
        at.expect(b"\x1b[1HHi")
        at.expect(b"\x1b[2H23")
        at.type(b"q")
        assert at.end() == 0


def test_a_death_restores_the_terminal(tmp_path: Path) -> None:
    """The report comes out on a terminal that is already cooked."""
    with seat(flat.write(tmp_path, flat.STOP_FOR_GOOD)) as at:
        at.expect(b"halted for good")
        assert at.end() == 3
