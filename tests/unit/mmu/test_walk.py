"""The walk of the guest's tables against a plain one written from the manual: results, error codes, and accessed and dirty bits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.mmu.plain_machine import PlainMachine
from tests.unit.mmu.reference import Absent, Found, Paging, access, marked, translate
from vmm.faults import GuestPageFault
from vmm.machine import FRAME
from vmm.memory import GuestMemory
from vmm.mmu.walk import GuestPaging

FRAMES = 16
_POINTERS = 0x7000  # where the four PDPTEs stand
_BITS = st.integers(0, 0xFFF).map(lambda bits: bits | 1 if bits & 0x600 else bits)  # P is set most of the time
_INDICES_32, _INDICES_PAE = (0, 1, 512, 1023), (0, 1, 256, 511)


def entries_32() -> st.SearchStrategy[int]:
    """32-bit entries: a frame inside RAM or just outside, any low bits, now and then any high ones."""
    near = st.builds(lambda gfn, bits: gfn << 12 | bits, st.integers(1, 5) | st.integers(0, FRAMES), _BITS)
    return near | st.builds(lambda gfn, bits: gfn << 22 | bits, st.integers(0, 3), _BITS) | st.integers(0, 0xFFFFFFFF)


def entries_pae() -> st.SearchStrategy[int]:
    """PAE entries: the same, with NX and a reserved bit now and then."""
    high = st.sampled_from((0, 0, 0, 0, 1 << 63, 1 << 63, 1 << 36, 1 << 62, 1 << 13, 1 << 20))
    return st.builds(lambda low, bit: low | bit, entries_32(), high)


@st.composite
def states(draw: st.DrawFn) -> tuple[Paging, dict[int, int]]:
    """Control registers, and what the entries hold that the walks of these tests can reach (gpa to value)."""
    pae = draw(st.booleans())
    size, indices, entries = (8, _INDICES_PAE, entries_pae()) if pae else (4, _INDICES_32, entries_32())
    contents = {gfn << 12 | index * size: draw(entries) for gfn in range(1, 6) for index in indices}
    pdptes = tuple(draw(st.sampled_from((0, 1 << 12 | 1, 2 << 12 | 1, 3 << 12 | 1))) for _ in range(4)) if pae else (0, 0, 0, 0)
    bools = st.booleans()
    paging = Paging(_POINTERS if pae else 0x1000, pae, draw(bools), draw(bools), draw(bools) if pae else False, pdptes)
    return paging, contents


@st.composite
def addresses(draw: st.DrawFn) -> int:
    """Linear addresses whose indices are among those with contents, in either format."""
    directory, table = draw(st.sampled_from((0, 1, 2, 512, 1023))), draw(st.sampled_from((0, 1, 256, 511, 512, 1023)))
    return directory << 22 | table << 12 | draw(st.integers(0, 0xFFF))


def guest(paging: Paging, contents: dict[int, int]) -> tuple[GuestMemory, GuestPaging]:
    """Memory with these contents and the paging state over it."""
    plain = PlainMachine(FRAMES + 8, run=2)
    memory = GuestMemory(plain.machine(), FRAMES * FRAME)
    for at, value in contents.items():
        memory.write(at, value.to_bytes(8 if paging.pae else 4, "little"))
    for n, pdpte in enumerate(paging.pdptes if paging.pae else ()):
        memory.write(paging.cr3 + 8 * n, pdpte.to_bytes(8, "little"))
    walk = GuestPaging(memory)
    cr0, cr4 = 0x80000001 | paging.write_protect << 16, paging.pse << 4 | paging.pae << 5
    assert walk.load(cr0, paging.cr3, cr4, 0x800 * paging.no_execute)
    return memory, walk




@settings(max_examples=300)
@given(states(), addresses(), st.booleans(), st.booleans(), st.booleans())
def test_a_walk_is_what_the_manual_says(state: tuple[Paging, dict[int, int]], gva: int, write: bool, user: bool, fetch: bool) -> None:
    """The address, rights and D bit that come out, or the error code; and memory changes by A and D alone, only when allowed."""
    paging, contents = state
    write = write and not fetch
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
        assert mapping.executable == found.executable or not paging.pae
        for at, value in marked(found, write).items():
            if at < len(expected):
                expected[at : at + (8 if paging.pae else 4)] = value.to_bytes(8 if paging.pae else 4, "little")
    assert memory.read(0, memory.size) == bytes(expected)


@pytest.mark.parametrize("bit", (1, 2, 5, 6, 7, 8, 36, 62, 63))
def test_reserved_bits_of_a_pdpte_refuse_the_load(bit: int) -> None:
    """MOV CR3 with such an entry is a #GP: `load` says so and changes nothing; the bit in an entry that is not present is nobody's."""
    memory, walk = guest(Paging(_POINTERS, True, pdptes=(1 << 12 | 1, 0, 0, 0)), {})
    memory.write(0x2000, (3 << 12 | 1 | 1 << bit).to_bytes(8, "little"))
    before = list(walk.pdptes), walk.cr3
    assert not walk.load(0x80000001, 0x2000, 0x20, 0x800, reload_pdptes=True)
    assert (walk.pdptes, walk.cr3) == before
    memory.write(0x2000, (3 << 12 | 1 << bit).to_bytes(8, "little"))
    assert walk.load(0x80000001, 0x2000, 0x20, 0x800, reload_pdptes=True)


def test_pdptes_are_latched() -> None:
    """A change of a PDPTE in memory counts from the next load of CR3."""
    memory, walk = guest(Paging(0x1000, True, pdptes=(0x2001, 0, 0, 0)), {0x2000: 0x3067, 0x3000: 0x4067})
    memory.write(0x1000, bytes(8))
    assert walk.walk(5).gpa == 0x4005
    assert walk.load(0x80000001, 0x1000, 0x20, 0, reload_pdptes=True)
    with pytest.raises(GuestPageFault):
        walk.walk(5)


def test_without_paging_linear_is_physical() -> None:
    """All rights, no tables."""
    memory, walk = guest(Paging(0, False), {})
    walk.load(1, 0, 0, 0)
    mapping = walk.walk(0xFFFF1234, True, True, True)
    assert (mapping.gpa, mapping.writable, mapping.executable) == (0xFFFF1234, True, True)


def test_tables_outside_ram_read_as_ones() -> None:
    """An all-ones entry: reserved bits under PAE and in a 4 MiB page, else a page at the top of the address space."""
    assert isinstance(translate(lambda gpa, size: (1 << 8 * size) - 1, Paging(0x100000, False), 0), Absent)
    _, walk = guest(Paging(0x100000, False), {})
    with pytest.raises(GuestPageFault) as raised:
        walk.walk(0)
    assert raised.value.code == 9
    _, walk = guest(Paging(0x100000, False, pse=False), {})
    assert walk.walk(0x123).gpa == 0xFFFFF123
