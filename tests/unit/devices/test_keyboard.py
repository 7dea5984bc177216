"""The 8042 and its keyboard: what typing becomes, and the commands that kernels give."""

import string
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.devices.keyboard import Keyboard
from vmm.devices.scancodes import TRANSLATION
from vmm.devices.stop import Stop, StopKind
from vmm.devices.system_control import A20, PortA

SET_1 = dict(zip("1234567890-=\b\tqwertyuiop[]\n", range(0x02, 0x1D), strict=True)) | dict(zip("asdfghjkl;'`", range(0x1E, 0x2A), strict=True))
SET_1 |= dict(zip("\\zxcvbnm,./", range(0x2B, 0x36), strict=True)) | {" ": 0x39, "\x1b": 0x01}
SHIFTED = dict(zip('!@#$%^&*()_+{}:"~|<>?', "1234567890-=[];'`\\,./", strict=True))


class Bench:
    """A keyboard on its controller, with the stops it asked for and its line's rises."""

    def __init__(self) -> None:
        self.level = False
        self.rises = 0
        self.stops: list[Stop] = []
        self.a20 = A20()
        self.keyboard = Keyboard(self.line, self.a20, self.stops.append)

    def line(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level

    def up(self) -> bool:
        """The level of the line, as a call: type checkers think that a variable which they saw cannot change."""
        return self.level

    def status(self) -> int:
        return self.keyboard.access(4, 1, None)

    def command(self, value: int) -> None:
        self.keyboard.access(4, 1, value)

    def data(self, value: int) -> None:
        self.keyboard.access(0, 1, value)

    def drain(self) -> list[int]:
        got = []
        while self.status() & 1:
            got.append(self.keyboard.access(0, 1, None))
        return got


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield Bench()


def decode(codes: list[int]) -> str:
    """What a driver with a US map makes of set 1: written apart from the device's own tables."""
    text, shift, control = "", False, False
    keys = {code: char for char, code in SET_1.items()}
    upper = {char: shifted for shifted, char in SHIFTED.items()}
    for code in codes:
        if code & 0x7F in (0x2A, 0x36):
            shift = not code & 0x80
        elif code & 0x7F == 0x1D:
            control = not code & 0x80
        elif not code & 0x80:
            char = keys[code]
            if shift:
                char = upper.get(char, char.upper())
            text += chr(ord(char) & 0x1F) if control else char
    assert not shift and not control
    return text


@given(st.text(string.ascii_letters + string.digits + string.punctuation + " \n\t\b\x1b\x01\x03\x04\x10\x1a"))
def test_typing_arrives(text: str) -> None:
    """Set 1, every key released, for the whole of ASCII."""
    bench = Bench()
    bench.keyboard.press(text)
    assert decode(bench.drain()) == text


def test_unknown_characters_are_left_out(bench: Bench) -> None:
    """No exception for an umlaut; carriage return and delete are Enter and Backspace."""
    bench.keyboard.press("äa\r\x7f")
    assert decode(bench.drain()) == "a\n\b"


def test_each_byte_interrupts(bench: Bench) -> None:
    """An edge each: a driver that reads one byte an interrupt gets all."""
    bench.keyboard.press("a")
    assert (bench.rises, bench.up()) == (1, True)
    assert bench.keyboard.access(0, 1, None) == 0x1E
    assert bench.rises == 2
    assert bench.keyboard.access(0, 1, None) == 0x9E
    assert not bench.up()
    assert bench.keyboard.access(0, 1, None) == 0x9E  # the buffer keeps its last byte


def test_self_test_and_port_test(bench: Bench) -> None:
    """AAh and ABh; the second port has nothing on it."""
    for command, answer in ((0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x01)):
        bench.command(command)
        assert bench.status() & 0x08
        assert bench.drain() == [answer]


def test_mode_byte(bench: Bench) -> None:
    """60h and 20h; without interrupts the line stays down, and without translation bytes are of set 2."""
    bench.command(0x60)
    bench.data(0x04)
    bench.command(0x20)
    assert bench.drain() == [0x04]
    bench.rises = 0
    bench.keyboard.press("a")
    assert bench.drain() == [0x1C, 0xF0, 0x1C]
    assert bench.rises == 0


def test_disabled_keyboard_waits(bench: Bench) -> None:
    """ADh holds keys back, not the controller's answers; AEh lets them come."""
    bench.command(0xAD)
    bench.keyboard.press("a")
    assert not bench.status() & 1
    bench.command(0xAA)
    assert bench.drain() == [0x55]
    bench.command(0xAE)
    assert bench.drain() == [0x1E, 0x9E]


def test_keyboard_commands(bench: Bench) -> None:
    """Reset, identify (translated), lamps with their parameter, echo, and an unknown one."""
    for sent, answers in (
        ([0xFF], [0xFA, 0xAA]),
        ([0xF2], [0xFA, 0xAB, 0x41]),
        ([0xED, 0x07], [0xFA, 0xFA]),
        ([0xF3, 0x20], [0xFA, 0xFA]),
        ([0xF0, 0x00], [0xFA, 0xFA, 0x41]),
        ([0xEE], [0xEE]),
        ([0xF4], [0xFA]),
        ([0x01], [0xFE]),
    ):
        for byte in sent:
            bench.data(byte)
        assert bench.drain() == answers, sent


def test_scanning_can_be_turned_off(bench: Bench) -> None:
    """F5h until F4h: as with a real keyboard, keys pressed meanwhile are gone."""
    bench.data(0xF5)
    bench.drain()
    bench.keyboard.press("a")
    assert bench.drain() == []
    bench.data(0xF4)
    bench.drain()
    bench.keyboard.press("b")
    assert bench.drain() == [0x30, 0xB0]


def test_no_mouse(bench: Bench) -> None:
    """A byte for it times out; the loop-back test of the second port does not look like one."""
    bench.command(0xD4)
    bench.data(0xF2)
    assert bench.status() & 0x61 == 0x61
    assert not bench.up()
    assert bench.drain() == [0xFE]
    bench.command(0xD3)
    bench.data(0x5A)
    assert bench.status() & 0x21 == 0x01


def test_resets(bench: Bench) -> None:
    """Command FEh and output port bit 0 reset the machine; FFh pulses nothing."""
    bench.command(0xFF)
    assert bench.stops == []
    bench.command(0xFE)
    bench.command(0xD1)
    bench.data(0xDE)
    assert [stop.kind for stop in bench.stops] == [StopKind.RESET, StopKind.RESET]


def test_a20_is_one_gate(bench: Bench) -> None:
    """The output port and port 92h show and set the same."""
    port = PortA(bench.a20, bench.stops.append)
    bench.command(0xD1)
    bench.data(0xDD)
    assert port.access(0, 1, None) == 0
    port.access(0, 1, 2)
    bench.command(0xD0)
    assert bench.drain()[0] & 0x03 == 0x03
    assert bench.stops == []
    port.access(0, 1, 3)
    port.access(0, 1, 3)
    assert [stop.by for stop in bench.stops] == ["port 92h"]


def test_translation_is_one_to_one_for_keys() -> None:
    """No two keys of set 2 share a code of set 1, but F7's and SysRq's doubles."""
    codes = TRANSLATION[1:0x80]
    assert len(codes) == 127
    doubles = {code for code in codes if codes.count(code) > 1}
    assert doubles <= {0x41, 0x54}


@given(st.lists(st.tuples(st.sampled_from([0, 4]), st.integers(-2, 255))))
def test_whatever_a_guest_writes(steps: list[tuple[int, int]]) -> None:
    """Nothing raises, reads are bytes, and queues end."""
    bench = Bench()
    for offset, value in steps:
        if value == -2:
            bench.keyboard.press("aB\n")
        else:
            assert 0 <= bench.keyboard.access(offset, 1, None if value < 0 else value) <= 255
        if bench.up():
            assert bench.status() & 1
    assert len(bench.drain()) <= 20 * (len(steps) + 1)
