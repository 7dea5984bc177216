"""What became of an instruction, and the totals: read off translations of every form of the table."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bt.block import Mode, Translation
from bt.census import Kind, census, code_bytes, kinds
from bt.discover import discover
from bt.emit import Emitter, Options, run_heads
from bt.window import CODE, SLOTS

BASE, ENTRY = 0xE8000000, 0x100000
FLAT, BASED = Mode(0, 0, 0), Mode(1, 0x40000000, 0x50000)


def translation(code: str | bytes, mode: Mode = FLAT, options: Options | None = None) -> Translation:
    """Of the block that `code` (hexadecimal) is."""
    raw = bytes.fromhex(code) if isinstance(code, str) else code
    block = discover(raw + b"\x90" * 15, ENTRY, len(raw), ENTRY)
    slots = itertools.count(SLOTS, 4)
    return Emitter(block, mode, BASE + CODE, BASE, lambda: next(slots), options or Options()).translate()


def of(code: str, mode: Mode = FLAT, options: Options | None = None) -> list[Kind]:
    """The kinds of its instructions."""
    return [kind for _, _, kind in kinds(translation(code, mode, options))]


def test_kinds() -> None:
    """One of each, and what stubs that trap make of them."""
    code = "40 9c fa f4 74 00 c3"  # inc eax; pushf; cli; hlt; je; ret
    flow = [Kind.FLOW, Kind.FLOW]
    assert of(code) == [Kind.IDENTITY, Kind.IN_CACHE, Kind.IN_CACHE, Kind.CALLOUT, *flow]
    assert of(code, options=Options(stubs_in_cache=False)) == [Kind.IDENTITY, Kind.CALLOUT, Kind.CALLOUT, Kind.CALLOUT, *flow]
    assert of(code, options=Options(counted=True)) == of(code)


def test_a_slow_path_is_no_callout() -> None:
    """popf asks the VMM only where its template cannot do it."""
    assert of("9d 90") == [Kind.IN_CACHE, Kind.IDENTITY]
    assert of("66 9d 90") == [Kind.CALLOUT, Kind.IDENTITY]


def test_rewritten() -> None:
    """A CS override is copied while CS is flat; behind a base it is another instruction."""
    code = "2e 8b 01 2e 8b c1 c3"  # mov eax,cs:[ecx]; mov eax,ecx with a prefix that concerns nothing
    assert of(code)[:2] == [Kind.IDENTITY, Kind.IDENTITY]
    assert of(code, BASED)[:2] == of(code, BASED, Options(counted=True))[:2] == [Kind.REWRITTEN, Kind.IDENTITY]


def test_what_no_override_concerns() -> None:
    """ins, stos and scas go through ES whatever stands in front of them."""
    for code in ("2e 6c", "2e 6d", "2e aa", "2e ab", "2e ae", "2e af", "2e 8d 01"):
        assert of(code + " c3", BASED)[0] is Kind.IDENTITY, code


def test_undecodable() -> None:
    """Bytes that are no instruction are told apart."""
    assert of("40 ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff") == [Kind.IDENTITY, Kind.UNDEFINED]


@given(st.binary(min_size=1, max_size=60))
def test_totals_of_anything(code: bytes) -> None:
    """Kinds add up to the instructions and what is none; counters change no figure; heads cover each instruction that a counter stands at."""
    plain, counted = translation(code), translation(code, options=Options(counted=True))
    total = census([plain])
    assert total == census([counted])
    assert total.identity + total.rewritten + total.in_cache + total.callouts + total.flow == total.instructions == len(plain.block.instructions)
    assert total.undefined == len(plain.block.undecodable)
    assert total.code_bytes == len(plain.code) == code_bytes(counted)
    assert set(counted.counters) == run_heads(counted.block) & {instruction.address for instruction in plain.block.instructions}
    for head in counted.counters:
        assert counted.find(head) is not None


def test_counted_code_is_entered_at_heads_only() -> None:
    """In the midst of a run an entry would not be counted."""
    plain, counted = translation("40 40 fa 40 c3"), translation("40 40 fa 40 c3", options=Options(counted=True))
    assert plain.find(ENTRY + 1) is not None and counted.find(ENTRY + 1) is None
    assert counted.find(ENTRY) is not None and counted.find(ENTRY + 3) is not None
