"""Direct paging: types and counts of frames against a plain definition, under random requests and by single violations."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.machine import FRAME, MIB, Machine
from vmm.mmu.direct import VMM_SLOT, DirectMmu
from vmm.mmu.frames import Errno, Frames, Kind, Refused
from vmm.mmu.host import HostSpace

P, W, U = 1, 2, 4
_PAGES = 12  # frames of the guest; the one behind them is another's
_ADDRESS = (1 << 63) - 1


@cache
def _machine() -> tuple[Machine, HostSpace]:
    machine = Machine(4 * MIB, 1 * MIB)
    return machine, HostSpace(machine)


class Guest:
    """Frames and paging of a guest of a few pages, whose memory is all zeros; pages are told by their index."""

    def __init__(self, chunk: int = 0) -> None:
        """chunk: so many frames more, of which 512 make a chunk."""
        machine, host = _machine()
        self.machine = machine
        self.mfns = machine.allocate(_PAGES + 1)
        for mfn in self.mfns:
            machine.clear(mfn)
        self.frames = Frames(machine)
        self.frames.adopt(self.mfns[:_PAGES])
        self.chunk = machine.allocate(chunk)
        self.frames.adopt(self.chunk)
        self.roots = machine.allocate(1)
        self.mmu = DirectMmu(machine, self.frames, host, self.roots)

    def entry(self, page: int, flags: int) -> int:
        return self.mfns[page] << 12 | flags

    def set(self, page: int, index: int, entry: int) -> None:
        """Writes a table's entry as the guest does before it is a table."""
        self.machine.quads[self.mfns[page] * 512 + index] = entry

    def get(self, page: int, index: int) -> int:
        value: int = self.machine.quads[self.mfns[page] * 512 + index]
        return value

    def update(self, page: int, index: int, entry: int) -> None:
        self.mmu.update(self.mfns[page] * FRAME + 8 * index, entry)

    def close(self) -> None:
        self.machine.release([*self.mfns, *self.chunk, *self.roots])
        self.mmu.close()


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest()
    yield made
    made.close()


def refused(error: int, do: Callable[[], object]) -> None:
    """Expects that what `do` asks for is refused with `error`."""
    with pytest.raises(Refused) as caught:
        do()
    assert caught.value.error == error


# -- single violations -----------------------------------------------------------------------------------------------------------------


def test_a_foreign_frame_is_never_mapped(guest: Guest) -> None:
    """Not by a pin, not by an update; nor one that does not exist."""
    for foreign in (guest.entry(_PAGES, P), 0xFFFFF << 12 | P, 0x7FFFFFFFF << 12 | P, 1 << 52 | guest.entry(1, P)):
        guest.set(0, 5, foreign)
        refused(Errno.PERM, lambda: guest.mmu.pin(guest.mfns[0], Kind.LEAF))
        guest.set(0, 5, 0)
        guest.mmu.pin(guest.mfns[0], Kind.LEAF)
        refused(Errno.PERM, lambda entry=foreign: guest.update(0, 5, entry))  # type: ignore[misc]
        guest.mmu.unpin(guest.mfns[0])
    assert not any(guest.frames.typed) and not any(guest.frames.untyped)
    assert not any(guest.frames.typed)


def test_a_page_table_is_never_writable(guest: Guest) -> None:
    """A table cannot map itself or another table writable; a page with a writable mapping cannot become a table."""
    guest.mmu.pin(guest.mfns[0], Kind.LEAF)
    guest.mmu.pin(guest.mfns[1], Kind.LEAF)
    refused(Errno.BUSY, lambda: guest.update(0, 0, guest.entry(0, P | W)))
    refused(Errno.BUSY, lambda: guest.update(0, 0, guest.entry(1, P | W)))
    guest.update(0, 0, guest.entry(1, P))
    refused(Errno.BUSY, lambda: guest.update(0, 0, guest.entry(1, P | W)))
    guest.update(0, 1, guest.entry(2, P | W))
    for kind in (Kind.LEAF, Kind.DIRECTORY, Kind.TOP):
        refused(Errno.BUSY, lambda kind=kind: guest.mmu.pin(guest.mfns[2], kind))  # type: ignore[misc]
    guest.update(0, 1, guest.entry(2, P))
    guest.mmu.pin(guest.mfns[2], Kind.LEAF)


