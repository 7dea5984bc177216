"""Random hypercalls: any number with any arguments, at a domain whose memory holds what such arguments point at. Counts stay those of the
definition, frames of others stay as they are, and nothing is raised that is not the guest's end."""

from __future__ import annotations

import struct
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.machine.pv import BASE, CODE, DATA, LOG, STACK, TABLE, domain_of, pv_vm
from tests.machine.test_pv_frames import counted
from vmm.exits import Stopped
from vmm.machine import FRAME
from vmm.mmu.frames import Kind
from vmm.xen.batches import Preempted
from vmm.xen.domain import XenDomain
from vmm.xen.hypercalls import HYPERCALLS, call

_NUMBERS = st.one_of(st.sampled_from([number for number in HYPERCALLS if number != 23]), st.integers(0, 60))
_MEMORY_CALLS = st.sampled_from((1, 1, 1, 2, 10, 12, 14, 14, 26, 26, 26, 13))
_PLACES = (DATA, DATA + 16, TABLE, LOG, STACK - 0x100, BASE + 0x3FFFF8)
_WILD = (0, 1, 2, 3, 0xF5800000, 0xFFFFFFFF, 0x7FFFFFF8, 0xDFFFFFFF, 0x7FF0, 512, 4096)
_PICKED = st.tuples(st.sampled_from(("place", "wild", "frame", "small", "entry", "address")), st.integers(0, 4095))
_REQUESTS = (0, 0, 1, 2, 4, 4, 5, 13)  # of mmuext_op: pins, unpin, base pointer, LDT
_MAPPED = (BASE + 0x180000, BASE + 0x200000, DATA, BASE + 0x3FF000)
_FLAGS = (0, 1, 3, 7, 0x63, 0x61, 0x83, 0x8000000000000003)


def to_its_end(domain: XenDomain, number: int, words: list[int]) -> int:
    """The result of a hypercall, which may have to be asked for again and again."""
    while True:
        try:
            return call(domain, number, *words)
        except Preempted as preempted:
            for argument, value in preempted.arguments.items():
                words[argument] = value


class Case:
    """A domain, frames that are not its own, and arguments made of numbers: the frames that matter are its first pages, tables and the others'."""

    def __init__(self) -> None:
        self.vm = pv_vm({CODE: "nop"})
        self.domain: XenDomain = domain_of(self.vm)
        self.others = self.vm.machine.allocate(3)
        for n, mfn in enumerate(self.others):
            self.vm.machine.memory[mfn * FRAME : (mfn + 1) * FRAME] = bytes([n + 1]) * FRAME
        start = self.vm.start
        assert start is not None and start.domain is not None
        frames = self.vm.memory.frames
        tables = [frames[page] for page in start.domain.tables]
        self.frames = [*tables, *frames[:4], *self.domain.rings, *frames[600:604], *frames[1024:1028], *self.others, 1 << 23]

    def number(self, picked: tuple[str, int]) -> int:
        """A 64-bit value for an argument, or for memory that one points at."""
        kind, n = picked
        frame = self.frames[n % len(self.frames)]
        match kind:
            case "place":
                return _PLACES[n % len(_PLACES)]
            case "wild":
                return _WILD[n % len(_WILD)]
            case "frame":
                return frame
            case "entry":
                return frame << 12 | _FLAGS[n // len(self.frames) % len(_FLAGS)]
            case "address":
                return frame << 12 | n // 7 % 512 * 8 | n % 3
            case _:
                return n % 16

    def fill(self, values: list[int]) -> None:
        """Writes 64-bit words at DATA, and their lower halves as 32-bit words at TABLE, while these are plain memory."""
        for at, form, mask in ((DATA, "Q", (1 << 64) - 1), (TABLE, "I", 0xFFFFFFFF)):
            mfn = self.vm.memory.frames[at - BASE >> 12]
            if self.domain.frames.kind[mfn] <= Kind.WRITABLE:
                data = struct.pack(f"<{len(values)}{form}", *(value & mask for value in values))
                self.vm.machine.memory[mfn * FRAME : mfn * FRAME + len(data)] = data

    def check(self) -> None:
        """All counts by looking at all that is in use; frames of others untouched."""
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
            assert bytes(self.vm.machine.memory[mfn * FRAME : (mfn + 1) * FRAME]) == bytes([n + 1]) * FRAME


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.one_of(_NUMBERS, _MEMORY_CALLS), st.lists(_PICKED, min_size=5, max_size=5), st.lists(_PICKED, min_size=8, max_size=8)),
        max_size=25,
    )
)
def test_random_hypercalls(calls: list[tuple[int, list[tuple[str, int]], list[tuple[str, int]]]]) -> None:
    """Before each call the places that arguments point at get other contents; calls about page tables get such as may succeed."""
    case = Case()
    for number, arguments, contents in calls:
        words = [case.number(picked) & 0xFFFFFFFF for picked in arguments]
        numbers = [n for _, n in contents]
        if number == 1:  # addresses of entries, and entries, at a place where the call looks for them
            values = [case.number(("entry" if n % 2 else "address", picked)) for n, picked in enumerate(numbers)]
            words = [DATA, 1 + numbers[0] % 3, 0, 0x7FF0, 0]
        elif number == 26:  # two requests about tables
            requests = [(_REQUESTS[n % len(_REQUESTS)], case.number(("frame", picked)), 0) for n, picked in (numbers[:2], numbers[2:4])]
            values = list(struct.unpack("<3Q", struct.pack("<6I", *requests[0], *requests[1])))
            words = [DATA, 1 + numbers[4] % 2, 0, 0x7FF0, 0]
        elif number == 14:
            values, entry = [], case.number(("entry", numbers[0]))
            words = [_MAPPED[numbers[1] % len(_MAPPED)], entry & 0xFFFFFFFF, entry >> 32, 0, 0]
        else:
            values = [case.number(picked) for picked in contents]
        case.fill(values)
        try:
            result = to_its_end(case.domain, number, words)
        except Stopped:
            continue
        assert -200 < result
        case.check()
