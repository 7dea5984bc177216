"""The listing: whatever a translation holds, all of its code and each guest instruction stand in it once."""

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from bt.block import Mode
from bt.discover import discover
from bt.emit import Emitter, Options
from bt.listing import listing
from bt.window import CODE, SLOTS

BASE = 0xE8000000


@given(st.binary(min_size=1, max_size=40), st.booleans(), st.sampled_from((0, 0x40000000)))
def test_nothing_is_left_out(code: bytes, cached: bool, cs_base: int) -> None:
    """Random code: the hexadecimal column is the translation's code, the guest column has each instruction of the block."""
    block = discover(code + b"\x90" * 16, 0x100000, len(code), 0x100000)
    slots = itertools.count(SLOTS, 4)
    translation = Emitter(block, Mode(0, cs_base, 0), BASE + CODE, BASE, lambda: next(slots), Options(stubs_in_cache=cached)).translate()
    lines = [line.partition("| ") for line in listing(translation, BASE).splitlines()]
    columns = (re.match(r"[0-9a-f]{8}  ((?:[0-9a-f]{2} )+)", code_column) for _, _, code_column in lines)
    assert b"".join(bytes.fromhex(found[1]) for found in columns if found) == translation.code
    starts = [int(guest[:8], 16) for guest, _, _ in lines if guest[:8].strip() and guest[0] != "-"]
    assert set(starts) >= {instruction.address for instruction in block.instructions}