def test_a_table_that_maps_itself_writable_is_none(guest: Guest) -> None:
    """The check of a new table counts the table itself."""
    guest.set(0, 3, guest.entry(0, P | W))
    refused(Errno.BUSY, lambda: guest.mmu.pin(guest.mfns[0], Kind.LEAF))
    assert not any(guest.frames.typed) and not any(guest.frames.untyped)


def test_levels_do_not_mix(guest: Guest) -> None:
    """A table of one level is no table of another, and a directory of the last GiB is for the last GiB."""
    guest.mmu.pin(guest.mfns[0], Kind.LEAF)
    refused(Errno.BUSY, lambda: guest.mmu.hold(guest.mfns[0], Kind.DIRECTORY))
    guest.set(1, 0, guest.entry(2, P))
    guest.set(3, 0, guest.entry(1, P))
    guest.set(3, 3, guest.entry(1, P))
    refused(Errno.BUSY, lambda: guest.mmu.pin(guest.mfns[3], Kind.TOP))
    guest.set(3, 3, 0)
    guest.mmu.pin(guest.mfns[3], Kind.TOP)


@pytest.mark.parametrize("flag", (8, 16, 128, 256))
def test_forbidden_flags(guest: Guest, flag: int) -> None:
    """Cache attributes, large pages and global ones are refused with -EINVAL, at every level."""
    for kind in (Kind.LEAF, Kind.DIRECTORY, Kind.TOP):
        guest.set(0, 0, guest.entry(1, P | flag))
        refused(Errno.INVAL, lambda kind=kind: guest.mmu.pin(guest.mfns[0], kind))  # type: ignore[misc]
    guest.set(0, 0, 0)
    guest.mmu.pin(guest.mfns[0], Kind.LEAF)
    refused(Errno.INVAL, lambda: guest.update(0, 0, guest.entry(1, P | flag)))


def test_pins_balance(guest: Guest) -> None:
    """A second pin, an unpin without a pin, and an unpin of a table in use."""
    refused(Errno.INVAL, lambda: guest.mmu.unpin(guest.mfns[0]))
    guest.mmu.pin(guest.mfns[0], Kind.TOP)
    refused(Errno.INVAL, lambda: guest.mmu.pin(guest.mfns[0], Kind.TOP))
    guest.mmu.use(guest.mfns[0])
    guest.mmu.unpin(guest.mfns[0])
    refused(Errno.BUSY, lambda: guest.mmu.pin(guest.mfns[0], Kind.LEAF))
    guest.mmu.use(guest.mfns[1])
    guest.mmu.pin(guest.mfns[0], Kind.LEAF)


def test_the_vmms_entries_stay(guest: Guest) -> None:
    """The last directory has the VMM's entries, whatever stood there; they cannot be written."""
    guest.set(0, VMM_SLOT, guest.entry(_PAGES, P))
    guest.set(1, 3, guest.entry(0, P))
    guest.mmu.use(guest.mfns[1])
    assert guest.get(0, VMM_SLOT) >> 12 not in guest.mfns
    for index in (VMM_SLOT, 511):
        refused(Errno.PERM, lambda index=index: guest.update(0, index, 0))  # type: ignore[misc]
    guest.mmu.use(guest.mfns[2])
    assert not guest.get(0, VMM_SLOT)


