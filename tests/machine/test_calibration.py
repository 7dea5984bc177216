"""The search for the CPU's live state and its exit-check flag: found when there is one, refused when it is missing or ambiguous."""

import ctypes
import struct

import pytest

from tests.assembly import ENTRY
from tests.machine.flat import finish, flat_vm
from vmm.backends.hw import HwOptions
from vmm.cpu_state import LayoutError, find_exit_check_flag, find_features, find_interrupt_request, find_live_state

STATE_SIZE = 8 * 64
DEBUG = 40  # index of debug register 0 among the 64-bit words of a state


class Engine:
    """An engine's memory as the search sees it: a structure with pointers to states, which follow what is written as they are told."""

    def __init__(self, *, live: int = 1, stale: int = 0, debug_places: tuple[int, ...] = (DEBUG,)) -> None:
        self.live = [(ctypes.c_uint64 * 64)() for _ in range(live)]
        self.stale = [(ctypes.c_uint64 * 64)() for _ in range(stale)]
        self.debug_places = debug_places
        self.structure = (ctypes.c_uint64 * 750)()
        self.written = 0
        for n, state in enumerate([*self.live, *self.stale]):
            self.structure[100 + n] = ctypes.addressof(state)
        self.structure[5] = 0x7FFF_FFFF_F000  # a pointer to nothing that can be read

    def write_general(self, n: int, value: int) -> None:
        self.written += 1
        for state in self.live + (self.stale if self.written <= 8 else []):
            state[n] = value

    def write_debug(self, n: int, value: int) -> None:
        for state in self.live:
            for place in self.debug_places:
                state[place + n] = value

    def find(self) -> tuple[int, int]:
        return find_live_state(ctypes.addressof(self.structure), STATE_SIZE, self.write_general, self.write_debug)


def test_the_live_state_is_found_and_left_clean() -> None:
    """One state that follows: its address, and the index of debug register 0 in 32-bit words."""
    engine = Engine()
    assert engine.find() == (ctypes.addressof(engine.live[0]), 2 * DEBUG)
    assert not any(engine.live[0])


def test_a_stale_copy_of_the_state_is_told_apart() -> None:
    """A copy that does not follow the second pattern is not the CPU's state."""
    engine = Engine(stale=2)
    assert engine.find()[0] == ctypes.addressof(engine.live[0])


@pytest.mark.parametrize("live", (0, 2))
def test_no_state_or_two_are_refused(live: int) -> None:
    """The message says what was looked for and how many were found."""
    with pytest.raises(LayoutError, match=f"live state: {live} candidates"):
        Engine(live=live).find()


@pytest.mark.parametrize("places", ((), (20, 50)))
def test_no_debug_registers_or_two_sets_are_refused(places: tuple[int, ...]) -> None:
    """What lies beside the debug registers is addressed from them, so they must be unique."""
    with pytest.raises(LayoutError, match=f"debug registers in the CPU's state: {len(places)} candidates"):
        Engine(debug_places=places).find()


def engine_structure(*places: int, size: int = 0x2000, before: int = 1, bools: bytes = b"\0\1\0\1") -> ctypes.Array[ctypes.c_char]:
    """An engine's structure with the exit-check flag's neighbourhood at each of `places` (multiples of 8)."""
    image = bytearray(b"\xaa" * 8000)
    for at in places:
        image[at : at + 20] = struct.pack("<iiQ", before, size, 0x1234) + bools
    return ctypes.create_string_buffer(bytes(image), len(image))


def test_the_exit_check_flag_is_found_by_its_neighbours() -> None:
    """The third of four booleans behind the context size."""
    structure = engine_structure(0x400)
    assert find_exit_check_flag(ctypes.addressof(structure), 0x2000) == ctypes.addressof(structure) + 0x400 + 18


@pytest.mark.parametrize(
    "structure",
    (
        engine_structure(),
        engine_structure(0x400, 0x800),
        engine_structure(0x400, size=0x2004),
        engine_structure(0x400, before=2),
        engine_structure(0x400, bools=b"\1\1\0\1"),
        engine_structure(0x400, bools=b"\0\1\1\1"),
        engine_structure(0x400, bools=b"\0\1\0\0"),
    ),
    ids=("none", "two", "other size", "other integer", "insert set", "flag set", "not initialised"),
)
def test_an_unsure_exit_check_flag_is_not_used(structure: ctypes.Array[ctypes.c_char]) -> None:
    """None: the machine then takes no kicks."""
    assert find_exit_check_flag(ctypes.addressof(structure), 0x2000) is None


FEATURES = (0x178BFBFD, 0x3200B, 0x980189, 0, 0, 0, 0x2DD3FBFD, 0x75)


def behind_state(*lists: tuple[int, ...]) -> ctypes.Array[ctypes.c_char]:
    """A state, and behind it a vendor, a signature and feature words as often as asked."""
    words = b"".join(bytes(32) + b"AuthenticAMD" + struct.pack("<I8Q", 0x800F12, *features) for features in lists)
    return ctypes.create_string_buffer(bytes(STATE_SIZE) + words, STATE_SIZE + 1024)


def test_the_feature_words_are_found_by_what_must_be_in_them() -> None:
    """Behind the vendor and the signature; words without a feature that the CPU surely has are not taken for them."""
    memory = behind_state((0,) * 8, FEATURES)
    assert find_features(ctypes.addressof(memory), STATE_SIZE) == ctypes.addressof(memory) + STATE_SIZE + 112 + 48


@pytest.mark.parametrize("lists", ((), ((0,) * 8,), (FEATURES, FEATURES)), ids=("none", "others", "two"))
def test_unsure_feature_words_are_not_used(lists: tuple[tuple[int, ...], ...]) -> None:
    """None or two: nothing is written anywhere."""
    assert find_features(ctypes.addressof(behind_state(*lists)), STATE_SIZE) is None


@pytest.mark.parametrize("before", (0, 1, 2))
def test_pending_requests_among_words_that_look_like_them(monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    """What memory that was freed still holds is told apart from the CPU's requests by what a kick does."""
    find = find_interrupt_request
    others = [ctypes.c_uint32(0x100) for _ in range(2)]

    def crowded(state: int, pending: int = 0) -> tuple[list[ctypes.c_uint32], ctypes.c_uint16]:
        found, leave = find(state, pending)
        return [*others[:before], *found, *others[before:]], leave

    monkeypatch.setattr("vmm.machine.find_interrupt_request", crowded)
    options = HwOptions(mmu="nested")
    vm = flat_vm({ENTRY: "mov eax, 7; cpuid; mov eax, 7; out 0xf4, eax"}, options=options)
    assert finish(vm) == 7
    assert [other.value for other in others] == [0x100] * 2


def test_pending_requests_that_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With look-alikes only there is no guest mode."""
    leave = ctypes.c_uint16()
    monkeypatch.setattr("vmm.machine.find_interrupt_request", lambda state, pending=0: ([ctypes.c_uint32(0x100) for _ in range(2)], leave))
    with pytest.raises(LayoutError, match="none of 2 candidates"):
        flat_vm({ENTRY: "hlt"}, options=HwOptions(mmu="nested"))
