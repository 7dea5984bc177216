"""VGA text: what the screen shows, and the registers that kernels touch."""

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.devices.memory import GuestRam
from vmm.clock import Clock
from vmm.devices.vga import FRAME, Vga

MIB = 1 << 20


def screen() -> tuple[Vga, GuestRam, list[int]]:
    time = [0]
    ram = GuestRam(MIB)
    return Vga(ram, Clock(lambda: time[0])), ram, time


def put(ram: GuestRam, cell: int, text: bytes) -> None:
    ram.write(0xB8000 + 2 * cell, b"".join(bytes([char, 7]) for char in text))


def test_text_and_changes() -> None:
    """25 lines, trailing blanks off; `changed` until the text was taken."""
    vga, ram, _ = screen()
    assert not vga.changed()
    put(ram, 80 + 3, b"hi\x01\xb3")
    assert vga.changed()
    lines = vga.text()
    assert len(lines) == 25
    assert lines[1] == "   hi☺│"
    assert lines[0] == lines[24] == ""
    assert not vga.changed()


def test_start_address_scrolls_and_wraps() -> None:
    """CRTC 0Ch and 0Dh: hardware scrolling."""
    vga, ram, _ = screen()
    put(ram, 0x3FB0, b"end")
    put(ram, 0, b"begin")
    for index, value in ((0x0C, 0x3F), (0x0D, 0xB0)):
        vga.access(0x14, 1, index)
        vga.access(0x15, 1, value)
    assert vga.text()[:2] == ["end", "begin"]


def test_cursor() -> None:
    """Written and read back as xv6 does, and off by CRTC 0Ah bit 5."""
    vga, _, _ = screen()
    for index, value in ((14, 0x01), (15, 0x41)):
        vga.access(0x14, 1, index)
        vga.access(0x15, 1, value)
        assert vga.access(0x15, 1, None) == value
    assert vga.cursor() == (4, 1)
    assert vga.changed()
    vga.access(0x14, 1, 0x0A)
    vga.access(0x15, 1, 0x20)
    assert vga.cursor() is None


def test_retrace_comes_and_goes() -> None:
    """Input status 1, for those who wait for either state."""
    vga, _, time = screen()
    seen = set()
    for time[0] in range(0, FRAME, 7_000):
        seen.add(vga.access(0x1A, 1, None))
    assert {status & 8 for status in seen} == {0, 8}
    assert {status & 1 for status in seen if not status & 8} == {0, 1}


def test_attribute_flip_flop() -> None:
    """Index, then data at 3C0h; reading 3DAh starts over."""
    vga, _, _ = screen()
    vga.access(0x00, 1, 0x30)
    vga.access(0x1A, 1, None)
    vga.access(0x00, 1, 0x31)
    vga.access(0x00, 1, 0x55)
    assert vga.access(0x01, 1, None) == 0x55
    assert vga.attribute[0x10] == 0x0C


def test_palette() -> None:
    """Three bytes an entry, six bits each, with write and read index."""
    vga, _, _ = screen()
    vga.access(0x08, 1, 5)
    for value in (1, 2, 0xFF):
        vga.access(0x09, 1, value)
    vga.access(0x07, 1, 5)
    assert [vga.access(0x09, 1, None) for _ in range(3)] == [1, 2, 0x3F]


@given(st.lists(st.tuples(st.integers(0, 31), st.integers(-1, 255))))
def test_whatever_a_guest_writes(steps: list[tuple[int, int]]) -> None:
    """Nothing raises, reads are bytes, and there is always a screen."""
    vga, _, _ = screen()
    for offset, value in steps:
        assert 0 <= vga.access(offset, 1, None if value < 0 else value) <= 255
    assert len(vga.text()) == 25
