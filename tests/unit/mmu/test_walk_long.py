"""The walk of four-level tables against a plain one written from the manual (SDM 3A 4.5 "4-Level Paging")."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.mmu.plain_machine import PlainMachine
from tests.unit.mmu.reference import NX, PS, Absent, Found, P, Paging, Read, U, W, access, marked
from vmm.faults import GuestFault, GuestPageFault
from vmm.machine import FRAME
from vmm.memory import GuestMemory
from vmm.mmu.walk import GuestPaging

FRAMES = 16
_INDICES = (0, 1, 256, 511)
_BITS = st.integers(0, 0xFFF).map(lambda bits: bits | 1 if bits & 0x600 else bits)  # P is set most of the time


@st.composite
def entries(draw: st.DrawFn) -> int:
    """An entry: a frame inside RAM or just outside, any low bits, and now and then a reserved, an ignored or the NX bit."""
    high = draw(st.sampled_from((0, 0, 0, 0, 0, 0, NX, NX, 1 << 36, 1 << 51, 1 << 52, 1 << 62, 1 << 13, 1 << 20, 1 << 29)))
    return draw(st.integers(1, 5) | st.integers(0, FRAMES)) << 12 | draw(_BITS) | high


def translate(read: Read, paging: Paging, gva: int) -> Found | Absent:
    """What the tables say of `gva`, whoever asks."""
    table, found = paging.cr3 & 0xFFFFFF000, []
    for level in (4, 3, 2, 1):
        at = table + 8 * (gva >> 12 + 9 * (level - 1) & 511)
        entry = read(at, 8)
        found.append((at, entry))
        if not entry & P:
            return Absent(0)
        leaf = level == 1 or bool(entry & PS) and level < 4
        reserved = [*range(36, 52), *(() if paging.no_execute else (63,))]
        if level == 4:
            reserved.append(7)
        if leaf and level > 1:
            reserved += range(13, 12 + 9 * (level - 1))
        if any(entry >> bit & 1 for bit in reserved):
            return Absent(1 | 8)
        if leaf:
            break
        table = entry & 0xFFFFFF000
    size = 1 << 12 + 9 * (level - 1)
    values = [value for _, value in found]
    return Found(
        (entry & 0xFFFFFF000) // size * size + gva % size,
        all(value & U for value in values),
        all(value & W for value in values),
        not any(value & NX for value in values),
        bool(entry & 0x40),
        tuple(found),
    )


def guest(paging: Paging, contents: dict[int, int]) -> tuple[GuestMemory, GuestPaging]:
    """Memory with these contents and long mode's paging over it."""
    memory = GuestMemory(PlainMachine(FRAMES + 8, run=2).machine(), FRAMES * FRAME)
    for at, value in contents.items():
        memory.write(at, value.to_bytes(8, "little"))
    walk = GuestPaging(memory)
    assert walk.load(0x80000001 | paging.write_protect << 16, paging.cr3, 0x20, 0x100 | 0x800 * paging.no_execute)
    return memory, walk


@settings(max_examples=400)
@given(
    st.dictionaries(st.sampled_from([gfn << 12 | 8 * index for gfn in range(1, 6) for index in _INDICES]), entries(), min_size=20),
    st.tuples(*[st.sampled_from(_INDICES)] * 4), st.integers(0, 0xFFF), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
def test_a_walk_is_what_the_manual_says(
    contents: dict[int, int], indices: tuple[int, int, int, int], offset: int, wp: bool, nxe: bool, write: bool, user: bool, fetch: bool
) -> None:
    """The address, rights and D bit that come out, or the error code; and memory changes by A and D alone, only when allowed."""
    gva = indices[0] << 39 | indices[1] << 30 | indices[2] << 21 | indices[3] << 12 | offset
    gva |= 0xFFFF_0000_0000_0000 if indices[0] >= 256 else 0
    paging, write = Paging(0x1000, True, True, wp, nxe), write and not fetch
    memory, walk = guest(paging, contents)
    before = memory.read(0, memory.size)

    def read(gpa: int, size: int) -> int:
        return int.from_bytes(before[gpa : gpa + size], "little") if gpa + size <= len(before) else (1 << 8 * size) - 1

    found = translate(read, paging, gva)
    code = access(found, paging, write, user, fetch)
    expected = bytearray(before)
    if code is not None:
        with pytest.raises(GuestPageFault) as raised:
            walk.walk(gva, write, user, fetch)
        assert (raised.value.gva, raised.value.code) == (gva, code)
    else:
        assert isinstance(found, Found)
        mapping = walk.walk(gva, write, user, fetch)
        assert (mapping.gpa, mapping.user, mapping.writable, mapping.dirty) == (found.gpa, found.user, found.writable, found.dirty or write)
        assert mapping.executable == found.executable
        for at, value in marked(found, write).items():
            if at < len(expected):
                expected[at : at + 8] = value.to_bytes(8, "little")
    assert memory.read(0, memory.size) == bytes(expected)


_EDGES = ((0x7FFF_FFFF_FFFF, True), (1 << 47, False), (0xFFFF_7FFF_FFFF_FFFF, False), (0xFFFF_8000_0000_0000, True))


@pytest.mark.parametrize(("gva", "canonical"), _EDGES)
def test_addresses_that_are_not_canonical(gva: int, canonical: bool) -> None:
    """They are #GP(0) before any table is looked at; the others find none here."""
    _, walk = guest(Paging(0x1000, True), {})
    with pytest.raises(GuestFault) as raised:
        walk.walk(gva)
    assert raised.value.vector == (14 if canonical else 13)