def test_a_frame_given_up_is_free_with_its_last_reference(guest: Guest) -> None:
    """It cannot be mapped anew, and comes back only when nothing maps it."""
    guest.mmu.pin(guest.mfns[0], Kind.LEAF)
    guest.update(0, 0, guest.entry(1, P | W))
    guest.frames.give_up(guest.mfns[1])
    assert guest.frames.grow() is None
    refused(Errno.PERM, lambda: guest.update(0, 1, guest.entry(1, P)))
    refused(Errno.PERM, lambda: guest.frames.give_up(guest.mfns[1]))
    guest.update(0, 0, 0)
    assert guest.frames.grow() == guest.mfns[1]
    guest.update(0, 1, guest.entry(1, P))


def test_writable_pages_are_not_executable_until_they_are_executed(guest: Guest) -> None:
    """The VMM's bit 63: on a writable page, gone from all its mappings with the first fetch, never where code might stand already."""
    guest.set(0, 1, guest.entry(1, P | W))
    guest.set(2, 0, guest.entry(0, P | W))
    guest.set(3, 0, guest.entry(2, P))
    guest.mmu.use(guest.mfns[3])
    guest.update(0, 2, guest.entry(1, P | W))
    guest.update(0, 3, guest.entry(1, P))
    assert [guest.get(0, n) >> 63 for n in (1, 2, 3)] == [1, 1, 1]
    assert guest.mmu.executed(0x2000)
    assert [guest.get(0, n) >> 63 for n in (1, 2, 3)] == [0, 0, 0]
    assert not guest.mmu.executed(0x2000)
    guest.update(0, 4, guest.entry(4, P))
    guest.update(0, 5, guest.entry(4, P | W))
    assert [guest.get(0, n) >> 63 for n in (4, 5)] == [0, 0]


# -- the plain definition ----------------------------------------------------------------------------------------------------------------


def counted(guest: Guest) -> tuple[Counter[int], Counter[int]]:
    """References and typed references of every frame, by looking at all that is in use."""
    refs: Counter[int] = Counter()
    typed: Counter[int] = Counter()
    looked: set[int] = set()

    def use(mfn: int, kind: int) -> None:
        refs[mfn] += 1
        typed[mfn] += 1
        if mfn in looked:
            return
        looked.add(mfn)
        count = {Kind.LEAF: 512, Kind.DIRECTORY: 512, Kind.LAST_DIRECTORY: VMM_SLOT, Kind.TOP: 4}[kind]
        for index in range(count):
            entry = guest.machine.quads[mfn * 512 + index]
            below = (entry & _ADDRESS) >> 12
            if not entry & P:
                continue
            if kind == Kind.LEAF:
                refs[below] += 1
                typed[below] += bool(entry & W)
            elif kind == Kind.TOP:
                use(below, Kind.LAST_DIRECTORY if index == 3 else Kind.DIRECTORY)
            else:
                use(below, Kind.LEAF)

    for mfn in guest.frames.pinned:
        use(mfn, guest.frames.kind[mfn])
    if guest.mmu.base >= 0:
        use(guest.mmu.base, Kind.TOP)
    return refs, typed


def check_code(guest: Guest, leaf: int) -> None:
    """Of a frame without code nothing can be executed unseen; of one with code every store is seen."""
    frames = guest.frames
    for entry in guest.machine.quads[leaf * 512 : leaf * 512 + 512].tolist():
        frame = (entry & _ADDRESS) >> 12
        if entry & P:
            assert frames.coded[frame] or entry >> 63, hex(entry)
            assert not frames.coded[frame] or not entry & W or not entry >> 63, hex(entry)
            assert not frames.coded[frame] or not frames.plain[frame]


