"""The console of `vmm run`: the guest's serial line on standard output and input, raw when that is a terminal.

A guest that leaves the serial line silent and writes to the VGA text page has its console there: its screen is shown, and what is
typed goes to its keyboard. Knows descriptors, terminal modes, and the board's serial line, keyboard and VGA; decides nothing about
the run but that Ctrl-A x, or a standard output that is gone, ends it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final

from tools.keys import HELP, Command, EscapeKey
from tools.screen import Screen, plain
from vmm.exits import End, Stop

if TYPE_CHECKING:
    from vmm.vm import Vm

_PART: Final = 4096  # bytes read or written at once
_LOOK: Final = 0.05  # seconds between looks at the screen
_SETTLE: Final = 0.3  # seconds that a screen must have been in use, the serial line silent, to be taken for the console
_PATIENCE: Final = 1.0  # seconds after which the input of a guest that shows nothing at all goes to the serial line


class Terminal:
    """A `Console` on descriptors. A context manager: entering makes a terminal raw, leaving restores it whatever has happened.

    `attach` must be called with each new VM before it runs, `finish` when the last one has ended. vga: show the screen on
    standard error whatever the serial line does. failure: the error that standard output ended with, or None. on_quit, on_next: what
    Ctrl-A x and Ctrl-A n do: end the VM, and nothing.
    """

    def __init__(self, stdin: int = 0, stdout: int = 1, stderr: int = 2, *, vga: bool = False) -> None:
        self._stdin: int | None = stdin
        self._stdout, self._stderr = stdout, stderr
        self._saved: list[int | list[bytes | int]] | None = None
        self._vm: Vm | None = None
        self.on_quit: Callable[[Stop], object] = lambda stop: None if self._vm is None else self._vm.stop(stop)
        self.on_next: Callable[[], object] = lambda: None
        self._out, self._held = bytearray(), bytearray()
        self._escape = EscapeKey()
        self.failure: OSError | None = None
        self._midline = False
        self.spoke = False  # the serial line has: it is the console, for good
        self._began = self._next_look = 0.0
        self._screen_since: float | None = None
        self._vga = vga
        self._live = _is_tty(stderr if vga else stdout)
        self._screen = Screen(self._draw)

    # -- the terminal's mode -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Terminal:
        if self._stdin is None:
            return self
        try:
            if not os.isatty(self._stdin):
                os.fstat(self._stdin)  # closed from the start: no input
            elif os.tcgetpgrp(self._stdin) != os.getpgrp():
                self._stdin = None  # a background job neither reads nor changes the terminal
            else:
                self._make_raw(self._stdin)
        except (OSError, termios.error):
            self._stdin = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._saved is not None and self._stdin is not None:
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # restoring is right in the background, too
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._stdin, termios.TCSADRAIN, self._saved)
            self._saved = None
        self.flush()

    def _make_raw(self, descriptor: int) -> None:
        """Every key comes at once and unechoed, except that Ctrl-C stays a signal; output is still cooked: kernels print bare newlines."""
        self._saved = make_raw(descriptor)

    # -- the life of a run ---------------------------------------------------------------------------------------------------------

    def attach(self, vm: Vm) -> None:
        """Sits down at `vm`."""
        self._vm = vm
        self._began = time.monotonic()
        self._screen_since = None

    def finish(self) -> None:
        """After the end: everything printed is out, what follows starts on a new line, and the screen stands complete, if it was the console."""
        self.flush()
        if self._midline and _is_tty(self._stdout):
            self._out += b"\n"
            self.flush()
        vm = self._vm
        text = [] if vm is None or self.spoke and not self._vga else vm.board.vga.text()
        if vm is None or not any(text):
            return
        if self._live:
            self._screen.draw(text, vm.board.vga.cursor())
            self._screen.leave()
        else:
            self._draw(plain(text).encode())

    # -- what the run loop asks for (vmm.console.Console) --------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Bytes of the serial line; they are out at the next turn at the latest, 10 ms from now."""
        if not self.spoke:
            self.spoke = True
            if not self._vga:
                self._screen.leave()
        self._out += data
        if len(self._out) >= _PART:
            self.flush()

    def poll(self) -> bytes | None:
        """Input for the serial line. Keys for the 8042 are pressed here."""
        self.flush()
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _LOOK
            self._look(now)
        if self._stdin is not None and (self._saved is not None or len(self._held) < _PART):
            self._read(self._stdin)
        return self._deliver(now)

    def fileno(self) -> int | None:
        """Standard input while it is of use to wait for it."""
        return None if self._saved is None and self._held else self._stdin

    # -- input ---------------------------------------------------------------------------------------------------------------------

    def _read(self, descriptor: int) -> None:
        try:
            if not select.select([descriptor], [], [], 0)[0]:
                return
            data = os.read(descriptor, _PART)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            data = b""
        if not data:
            self._end_input()
        elif self._saved is None:
            self._held += data
        else:
            sent, commands = self._escape.take(data)
            self._held += sent
            for command in commands:
                self._obey(command)

    def _end_input(self) -> None:
        """A pipe is at its end. A terminal never is: it is gone, and there is nothing to restore."""
        self._stdin = None
        if self._saved is not None:
            self._saved = None
            self._quit("the terminal is gone")

    def _obey(self, command: Command) -> None:
        match command:
            case Command.QUIT:
                self._quit("ended by Ctrl-A x")
            case Command.NEXT:
                self.on_next()
            case Command.HELP:
                print(HELP, file=sys.stderr, flush=True)
            case Command.DETACH:
                pass  # there is nothing to go back to

    def _quit(self, reason: str) -> None:
        self.on_quit(Stop(End.QUIT, reason))

    def _deliver(self, now: float) -> bytes | None:
        """Gives the guest what it has room for, where it listens."""
        vm, held = self._vm, self._held
        if vm is None or not held:
            return None if self._stdin is None else b""
        if self.spoke or self._screen_since is None and now - self._began > _PATIENCE:
            part = bytes(held[: vm.board.serial.room()])
            del held[: len(part)]
            return part
        if self._on_screen(now):
            keys = bytes(held[: vm.board.keyboard.room()])
            del held[: len(keys)]
            vm.board.keyboard.press(keys.decode("latin-1"))
        return b""

    # -- output --------------------------------------------------------------------------------------------------------------------

    def _on_screen(self, now: float) -> bool:
        """Whether the VGA screen is the console."""
        return not self.spoke and self._screen_since is not None and now - self._screen_since >= _SETTLE

    def _look(self, now: float) -> None:
        """Sees whether the screen is in use, and draws it where somebody watches."""
        vm = self._vm
        if vm is None or self.spoke and not self._vga:
            return
        vga = vm.board.vga
        if self._screen_since is None:
            if not vga.changed() or not any(vga.text()):
                return
            self._screen_since = now
        if self._live and (self._vga or self._on_screen(now)) and (vga.changed() or not self._screen.drawn):
            self._screen.draw(vga.text(), vga.cursor())

    def _draw(self, data: bytes) -> None:
        if self._vga:
            with contextlib.suppress(OSError):
                _write(self._stderr, data)
        else:
            self._out += data
            self.flush()

    def flush(self) -> None:
        """What was written is out."""
        if self._out and self.failure is None:
            self._midline = not self._out.endswith(b"\n")
            try:
                _write(self._stdout, self._out)
            except OSError as error:
                self.failure = error
                self._quit(f"standard output: {(error.strerror or str(error)).lower()}")
        self._out.clear()


def make_raw(descriptor: int) -> list[int | list[bytes | int]]:
    """Makes a terminal raw, but for Ctrl-C and for output; returns its mode before."""
    before: list[int | list[bytes | int]] = termios.tcgetattr(descriptor)
    mode = termios.tcgetattr(descriptor)
    mode[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INLCR | termios.IGNCR | termios.INPCK | termios.ISTRIP | termios.IXON)
    mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
    keys = mode[6]
    keys[termios.VMIN], keys[termios.VTIME] = 1, 0
    keys[termios.VQUIT] = keys[termios.VSUSP] = os.fpathconf(descriptor, "PC_VDISABLE").to_bytes(1, "little")
    termios.tcsetattr(descriptor, termios.TCSADRAIN, mode)
    return before


@contextlib.contextmanager
def raw_terminal(descriptor: int) -> Iterator[bool]:
    """Around a use of a descriptor that is made raw if it is a terminal: whether it is."""
    if not _is_tty(descriptor):
        yield False
        return
    before = make_raw(descriptor)
    try:
        yield True
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _write(descriptor: int, data: bytes | bytearray) -> None:
    view = memoryview(bytes(data))
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # somebody else's mode of a shared descriptor
            select.select([], [descriptor], [])


def _is_tty(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False
