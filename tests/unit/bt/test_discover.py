"""Where blocks end."""

from bt.block import Block
from bt.discover import LIMIT, discover

START = 0x1000


def block(code: str, *, entry: int = START, span: int = 0x1000, limit: int = LIMIT, padding: str = "90") -> Block:
    raw = bytes.fromhex(code)
    return discover(raw + bytes.fromhex(padding) * (span - len(raw)), START, span, entry, limit)


def addresses(found: Block) -> list[int]:
    return [instruction.address - START for instruction in found.instructions]


def test_a_block_ends_where_control_leaves() -> None:
    """Returns, indirect and far jumps, iret, ud2."""
    for end in ("c3", "c20400", "ffe0", "ff20", "ea000000000800", "cb", "cf", "0f0b", "ff28"):
        assert addresses(block("40" + end)) == [0, 1], end


def test_it_goes_on_past_calls_branches_and_callouts() -> None:
    """Control comes back there."""
    assert addresses(block("e80000010074fe fa f4 ff10 cd80 c3".replace(" ", ""))) == [0, 5, 7, 8, 9, 11, 13]


def test_it_follows_jumps_and_branches_within_the_page() -> None:
    """The target of a jump comes next; those of branches at the end; nothing twice."""
    assert addresses(block("eb0340c39090 7502 c3 90 eb f6".replace(" ", ""))) == [0, 5, 6, 8, 10, 2, 3]


def test_it_stays_in_its_page() -> None:
    """An instruction that begins in the next page is left out, and a jump there ends the block."""
    assert addresses(block("90" * 10, span=10)) == list(range(10))
    assert addresses(block("e9f0ffff7f")) == [0]


def test_an_instruction_across_the_page_s_end() -> None:
    """Left out when the bytes behind are not given, and decoded when they are."""
    code = bytes.fromhex("9090b811")
    assert addresses(discover(code, START, 4, START)) == [0, 1]
    assert addresses(discover(code[2:], START + 2, 2, START + 2)) == []
    found = discover(code[2:] + bytes.fromhex("223344") + bytes(12), START + 2, 2, START + 2, 1)
    assert [instruction.raw.hex() for instruction in found.instructions] == ["b811223344"]


def test_no_more_than_the_limit() -> None:
    """A straight run is cut off."""
    assert len(block("90").instructions) == LIMIT
    assert addresses(block("909090", limit=2)) == [0, 1]


def test_bytes_that_are_no_instruction() -> None:
    """Noted where control would reach them: at the entry, behind a run, or at a branch's target."""
    nothing = "ffff" * 8
    assert block(nothing).undecodable == [START]
    found = block("40" + nothing)
    assert (addresses(found), found.undecodable) == ([0], [START + 1])
    found = block("7403c39090" + nothing)
    assert (addresses(found), found.undecodable) == ([0, 2], [START + 5])