def check(guest: Guest) -> None:
    """Counts are what the definition says, and no frame is both a table and writable."""
    refs, typed = counted(guest)
    frames = guest.frames
    for mfn in [*guest.mfns, *guest.chunk]:
        whole = frames.whole[frames.chunk[mfn]] if frames.chunk[mfn] >= 0 else 0
        assert (frames.untyped[mfn] + frames.typed[mfn] + whole, frames.typed[mfn] + whole) == (refs[mfn], typed[mfn])
    for leaf in frames.pinned | guest.mmu.leaves.tables:
        assert frames.typed[leaf] > 0
    for leaf in guest.mmu.leaves.tables:
        check_code(guest, leaf)
        for entry in guest.machine.quads[leaf * 512 : leaf * 512 + 512].tolist():
            if entry & P:
                assert (entry & _ADDRESS) >> 12 in {*guest.mfns[:_PAGES], *guest.chunk}
                assert not entry & W or frames.kind[(entry & _ADDRESS) >> 12] == Kind.WRITABLE or not frames.typed[(entry & _ADDRESS) >> 12]


_page = st.integers(0, _PAGES)
_index = st.sampled_from((0, 1, 2, 3, 4, VMM_SLOT, 511))
_flags = st.sampled_from((0, P, P | W, P | W | U, P | 0x60, P | 128))
_requests = st.one_of(
    st.tuples(st.just("pin"), _page, st.sampled_from((Kind.LEAF, Kind.DIRECTORY, Kind.TOP)), st.just(0)),
    st.tuples(st.just("unpin"), _page, st.just(0), st.just(0)),
    st.tuples(st.just("use"), _page, st.just(0), st.just(0)),
    st.tuples(st.just("give up"), _page, st.just(0), st.just(0)),
    st.tuples(st.just("update"), _page, _index, st.tuples(_page, _flags)),
    st.tuples(st.just("update"), _page, _index, st.tuples(_page, _flags)),
    st.tuples(st.just("batch"), _page, _index, st.lists(st.tuples(_page, _flags), min_size=1, max_size=4)),
    st.tuples(st.just("fetch"), _index, st.just(0), st.just(0)),
)


def batch(guest: Guest, page: int, index: int, entries: list[tuple[int, int]]) -> None:
    """Updates of entries one behind the other, as a batch of hypercalls does them: first by the quick way, the rest one by one."""
    address = guest.mfns[page] * FRAME + 8 * index
    requests = [(address + 8 * n, guest.entry(*entry)) for n, entry in enumerate(entries)]
    done = guest.mmu.update_leaves(b"".join(struct.pack("<2Q", *request) for request in requests))
    check(guest)
    for request in requests[done:]:
        guest.mmu.update(*request)


@settings(max_examples=300, deadline=None)
@given(st.lists(_requests, max_size=60), st.lists(st.tuples(_page, _index, st.tuples(_page, _flags)), max_size=20))
def test_counts_under_random_requests(requests: list[tuple[str, int, int, object]], stores: list[tuple[int, int, tuple[int, int]]]) -> None:
    """After every request, refused or not, the counts are the definition's; with everything undone all of them are 0."""
    guest = Guest()
    try:
        _drive(guest, requests, stores)
    finally:
        guest.close()


def _drive(guest: Guest, requests: list[tuple[str, int, int, object]], stores: list[tuple[int, int, tuple[int, int]]]) -> None:
    for page, index, (target, flags) in stores:
        guest.set(page, index, guest.entry(target, flags))
    for what, page, index, more in requests:
        try:
            match what:
                case "pin":
                    guest.mmu.pin(guest.mfns[page], index)
                case "unpin":
                    guest.mmu.unpin(guest.mfns[page])
                case "use":
                    guest.mmu.use(guest.mfns[page])
                case "give up":
                    if guest.mfns[page] in guest.frames.pinned:
                        guest.mmu.unpin(guest.mfns[page])
                    guest.frames.give_up(guest.mfns[page])
                case "batch":
                    assert isinstance(more, list)
                    batch(guest, page, index, more)
                case "fetch":
                    guest.mmu.executed(page << 12)
                case _:
                    assert isinstance(more, tuple)
                    guest.update(page, index, guest.entry(*more))
        except Refused:
            pass
        check(guest)
    for mfn in list(guest.frames.pinned):
        guest.mmu.unpin(mfn)
    if guest.mmu.base >= 0:
        guest.mmu.release(guest.mmu.base)
    assert not any(guest.frames.typed) and not any(guest.frames.untyped)
    assert not any(guest.frames.typed)


