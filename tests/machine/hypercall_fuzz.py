"""Random hypercalls at a domain, most of them such as may succeed, and what must hold whatever they are; by itself: on and on, until something fails.

    python -m tests.machine.hypercall_fuzz --minutes 60

Choices are numbers, so that a test library may make them as well as a generator. Knows the layouts of requests as a guest must know them.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace

from tests.machine.pv import BASE, CODE, DATA, LOG, MEMORY_MIB, STACK, TABLE, domain_of, pv_vm
from tests.machine.test_pv_frames import counted
from tools.report import death_report
from vmm.exits import End, Stopped
from vmm.machine import FRAME, MIB, Machine
from vmm.mmu.frames import Kind
from vmm.vm import Vm
from vmm.xen.batches import Preempted
from vmm.xen.domain import XenDomain
from vmm.xen.hypercalls import HYPERCALLS, call

NUMBERS = [number for number in HYPERCALLS if number != 23]
MEMORY_NUMBERS = (1, 1, 1, 2, 10, 12, 12, 13, 14, 14, 20, 20, 22, 26, 26, 26)
CHOICES = 12  # numbers that one hypercall is made of
LARGEST = 4095
_PLACES = (DATA, DATA + 16, TABLE, LOG, STACK - 0x100, BASE + 0x3FFFF8)
_WILD = (0, 1, 2, 3, 0xF5800000, 0xFFFFFFFF, 0x7FFFFFF8, 0xDFFFFFFF, 0x7FF0, 512, 4096)
_KINDS = ("place", "wild", "frame", "small", "entry", "address")
_REQUESTS = (0, 0, 1, 2, 4, 4, 5, 13, 16, 17)  # of mmuext_op: pins, unpin, base pointer, LDT, pages
_MAPPED = (BASE + 0x180000, BASE + 0x200000, DATA, BASE + 0x3FF000)
_FLAGS = (0, 1, 3, 7, 0x63, 0x61, 0x83, 0x8000000000000003)
_DESCRIPTORS = (0, 0x00CF9B000000FFFF, 0x00CFB3000000FFFF, 0x00AF9B000000FFFF, 0x0000EC000008E019, 0x0000890000000067, 0x00CFF2000000FFFF)
_DOMAINS = (0x7FF0, 0x7FF0, 1, 2)


class Case:
    """A domain, frames that are not its own, and arguments made of numbers: the frames that matter are its first pages, tables and the others'."""

    def __init__(self, code: str = "nop", machine: Machine | None = None) -> None:
        self.vm = pv_vm({CODE: code}, machine=machine)
        self.domain: XenDomain = domain_of(self.vm)
        self.others = self.vm.machine.allocate(3)
        for n, mfn in enumerate(self.others):
            self.vm.machine.memory[mfn * FRAME : (mfn + 1) * FRAME] = bytes([n + 1]) * FRAME
        start = self.vm.start
        assert start is not None and start.domain is not None
        frames = self.vm.memory.frames
        tables = [frames[page] for page in start.domain.tables]
        self.spare = frames[1024:1030]  # nothing maps them
        self.frames = [*tables, *frames[:4], *self.domain.rings, *frames[600:604], *self.spare, *self.others, 1 << 23]
        self.domain.grants.table(1)
        self._shapes: dict[int, Callable[[Sequence[int]], list[int]]] = {
            1: self._updates, 2: self._gdt, 10: self._descriptor, 12: self._memory, 13: self._multicall, 14: self._mapping, 20: self._grant,
            22: self._mapping, 26: self._tables,
        }  # fmt: skip

    # -- requests ----------------------------------------------------------------------------------------------------------------------

    def any(self, n: int) -> int:
        """A 64-bit value for an argument, or for memory that one points at."""
        kind, n = _KINDS[n % len(_KINDS)], n // len(_KINDS)
        match kind:
            case "place":
                return _PLACES[n % len(_PLACES)]
            case "wild":
                return _WILD[n % len(_WILD)]
            case "frame":
                return self.frame(n)
            case "entry":
                return self.entry(n)
            case "address":
                return self.address(n)
            case _:
                return n % 16

    def frame(self, n: int) -> int:
        """A frame that matters, half of them such as can still become anything."""
        return self.spare[n // 2 % len(self.spare)] if n % 2 else self.frames[n // 2 % len(self.frames)]

    def entry(self, n: int) -> int:
        """A page-table entry."""
        return self.frame(n) << 12 | _FLAGS[n // 7 % len(_FLAGS)]

    def address(self, n: int) -> int:
        """The machine address of an entry, and a command in its lowest bits."""
        return self.frame(n) << 12 | n // 7 % 512 * 8 | n % 3

    def put(self, at: int, form: str, *values: int) -> None:
        """Writes memory that a request lies in, while it is plain memory."""
        mfn = self.vm.memory.frames[at - BASE >> 12]
        if self.domain.frames.kind[mfn] <= Kind.WRITABLE:
            data = struct.pack(f"<{form}", *values)
            start = mfn * FRAME + (at & 0xFFF)
            self.vm.machine.memory[start : start + len(data)] = data

    def arguments(self, number: int, choices: Sequence[int]) -> list[int]:
        """What a hypercall is called with; what it points at is in place."""
        values = [self.any(n) for n in choices]
        self.put(DATA, f"{len(values)}Q", *(value & (1 << 64) - 1 for value in values))
        self.put(TABLE, f"{len(values)}I", *(value & 0xFFFFFFFF for value in values))
        shape = self._shapes.get(number)
        return shape(choices) if shape and choices[0] % 8 else [value & 0xFFFFFFFF for value in values[:5]]

    def _updates(self, choices: Sequence[int]) -> list[int]:
        pairs = [(self.address(a), self.entry(b)) for a, b in zip(choices[1::2], choices[2::2], strict=False)]
        self.put(DATA, f"{2 * len(pairs)}Q", *(word for pair in pairs for word in pair))
        return [DATA, 1 + choices[0] % len(pairs), LOG if choices[1] % 2 else 0, 0x7FF0, 0]

    def _gdt(self, choices: Sequence[int]) -> list[int]:
        self.put(TABLE, "4I", *(self.frame(n) for n in choices[1:5]))
        return [TABLE, (0, 8, 512, 600, 1024, 2048)[choices[0] % 6], 0, 0, 0]

    def _descriptor(self, choices: Sequence[int]) -> list[int]:
        address, descriptor = self.address(choices[1]) & ~3, _DESCRIPTORS[choices[2] % len(_DESCRIPTORS)]
        return [address & 0xFFFFFFFF, address >> 32, descriptor & 0xFFFFFFFF, descriptor >> 32, 0]

    def _memory(self, choices: Sequence[int]) -> list[int]:
        count = choices[1] % 4
        self.put(DATA, "8I", *(self.frame(n) for n in choices[2:6]), *(n % 2048 for n in choices[2:6]))
        self.put(TABLE, "11I", DATA, count, choices[6] % 50 == 0, 0, 0x7FF0, DATA + 16, count, 0, 0, 0x7FF0, 0)
        return [(0, 1, 6, 11, 11, 1)[choices[0] % 6], TABLE, 0, 0, 0]

    def _multicall(self, choices: Sequence[int]) -> list[int]:
        for n, number in enumerate((14, 17, 26)):
            arguments = self._mapping(choices[n:]) if number == 14 else [DATA, 1, 0, 0x7FF0, 0]
            self.put(TABLE + 32 * n, "8I", number, 0, *arguments, 0)
        return [TABLE, 1 + choices[0] % 3, 0, 0, 0]

    def _mapping(self, choices: Sequence[int]) -> list[int]:
        entry = self.entry(choices[1])
        return [_MAPPED[choices[2] % len(_MAPPED)], entry & 0xFFFFFFFF, entry >> 32, choices[0] % 3, _DOMAINS[choices[0] % 4]]

    def _grant(self, choices: Sequence[int]) -> list[int]:
        table, memory = self.domain.grants.frames_used[0] * FRAME, self.vm.machine.memory
        grants = [((1, 1, 1, 5, 0, 2)[n % 6], n // 6 % 4 > 0, self.frame(n // 24)) for n in choices[1:5]]
        memory[table : table + 32] = b"".join(struct.pack("<HHI", *grant) for grant in grants)
        command = (0, 0, 1, 1, 5, 2)[choices[5] % 6]
        where, domid = _MAPPED[choices[6] % len(_MAPPED)], _DOMAINS[choices[0] % 4]
        if command == 0:
            address = self.address(choices[8]) & ~7 if choices[7] % 3 == 0 else where
            flags = (2 if address == where else 18) | choices[7] % 2 * 4
            self.put(DATA, "QIIHhIQ", address, flags, choices[9] % 5, domid, 0, 0, 0)
        elif command == 1:
            self.put(DATA, "QQIhxx", where if choices[7] % 4 else 0, 0, 1 + choices[8] % 4, 0)
        elif command == 5:
            source, target = (choices[8] % 5, domid, choices[9]), (self.frame(choices[10]), 0x7FF0, 0)
            self.put(DATA, "IHHIHHHHhxx", *source, *target, choices[11], choices[7] % 4, 0)
        else:
            self.put(DATA, "4I", 0x7FF0, choices[8] % 34, 0, LOG)
        return [command, DATA, 1, 0, 0]

    def _tables(self, choices: Sequence[int]) -> list[int]:
        for at, (command, a, b) in enumerate((choices[1:4], choices[4:7])):
            request = _REQUESTS[command % len(_REQUESTS)]
            first, second = (_PLACES[a % len(_PLACES)] & ~0xFFF, b % 600) if request == 13 else (self.frame(a), self.frame(b))
            self.put(DATA + 12 * at, "3I", request, first, second)
        return [DATA, 1 + choices[0] % 2, LOG if choices[7] % 2 else 0, 0x7FF0, 0]

    # -- what must hold ------------------------------------------------------------------------------------------------------------------

    def do(self, number: int, choices: Sequence[int]) -> bool:
        """One hypercall to its end, and everything that must hold behind it; whether nothing of it was refused."""
        words, refused = self.arguments(number, choices), self.domain.stats.refused
        before = refused.total()
        try:
            result = to_its_end(self.domain, number, words)
        except Stopped:
            return False
        assert -200 < result
        self.check()
        return refused.total() == before

    def check(self) -> None:
        """All counts by looking at all that is in use; no frame both table and writable; frames of others untouched."""
        domain, frames = self.domain, self.domain.frames
        refs, typed = counted(SimpleNamespace(machine=self.vm.machine, frames=frames, mmu=domain.mmu))  # type: ignore[arg-type]
        for mfn in [*domain.descriptors.gdt, *domain.descriptors.ldt.values(), *frames.reserved, *domain.rings]:
            refs[mfn] += 1
            typed[mfn] += 1
        for mfn in [*self.vm.memory.frames, *self.others]:
            whole = frames.whole[frames.chunk[mfn]] if frames.chunk[mfn] >= 0 else 0
            assert (frames.untyped[mfn] + frames.typed[mfn] + whole, frames.typed[mfn] + whole) == (refs[mfn], typed[mfn]), hex(mfn)
        for table in domain.mmu.leaves.tables:
            assert frames.kind[table] == Kind.LEAF
        for n, mfn in enumerate(self.others):
            assert not frames.owned[mfn]
            assert bytes(self.vm.machine.memory[mfn * FRAME : (mfn + 1) * FRAME]) == bytes([n + 1]) * FRAME

    def end(self) -> None:
        """Everything is undone that holds a frame: then nothing is held."""
        domain, frames = self.domain, self.domain.frames
        for mfn in list(frames.pinned):
            domain.mmu.unpin(mfn)
        domain.descriptors.set_gdt([])
        domain.descriptors.set_ldt(0, 0)
        domain.mmu.release(domain.mmu.base)
        for mfn in [*domain.rings, *frames.reserved]:
            frames.drop_type(mfn)
        assert not any(frames.typed) and not any(frames.untyped) and not any(frames.whole)
        assert not domain.mmu.leaves.tables and not frames.given_up


def to_its_end(domain: XenDomain, number: int, words: list[int]) -> int:
    """The result of a hypercall, which may have to be asked for again and again."""
    while True:
        try:
            return call(domain, number, *words)
        except Preempted as preempted:
            for argument, value in preempted.arguments.items():
                words[argument] = value


def sequence(seed: int, most: int = 60) -> Counter[int]:
    """One domain's life of hypercalls; returns how many of each number were done."""
    chance, case, done = random.Random(seed), Case(), Counter[int]()
    for _ in range(most):
        number = chance.choice(NUMBERS if chance.random() < 0.2 else MEMORY_NUMBERS)
        done[number] += case.do(number, [chance.randint(0, LARGEST) for _ in range(CHOICES)])
    case.end()
    return done


_LIST, _CALLS = BASE + 0x100000, 2000
_GUEST = f"""
mov dword ptr [{LOG}],{_LIST}
again: mov ebp,[{LOG}]; mov eax,[ebp]; mov ebx,[ebp+4]; mov ecx,[ebp+8]; mov edx,[ebp+12]; mov esi,[ebp+16]; mov edi,[ebp+20]; mov ebp,[ebp+24]
add dword ptr [{LOG}],32; mov [{DATA}],ebp; int 0x82
cmp dword ptr [{LOG}],{_LIST + 32 * _CALLS}; jb again; mov dword ptr [{LOG}],{_LIST}; jmp again
""".strip().replace("\n", "; ")
_ENDS = (End.SHUTDOWN, End.RESET, End.DIED, End.UNSUPPORTED, End.TIMEOUT, End.REPORTED)


def _memory(vm: Vm) -> bytes:
    """A hash of all that a VM which does not run has in memory."""
    whole = hashlib.sha256()
    for mfn in [*vm.memory.frames, domain_of(vm).shared.mfn]:
        whole.update(vm.machine.memory[mfn * FRAME : (mfn + 1) * FRAME])
    return whole.digest()


def wild_guest(seed: int, seconds: float = 0.3) -> tuple[str, int]:
    """A guest that makes random hypercalls itself, beside one that must not notice; returns why it ended, and how many it made."""
    chance = random.Random(seed)
    machine = Machine(2 * MEMORY_MIB * MIB + 16 * MIB, 8 * MIB)
    neighbour = pv_vm({CODE: "nop"}, machine=machine)
    case = Case(_GUEST, machine)
    words = []
    for _ in range(_CALLS):
        number = chance.choice(MEMORY_NUMBERS if chance.random() < 0.7 else NUMBERS)
        words += [number, *(case.any(chance.randint(0, LARGEST)) & 0xFFFFFFFF for _ in range(7))]
    case.domain.mmu.write(_LIST, struct.pack(f"<{len(words)}I", *words))
    before, begun = _memory(neighbour), time.monotonic()
    stop = case.vm.run(seconds)
    assert stop.why in _ENDS and stop.reason in death_report(case.vm, stop)
    assert time.monotonic() - begun < seconds + 20, "it held the machine up"
    assert _memory(neighbour) == before
    case.check()
    return stop.reason, case.vm.stats.hypercalls.total()


def main() -> int:
    """Sequences and guests from a seed on, until the time is over or one fails: then its seed is printed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    end, seed = time.monotonic() + 60 * options.minutes, options.seed
    while time.monotonic() < end:
        try:
            sequence(seed)
            wild_guest(seed)
        except BaseException:
            print(f"seed {seed} fails", file=sys.stderr)
            raise
        seed += 1
    print(f"{seed - options.seed} domains, seeds {options.seed} to {seed - 1}: nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
