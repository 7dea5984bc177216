"""One terminal for several guests: each line of output behind the name of its VM, and input for one VM at a time.

Knows the terminal and which VM has the keys. Knows nothing of how VMs are run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.terminal import Terminal

if TYPE_CHECKING:
    from vmm.vm import Vm

_LONGEST = 4096  # bytes of a line that is not at its end, after which it is shown as it is


class Desk:
    """Shares a terminal among VMs. What is typed goes to the VM in front: the first, until `next` or its end moves the keys on."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.seats: list[Seat] = []
        self._writing: Seat | None = None  # whose line, not yet at its end, is on the terminal
        terminal.on_next = self.next

    def seat(self, name: str) -> Seat:
        """A console for one more VM."""
        self.seats.append(Seat(self, name))
        return self.seats[-1]

    @property
    def front(self) -> Seat | None:
        """Who has the keys: a VM that still runs."""
        seat = self.seats[0] if self.seats else None
        if seat is not None and seat.vm is not None and seat.vm.stopped is not None and any(not other.ended for other in self.seats):
            seat.flush()
            self.next()
            return self.seats[0]
        return seat

    def next(self) -> None:
        """Gives the keys to the next VM that runs."""
        for _ in self.seats:
            self.seats.append(self.seats.pop(0))
            if not self.seats[0].ended:
                break
        vm = self.seats[0].vm
        if vm is not None:
            self.terminal.attach(vm)

    def show(self, seat: Seat, text: bytes) -> None:
        """Writes part of a VM's output, which begins a line unless this VM's line is the one that is on the terminal."""
        out = b""
        if self._writing is not seat:
            out = b"\n" if self._writing is not None else b""
            out += seat.label
        out += text.replace(b"\n", b"\n" + seat.label)
        self._writing = seat
        if out.endswith(b"\n" + seat.label):
            out, self._writing = out.removesuffix(seat.label), None
        self.terminal.write(out)

    def finish(self) -> None:
        """Behind the end of all VMs: shows what is left of lines that never came to their end."""
        for seat in sorted(self.seats, key=lambda seat: seat.name):
            seat.flush()
        if self._writing is not None:
            self._writing = None
            self.terminal.write(b"\n")


class Seat:
    """A `Console` of one VM among several. vm: whose it is; None before it is made."""

    def __init__(self, desk: Desk, name: str) -> None:
        self.desk, self.name, self.label = desk, name, f"{name}: ".encode()
        self.vm: Vm | None = None
        self._line = bytearray()
        self._grown = False  # since the last turn

    @property
    def ended(self) -> bool:
        """Whether the VM is at its end."""
        return self.vm is not None and self.vm.stopped is not None

    def attach(self, vm: Vm) -> None:
        """Another VM takes the seat: the first, or the same guest after a restart."""
        self.vm = vm
        if self.desk.seats[0] is self:
            self.desk.terminal.attach(vm)

    def write(self, data: bytes) -> None:
        self._line += data
        self._grown = True
        end = self._line.rfind(b"\n") + 1
        if len(self._line) - end > _LONGEST:
            end = len(self._line)
        if end:
            self.desk.show(self, bytes(self._line[:end]))
            del self._line[:end]

    def flush(self) -> None:
        """Shows what there is of a line."""
        if self._line:
            self.desk.show(self, bytes(self._line))
            self._line.clear()

    def poll(self) -> bytes | None:
        if self.desk.front is self:
            if not self._grown:
                self.flush()  # a prompt
            self._grown = False
            return self.desk.terminal.poll()
        self.desk.terminal.flush()
        return b""

    def fileno(self) -> int | None:
        return self.desk.terminal.fileno() if self.desk.front is self else None