_chunk_requests = st.one_of(
    st.tuples(st.sampled_from(("pin", "unpin", "use")), st.integers(0, 5), st.just(0), st.just(0)),
    st.tuples(st.just("map"), st.integers(0, 4), st.integers(0, 511), st.tuples(st.integers(0, 511), st.sampled_from((0, P, P | W)))),
    st.tuples(st.sampled_from(("pin frame", "unpin frame", "give up", "fetch")), st.integers(0, 511), st.just(0), st.just(0)),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(_chunk_requests, max_size=30), st.sampled_from((P | W, P | W | 0x60, P | W | U | 0x20)), st.lists(st.integers(0, 511), max_size=2))
def test_chunks_are_counted_as_their_frames_would_be(
    requests: list[tuple[str, int, int, object]], flags: int, read_only: list[int]
) -> None:
    """Tables that map 512 frames in their order: the first four do, but for some entries of the fourth; the fifth maps nothing, the sixth is
    a top-level table above them. Whatever happens to one frame or entry, the counts are those of the plain definition."""
    guest = Guest(512)
    try:
        for table in range(4):
            for n, mfn in enumerate(guest.chunk):
                guest.set(table, n, mfn << 12 | (P if table == 3 and n in read_only else flags))
        for n in range(5):
            guest.set(6, n, guest.entry(n, P))
        guest.set(5, 0, guest.entry(6, P))
        for request in requests:
            try:
                _chunk_request(guest, *request)
            except Refused:
                pass
            check(guest)
    finally:
        for mfn in list(guest.frames.pinned):
            guest.mmu.unpin(mfn)
        if guest.mmu.base >= 0:
            guest.mmu.release(guest.mmu.base)
        left = any(guest.frames.untyped) or any(guest.frames.typed) or any(guest.frames.whole)
        guest.close()
    assert not left


def _chunk_request(guest: Guest, what: str, number: int, index: int, more: object) -> None:
    mmu, frames = guest.mmu, guest.frames
    match what:
        case "pin":
            mmu.pin(guest.mfns[number], Kind.TOP if number == 5 else Kind.LEAF)
        case "unpin":
            mmu.unpin(guest.mfns[number])
        case "use":
            mmu.use(guest.mfns[5])
        case "map":
            assert isinstance(more, tuple)
            guest.update(number, index, guest.chunk[more[0]] << 12 | more[1])
        case "pin frame":
            mmu.pin(guest.chunk[number], Kind.LEAF)
        case "unpin frame":
            mmu.unpin(guest.chunk[number])
        case "give up":
            frames.give_up(guest.chunk[number])
        case _:
            mmu.executed(number << 12)


def test_a_chunk_is_counted_at_once() -> None:
    """A table of a chunk's frames in their order takes no look at each of them; one in another order does, and breaks nothing."""
    guest = Guest(512)
    for n, mfn in enumerate(guest.chunk):
        guest.set(0, n, mfn << 12 | P | W)
        guest.set(1, n, guest.chunk[511 - n] << 12 | P | W)
    guest.mmu.pin(guest.mfns[0], Kind.LEAF)
    guest.mmu.pin(guest.mfns[1], Kind.LEAF)
    assert guest.frames.whole == [1]
    assert all(guest.get(0, n) >> 63 for n in range(512))
    assert [guest.frames.typed[mfn] for mfn in guest.chunk] == [1] * 512
    refused(Errno.BUSY, lambda: guest.mmu.pin(guest.chunk[7], Kind.LEAF))
    assert [guest.frames.typed[mfn] for mfn in guest.chunk] == [2] * 512
    guest.close()
