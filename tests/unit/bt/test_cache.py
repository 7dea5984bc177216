"""The translation cache without a CPU: look-up, chaining, returns, invalidation and revival, overflow."""

from collections.abc import Callable

import pytest

from bt.block import Mode
from bt.cache import CacheFull, TranslationCache
from bt.discover import discover
from bt.emit import Options
from bt.window import CODE, MODES, RETURNS, RETURNS_SIZE, SLOT_LIMIT

BASE, GFN = 0xE8000000, 7
PAGE = 0x5000


class Cache:
    """A cache over plain memory, and the pages that were reported as code. The guest's code stands at PAGE in frame GFN."""

    def __init__(self, size: int = 0x10000) -> None:
        self.made: list[int] = []
        self.cache = TranslationCache(memoryview(bytearray(CODE)), memoryview(bytearray(size)), BASE, Options(), self.made.append)
        self.mode = self.cache.mode(0, 0, True)

    def install(self, eip: int, code: str, mode: Mode | None = None, gfn: int = GFN) -> int:
        raw = bytes.fromhex(code)
        block = discover(raw + b"\xf4" * 16, eip, len(raw), eip)
        return self.cache.install(block, mode or self.mode, [(gfn, eip & 0xFFF, raw)])

    def slot(self, eip: int, target: int) -> int:
        """What the slot that leads from the translation of `eip` to `target` holds."""
        translation = self.cache.owners[self.mode.index << 32 | eip]
        (slot,) = [slot for slot, (to, _) in translation.slots.items() if to == target]
        return self.cache.words[slot // 4]

    def returns_to(self, guest: int) -> list[int]:
        """The chain of guest addresses that an indirect jump to `guest` is compared with."""
        cache = self.cache
        at = cache.words[(RETURNS + self.mode.index * RETURNS_SIZE) // 4 + (guest & 0xFFFF)]
        onward = {checked: (known, slot) for chain in cache.buckets.values() for known, checked, slot, _ in chain}
        found = []
        while at != cache.miss:
            known, slot = onward[at]
            found.append(known)
            at = cache.words[slot // 4]
        return found


def test_a_translation_is_found_by_eip_and_mode() -> None:
    """Not in another mode; inside the block only when its page is named; the page is reported once."""
    held = Cache()
    address = held.install(PAGE, "40414243c3")
    other = held.cache.mode(0x1000, 0, True)
    assert held.cache.lookup(PAGE, held.mode) == address
    assert held.cache.lookup(PAGE, other) is None
    assert held.cache.lookup(PAGE + 2, held.mode) is None
    assert held.cache.lookup(PAGE + 2, held.mode, GFN) == address + 2
    assert held.cache.lookup(PAGE + 2, held.mode) == address + 2
    held.install(PAGE + 0x100, "c3")
    assert held.made == [GFN]


def test_the_map_leads_back() -> None:
    """Any address in a translation belongs to one, and to a guest instruction."""
    held = Cache()
    address = held.install(PAGE, "40fac3")
    translation = held.cache.translation_at(address + 1)
    assert translation is not None
    assert [translation.locate(address + n)[0] for n in (0, 1, 3)] == [PAGE, PAGE + 1, PAGE + 1]
    assert held.cache.translation_at(translation.end + 64) is None
    assert held.cache.translation_at(BASE) is None


def test_chaining() -> None:
    """A slot holds its trap, then its target's address by `link` or because the target was there first, then the trap again."""
    held = Cache()
    held.install(PAGE, "40e9fb0f0000")  # to PAGE + 0x1001
    trap = held.slot(PAGE, PAGE + 0x1001)
    assert held.cache.sites[trap + 2].target == PAGE + 0x1001
    target = held.install(PAGE + 0x1001, "c3", gfn=8)
    site = held.cache.sites[trap + 2]
    held.cache.link(site.slot, site.target, held.mode)
    assert held.slot(PAGE, PAGE + 0x1001) == target
    held.install(PAGE + 0x10, "e9ec0f0000")
    assert held.slot(PAGE + 0x10, PAGE + 0x1001) == target
    held.cache.invalidate(8)
    assert held.slot(PAGE, PAGE + 0x1001) == trap
    assert held.slot(PAGE + 0x10, PAGE + 0x1001) != target


def test_returns_of_equal_low_halves_are_chained() -> None:
    """The latest first; each once; the rest forgotten beyond a length; all gone with their page."""
    held = Cache()
    for n in range(12):
        held.install(PAGE + (n << 16), "e8000000 00c3".replace(" ", ""), gfn=GFN + n)
    chain = held.returns_to(PAGE + 5)
    assert chain[0] == PAGE + 5 + (11 << 16) and len(chain) == len(set(chain)) <= 8
    held.cache.link_return(chain[-1], held.mode)
    assert held.returns_to(PAGE + 5) == chain
    held.cache.invalidate(GFN + 11)
    assert held.returns_to(PAGE + 5) == chain[1:]


def test_a_place_that_nothing_returns_to_gets_an_entry() -> None:
    """`link_return` makes a checked entry for the target of an indirect jump."""
    held = Cache()
    held.install(PAGE, "40c3")
    assert held.returns_to(PAGE) == []
    held.cache.link_return(PAGE, held.mode)
    assert held.returns_to(PAGE) == [PAGE]
    held.cache.invalidate(GFN)
    held.cache.revive(PAGE, held.mode, lambda source: source)
    held.cache.link_return(PAGE, held.mode)
    assert held.returns_to(PAGE)[:1] == [PAGE]


def test_entries_are_made_once() -> None:
    """However often a translation that makes one itself comes and goes, the stub of an address stays the same."""
    held = Cache()
    held.install(PAGE, "40c3")
    for n in range(3):
        held.cache.link_return(PAGE, held.mode)
        assert held.returns_to(PAGE) == [PAGE]
        stubs = len(held.cache.translations) - n
        held.install(PAGE - 5, "e80000000040c3", gfn=GFN + 1)  # a call that comes back to PAGE
        held.cache.invalidate(GFN + 1)
        assert held.returns_to(PAGE) == [] and stubs == 3  # with that of the miss


class Napper(Cache):
    """Two pages: code of PAGE, which naps, and of a page behind it that jumps there, calls from there, and is jumped to."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = self.install(PAGE, "e800000000e9f60f0000")  # call PAGE+5; jmp PAGE+0x1000
        self.outer = self.install(PAGE + 0x1000, "e9fbefffff", gfn=8)  # jmp PAGE

    def ways_in(self) -> tuple[bool, bool, bool]:
        """Whether the page is reached by the other's jump, by a return, and by the table."""
        return (
            self.slot(PAGE + 0x1000, PAGE) == self.inner,
            PAGE + 5 in self.returns_to(PAGE + 5),
            self.cache.lookup(PAGE, self.mode) is not None,
        )


def test_a_nap_closes_all_ways_into_a_page() -> None:
    """And its end opens them again, as often as it happens; the page's own ways out stay."""
    held = Napper()
    out = held.slot(PAGE, PAGE + 0x1000)
    for _ in range(3):
        assert held.ways_in() == (True, True, True)
        held.cache.nap(GFN, PAGE >> 12)
        assert held.ways_in() == (False, False, False)
        held.cache.wake(GFN, PAGE >> 12)
        assert held.slot(PAGE, PAGE + 0x1000) == out
    assert not held.cache.invalidated


def test_what_is_linked_during_a_nap_does_not_open_the_page() -> None:
    """Neither a jump, nor a return to an address of the same low half; afterwards the return is found, and the jump can be linked."""
    held = Napper()
    held.cache.nap(GFN, PAGE >> 12)
    held.install(PAGE + 0x10000, "e800000000e9f60ffeff", gfn=9)  # call; jmp PAGE+0x1000
    held.install(PAGE + 0x2000, "e9fbdfffff", gfn=10)  # jmp PAGE
    assert held.ways_in() == (False, False, False)
    assert held.slot(PAGE + 0x2000, PAGE) != held.inner
    assert held.returns_to(PAGE + 5) == [PAGE + 0x10005]
    held.cache.wake(GFN, PAGE >> 12)
    assert held.ways_in()[1:] == (True, True)
    assert set(held.returns_to(PAGE + 5)) == {PAGE + 5, PAGE + 0x10005}
    held.cache.nap(GFN, PAGE >> 12)
    assert held.returns_to(PAGE + 5) == [PAGE + 0x10005]


def test_a_nap_ends_with_invalidation() -> None:
    """A page that is written during its nap is not woken; nor is one by another of its addresses, and one with two of them does not nap at all."""
    held = Napper()
    held.cache.nap(GFN, PAGE >> 12)
    held.cache.wake(GFN, PAGE + 0x1000 >> 12)
    assert held.ways_in() == (False, False, False)
    held.cache.invalidate(GFN)
    held.cache.wake(GFN, PAGE >> 12)
    assert held.ways_in() == (False, False, False)
    held.cache.revive(PAGE, held.mode, lambda source: source)
    assert held.ways_in()[1:] == (True, True)
    held.install(PAGE + 0x4000, "40c3")
    held.cache.nap(GFN, PAGE >> 12)
    held.cache.wake(GFN, PAGE >> 12)
    assert held.ways_in() == (False, False, False) and held.cache.lookup(PAGE + 0x4000, held.mode) is None


def test_invalidation_and_revival() -> None:
    """Nothing finds an invalidated translation; it comes back where it stood when its bytes are the same, and is protected anew."""
    held = Cache()
    address = held.install(PAGE, "40c3")
    assert held.cache.lookup(PAGE + 1, held.mode, GFN) is not None
    held.cache.invalidate(GFN)
    assert held.cache.lookup(PAGE, held.mode, GFN) is None and held.cache.lookup(PAGE + 1, held.mode, GFN) is None
    assert held.cache.revive(PAGE, held.mode, lambda source: None) is None
    assert held.cache.revive(PAGE, held.mode, lambda source: source if source == [(GFN, 0, b"\x40\xc3")] else None) == address
    assert held.cache.lookup(PAGE, held.mode) == address
    assert held.made == [GFN, GFN]
    held.cache.invalidate(99)


def test_a_block_of_two_pages_goes_with_either() -> None:
    """Its source names both."""
    held = Cache()
    block = discover(bytes.fromhex("b811223344c3") + bytes(16), PAGE + 0xFFE, 2, PAGE + 0xFFE, 1)
    for gfn in (8, GFN):
        held.cache.install(block, held.mode, [(8, 0, b"\x22\x33\x44"), (GFN, 0xFFE, b"\xb8\x11")])
        held.cache.invalidate(gfn)
        assert held.cache.lookup(PAGE + 0xFFE, held.mode) is None


def test_a_single_is_not_looked_up() -> None:
    """Nor does it make its page code; a changed instruction is translated anew."""
    held = Cache()
    first = held.cache.single(discover(b"\x40" + bytes(15), PAGE, 1, PAGE, 1), held.mode)
    assert held.cache.single(discover(b"\x40" + bytes(15), PAGE, 1, PAGE, 1), held.mode) == first
    assert held.cache.single(discover(b"\x41" + bytes(15), PAGE, 1, PAGE, 1), held.mode) != first
    assert held.cache.lookup(PAGE, held.mode) is None and held.made == []


def fill_code(held: Cache) -> None:
    for n in range(100_000):
        held.install(PAGE + n, "40c3")


def fill_modes(held: Cache) -> None:
    for n in range(MODES + 1):
        held.cache.mode(n << 12, 0, True)


def fill_slots(held: Cache) -> None:
    for _ in range(SLOT_LIMIT + 1):
        held.cache._new_slot()


@pytest.mark.parametrize("fill", (fill_code, fill_modes, fill_slots))
def test_overflow_says_so_and_a_flush_starts_anew(fill: Callable[[Cache], None]) -> None:
    """CacheFull for code, modes and slots; after `flush`, at another base if asked, all is empty and works."""
    held = Cache(0x4000)
    with pytest.raises(CacheFull):
        fill(held)
    held.cache.flush(0x10000000)
    held.mode = held.cache.mode(0, 0, True)
    assert held.cache.lookup(PAGE, held.mode, GFN) is None and held.returns_to(PAGE) == []
    assert 0x10000000 + CODE <= held.install(PAGE, "40c3") < 0x10000000 + CODE + 0x4000
    assert held.cache.flushes == 1
