"""The memory that a VM takes in the host, measured in a process of its own: python -m tests.guests.footprint KERNEL ROUNDS...

Runs xv6 and has its shell run `forktest` again and again; prints, after each of the given numbers of rounds, the resident bytes of the
process and those of them that are guest memory, as JSON. Knows /proc and nothing of how a VM works.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.guests.dialogue import FINISHED, Dialogue, Step
from vmm.machine import FRAME
from vmm.vm import Vm, machine_for

MEMORY_MIB = 256


@dataclass(frozen=True, slots=True)
class Footprint:
    """After `rounds` rounds: bytes of the process that are resident, and how many of them are the guest's own memory."""

    rounds: int
    resident: int
    guest: int

    @property
    def beside(self) -> int:
        """Bytes beside the guest's own."""
        return self.resident - self.guest


def measure(kernel: Path, rounds: Sequence[int], timeout: float) -> list[Footprint]:
    """The footprints after so many rounds, in a new process. Raises CalledProcessError when it fails."""
    command = [sys.executable, "-m", "tests.guests.footprint", str(kernel), *map(str, rounds)]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=timeout, cwd=Path(__file__).parent.parent.parent).stdout
    return [Footprint(**line) for line in map(json.loads, output.splitlines())]


class _Rounds(Dialogue):
    """Types `forktest` at each prompt and measures after some of them."""

    def __init__(self, rounds: Sequence[int]) -> None:
        super().__init__([Step("$ ", "forktest\n"), *(Step("fork test OK\n$ ", "forktest\n") for _ in range(max(rounds)))])
        self.rounds = rounds

    def write(self, data: bytes) -> None:
        before = len(self.progress.cpu)
        super().write(data)
        done = len(self.progress.cpu) - 1
        if done >= before and done in self.rounds and self.vm is not None:
            print(json.dumps({"rounds": done, "resident": resident(), "guest": guest_resident(self.vm)}), flush=True)


def resident() -> int:
    """Resident bytes of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def guest_resident(vm: Vm) -> int:
    """Bytes of the guest's memory that are resident."""
    memory = vm.machine.memory
    pages = (ctypes.c_ubyte * (len(memory) // FRAME))()
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(memory)), pages):
        raise OSError(ctypes.get_errno(), "mincore failed")
    return sum(pages[frame] & 1 for frame in vm.memory.frames) * FRAME


def _main(kernel: str, rounds: Sequence[int]) -> None:
    console = _Rounds(rounds)
    vm = Vm(machine_for(MEMORY_MIB), memory_mib=MEMORY_MIB, console=console)
    console.attach(vm)
    vm.load(kernel)
    stop = vm.run(3600)
    if stop.reason != FINISHED:
        raise SystemExit(f"{stop.reason} after:\n{console.text[-1000:]}")


if __name__ == "__main__":
    _main(sys.argv[1], [int(word) for word in sys.argv[2:]])
