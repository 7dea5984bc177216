"""A process that writes a disk and snapshots is killed by kill -9, again and again, at moments of chance: nothing that was durable may be lost.

`make torture` runs it for 1,000 moments; a test does for a few. Each child goes on where the killed one left the files, so that what recovery made
of them is written on. The host itself does not die: what that adds is the order of two fsyncs, which no test here can show.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import struct
import tempfile
import time
from dataclasses import dataclass, replace

from tests.machine.flat import flat_vm
from tests.machine.small_kernel import small_kernel
from vmm.devices.disk import SECTOR, Point
from vmm.devices.overlay import Overlay, lay
from vmm.snapshot import Snapshot
from vmm.snapshot.file import read, write

SECTORS = 64
_LONGEST = 0.03  # seconds from a child's start to its end


@dataclass
class Files:
    """What is written, and what is known of it. written: the number in each sector when it was flushed last; behind: numbers reached since then."""

    folder: str
    snapshot: Snapshot
    durable: list[int]
    shot: int = 0
    number: int = 0

    @property
    def disk(self) -> str:
        return os.path.join(self.folder, "disk.overlay")

    @property
    def shots(self) -> str:
        return os.path.join(self.folder, "one.snapshot")


def files(folder: str) -> Files:
    """An empty disk and a first snapshot."""
    base = os.path.join(folder, "base.img")
    with open(base, "wb") as image:
        image.truncate(SECTORS * SECTOR)
    vm = flat_vm(small_kernel("l: jmp l"))
    vm.run(0.02)
    made = Files(folder, vm.snapshot(), [0] * SECTORS)
    lay(made.disk, Point(base, 0))
    write(made.shots, replace(made.snapshot, identity=f"{0:032x}"))
    return made


def work(of: Files, pipe: int) -> None:
    """The child: writes until it is killed, and says what is durable when it is."""
    disk, number = Overlay(of.disk), of.number
    while True:
        number += 1
        disk.write(number % SECTORS, struct.pack("<I", number) * (SECTOR // 4))
        os.write(pipe, struct.pack("<cI", b"w", number))
        if number % 3 == 0:
            disk.flush()
            os.write(pipe, struct.pack("<cI", b"f", number))
        if number % 7 == 0:
            write(of.shots, replace(of.snapshot, identity=f"{number:032x}"))
            os.write(pipe, struct.pack("<cI", b"s", number))


def moment(of: Files, chance: random.Random) -> None:
    """One child and its end; then everything that it said is durable must be there, and everything there must be whole."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            work(of, writer)
        finally:
            os._exit(1)  # never reached but by a failure, which shows as one that was not killed
    os.close(writer)
    time.sleep(chance.random() * _LONGEST)
    os.kill(child, signal.SIGKILL)
    with os.fdopen(reader, "rb") as said:
        told = said.read()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "the child ended by itself"
    reported = list(struct.iter_unpack("<cI", told[: len(told) // 5 * 5]))
    last = max((number for kind, number in reported if kind == b"w"), default=of.number)
    flushed = max((number for kind, number in reported if kind == b"f"), default=0)
    for number in range(of.number + 1, flushed + 1):
        of.durable[number % SECTORS] = number
    check_disk(of, last)
    shot = max((number for kind, number in reported if kind == b"s"), default=of.shot)
    there = int(read(of.shots).identity, 16)
    assert shot <= there <= last + 1, f"snapshot {there} is there, {shot} was reported"
    of.shot, of.number = there, last + 1


def check_disk(of: Files, last: int) -> None:
    """Each sector is whole, and as new as what was flushed, at least."""
    disk = Overlay(of.disk)
    for sector in range(SECTORS):
        numbers = set(struct.unpack(f"<{SECTOR // 4}I", disk.read(sector, 1)))
        assert len(numbers) == 1, f"sector {sector} is torn: {numbers}"
        (number,) = numbers
        assert of.durable[sector] <= number <= last + 1, f"sector {sector} holds {number}, {of.durable[sector]} was durable"
    disk.close()


def main() -> None:
    """Runs as many moments as asked for, and says how many."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--moments", type=int, default=1000)
    arguments.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    wanted = arguments.parse_args()
    chance = random.Random(wanted.seed)
    with tempfile.TemporaryDirectory() as folder:
        of = files(folder)
        for _ in range(wanted.moments):
            moment(of, chance)
    print(f"{wanted.moments} moments, {of.number} writes (seed {wanted.seed}): nothing durable was lost")


if __name__ == "__main__":
    main()
