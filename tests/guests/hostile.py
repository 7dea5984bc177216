"""Guests that run wild, in a process of their own: python -m tests.guests.hostile RING STUBS SECONDS NAME... (ring 0: on the bare machine)

Knows the guests written on purpose, by name, and makes `random-...` ones of random bytes. The process prints a line before and a line
after each guest, so that its parent sees in which one it died.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.guests.hostile_guests import MEMORY_MIB, SKIP, Parts, written_guests
from tests.machine.flat import FINISH, flat_vm
from tests.machine.small_kernel import LOG, TO_USER, USER, USER_PAGES, small_kernel
from tools.report import death_report
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.bt.options import MISTAKES
from vmm.backends.hw import HwOptions
from vmm.backends.native import NativeOptions
from vmm.backends.step import StepOptions
from vmm.backends.trap import TrapOptions

_BLOB, _USER_BLOB = 0x150000, USER + 0x1000
_COUNTED = f"inc dword ptr ss:[{LOG}]; cmp dword ptr ss:[{LOG}],400; jb n; {FINISH}; n: "
_ENDURING = {vector: _COUNTED + SKIP[vector] for vector in (*range(20), 0x80)}
RANDOM_KINDS = tuple(
    f"{mode}-{paging}-{handlers}" for mode in ("kernel", "user") for paging in ("paged", "unpaged") for handlers in ("bare", "enduring")
)


def random_names(count: int, turn: int) -> list[str]:
    """So many random guests: each first opcode in turn, and in another kind of surroundings for each `turn`."""
    kinds = len(RANDOM_KINDS)
    return [f"random-{RANDOM_KINDS[(seed + seed // kinds + turn) % kinds]}-{seed}" for seed in range(count)]


@cache
def _surroundings(kind: str) -> Parts:
    """What a random blob runs in: its mode, paging on or off, and whether the guest handles exceptions."""
    mode, paging, handlers = kind.split("-")
    off = "mov eax,cr0; and eax,0x7fffffff; mov cr0,eax;" if paging == "unpaged" else ""
    then = f"{off} {TO_USER}" if mode == "user" else f"{off} mov eax,{_BLOB}; jmp eax"
    parts = small_kernel(then, user=f"mov eax,{_USER_BLOB}; jmp eax", handlers=_ENDURING if handlers == "enduring" else {})
    return {**parts, USER: parts[USER_PAGES]}  # with paging off user code is where its linear address says


def random_code(kind: str, seed: int) -> Parts:
    """A blob of random bytes. The seed's low byte is its first opcode: of the one-byte map below 256, of either map from there on."""
    noise = random.Random(f"{kind} {seed}")
    first = bytes((seed & 0xFF,)) if seed < 256 or seed & 1 else bytes((0x0F, seed & 0xFF))
    blob = first + noise.randbytes(noise.choice((8, 24, 96))) + b"\xeb\xfe"
    return {**_surroundings(kind), _BLOB: blob, _USER_BLOB: blob, USER_PAGES + 0x1000: blob}


def _guest(name: str) -> Parts:
    if name.startswith("random-"):
        _, mode, paging, handlers, seed = name.split("-")
        return random_code(f"{mode}-{paging}-{handlers}", int(seed))
    return written_guests()[name]


@dataclass(frozen=True, slots=True)
class Survived:
    """How a guest ended: kind of end, reason, process CPU seconds, and exits in virtual kernel mode with EIP outside the cache."""

    why: str
    reason: str
    seconds: float
    outside: int


def run_all(names: Sequence[str], *, ring: int | str, cached: bool, timeout: float) -> tuple[dict[str, Survived], str]:
    """Runs guests in one process, under bt with `ring` or the back-end that it names.

    Returns the ends of those that ended, and what the process said of the one that did not ("" if all did).
    """
    command = [sys.executable, "-m", "tests.guests.hostile", str(ring), "cache" if cached else "trap", str(timeout), *names]
    root = Path(__file__).parent.parent.parent
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=20 + 4 * timeout * len(names), check=False, cwd=root)
        output, complaint = process.stdout, f"status {process.returncode}\n{process.stderr[-3000:]}"
    except subprocess.TimeoutExpired as expired:
        output, complaint = (expired.stdout or b"").decode(), "no answer"
    ended, present = {}, ""
    for line in output.splitlines():
        name, _, rest = line.partition("\t")
        if rest:
            why, reason, seconds, outside = rest.split("\t")
            ended[name] = Survived(why, reason, float(seconds), int(outside))
        else:
            present = name
    return ended, "" if len(ended) == len(names) else f"{present}: {complaint}"


def _options(ring: str, cached: bool) -> Options:
    others: dict[str, Options] = {
        "native": NativeOptions(),
        "hw": HwOptions(), "hw-shadow": HwOptions(mmu="shadow"),
        "step": StepOptions(),
        "trap": TrapOptions(),
        "broken": BtOptions(broken=frozenset(MISTAKES)),
        "trap-3": TrapOptions(ring=3),
    }
    return others[ring] if ring in others else BtOptions(ring=int(ring), stubs_in_cache=cached)


def _main(ring: str, cached: bool, timeout: float, names: Sequence[str]) -> None:
    for name in names:
        print(name, flush=True)
        vm = flat_vm(_guest(name), memory_mib=MEMORY_MIB, options=_options(ring, cached))
        before = time.process_time()
        stop = vm.run(timeout)
        seconds = time.process_time() - before
        death_report(vm, stop)
        print(name, stop.why.name, stop.reason, f"{seconds:.3f}", vm.stats.outside, sep="\t", flush=True)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2] == "cache", float(sys.argv[3]), sys.argv[4:])
