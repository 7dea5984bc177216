"""Guest-physical memory: one range over scattered frames, open bus outside, and the question before a write to a frame in use."""

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.mmu.plain_machine import PlainMachine
from vmm.machine import FRAME
from vmm.memory import CODE, GuestMemory

SIZE = 6 * FRAME


def memory() -> GuestMemory:
    return GuestMemory(PlainMachine(12, run=2).machine(), SIZE)


@given(st.lists(st.tuples(st.integers(0, SIZE + FRAME), st.binary(max_size=2 * FRAME + 3)), max_size=6), st.integers(0, SIZE), st.integers(0, SIZE))
def test_it_is_one_range_of_bytes(writes: list[tuple[int, bytes]], at: int, size: int) -> None:
    """Like an array of bytes; what lies outside is dropped, and reads as ones."""
    tested, model = memory(), bytearray(SIZE)
    for gpa, data in writes:
        tested.write(gpa, data)
        kept = data[: max(0, SIZE - gpa)]
        model[gpa : gpa + len(kept)] = kept
    assert tested.read(0, SIZE) == bytes(model)
    assert tested.read(at, size) == (bytes(model) + b"\xff" * SIZE)[at : at + size]
    for gpa in (at & ~3, SIZE - 4, SIZE, SIZE + 0x12340):
        assert tested.read32(gpa) == int.from_bytes((bytes(model) + b"\xff" * SIZE * 40)[gpa : gpa + 4], "little")
    assert tested.read64(at & ~7) == int.from_bytes((bytes(model) + b"\xff" * 8)[at & ~7 : (at & ~7) + 8], "little")


def test_a_write_asks_about_each_frame_in_use() -> None:
    """Once for each frame whose state is not 0, before its bytes change."""
    tested, asked = memory(), []

    def before(gfn: int) -> bool:
        asked.append((gfn, tested.read(gfn << 12, 1)))
        return True

    tested.before_write = before
    tested.state[1] = tested.state[3] = CODE
    tested.write(FRAME - 1, b"\x11" * (3 * FRAME))
    assert asked == [(1, b"\0"), (3, b"\0")]


def test_the_page_walker_s_bits_end_no_use() -> None:
    """set_bits ors into a word and asks nobody; outside RAM it does nothing."""
    tested = memory()
    tested.before_write = lambda gfn: 1 // 0 == 0
    tested.state[2] = CODE
    tested.set_bits(2 * FRAME + 4, 0x60)
    tested.set_bits(SIZE, 0x60)
    assert tested.read32(2 * FRAME + 4) == 0x60


def test_close_gives_the_frames_back() -> None:
    """All of them, and nothing is RAM any more."""
    machine = PlainMachine(12, run=2).machine()
    first = GuestMemory(machine, SIZE)
    first.close()
    assert first.read(0, 2) == b"\xff\xff"
    assert GuestMemory(machine, SIZE).count == 6
