"""The 8259 pair against its data sheet."""

from hypothesis import given
from hypothesis import strategies as st

from vmm.devices.pic import EdgeLevelControl, PicPair

EOI, SPECIFIC_EOI, ROTATE_EOI, SET_PRIORITY = 0x20, 0x60, 0xA0, 0xC0


def pair(icw4: int = 0x01, masks: tuple[int, int] = (0, 0), icw1: int = 0x11) -> tuple[PicPair, list[bool]]:
    """A pair initialised the way every kernel does: vectors 20h and 28h. With the levels of its output."""
    levels: list[bool] = []
    pics = PicPair(levels.append)
    for chip, base, wiring in ((pics.master, 0x20, 4), (pics.slave, 0x28, 2)):
        chip.access(0, 1, icw1)
        for icw in (base, wiring, icw4):
            chip.access(1, 1, icw)
    pics.master.access(1, 1, masks[0])
    pics.slave.access(1, 1, masks[1])
    levels.clear()
    return pics, levels


def test_edge_is_latched_served_and_ended() -> None:
    """One interrupt an edge; nothing of its priority or lower until EOI."""
    pics, levels = pair()
    pics.set_line(3, True)
    assert levels == [True]
    assert pics.acknowledge() == 0x23
    assert levels[-1] is False
    pics.set_line(3, False)
    pics.set_line(3, True)
    pics.set_line(5, True)
    assert levels[-1] is False
    pics.master.access(0, 1, EOI)
    assert pics.acknowledge() == 0x23


def test_a_line_that_stays_high_interrupts_once() -> None:
    """Edge mode."""
    pics, levels = pair()
    pics.set_line(3, True)
    pics.acknowledge()
    pics.set_line(3, True)
    pics.master.access(0, 1, EOI)
    assert levels[-1] is False


def test_higher_priority_nests() -> None:
    """Line 0 interrupts the service of line 3."""
    pics, levels = pair()
    pics.set_line(3, True)
    pics.acknowledge()
    pics.set_line(0, True)
    assert levels[-1] is True
    assert pics.acknowledge() == 0x20
    pics.master.access(0, 1, EOI)  # ends the higher one
    pics.master.access(0, 1, 0x0B)
    assert pics.master.access(0, 1, None) == 0x08


def test_request_withdrawn_is_spurious() -> None:
    """Input 7 of the chip, and it does not go in service."""
    pics, levels = pair()
    pics.set_line(4, True)
    pics.set_line(4, False)
    assert levels == [True, False]
    assert pics.acknowledge() == 0x27
    assert pics.master.isr == 0


def test_spurious_on_the_slave_leaves_the_cascade_in_service() -> None:
    """The master cannot know: its line 2 needs an EOI (data sheet, "Cascade Mode")."""
    pics, _ = pair()
    pics.set_line(14, True)
    pics.slave.irr = 0  # gone between the two INTA pulses
    assert pics.acknowledge() == 0x2F
    assert (pics.master.isr, pics.slave.isr) == (4, 0)


def test_slave_interrupts_one_after_the_other() -> None:
    """Each through the master's edge-triggered input 2, with both EOIs."""
    pics, levels = pair()
    pics.set_line(14, True)
    pics.set_line(15, True)
    assert pics.acknowledge() == 0x2E
    pics.slave.access(0, 1, EOI)
    pics.master.access(0, 1, EOI)
    assert levels[-1] is True
    assert pics.acknowledge() == 0x2F


def test_slave_nests_only_in_special_fully_nested_mode() -> None:
    """ICW4 bit 4: a higher line of the slave interrupts a lower one of it."""
    for icw4, nests in ((0x01, False), (0x11, True)):
        pics, levels = pair(icw4)
        pics.set_line(15, True)
        pics.acknowledge()
        pics.set_line(8, True)
        assert levels[-1] is nests


def test_mask_keeps_the_request() -> None:
    """A masked edge waits in IRR."""
    pics, levels = pair(masks=(0x02, 0))
    pics.set_line(1, True)
    assert levels == []
    assert pics.master.access(0, 1, None) == 0x02
    pics.master.access(1, 1, 0)
    assert levels == [True]


def test_level_triggered_line_repeats() -> None:
    """With ELCR set: as long as it is asserted; ELCR leaves the timer, keyboard and cascade alone."""
    pics, levels = pair()
    elcr = EdgeLevelControl(pics)
    elcr.access(0, 1, 0xFF)
    elcr.access(1, 1, 0xFF)
    assert (elcr.access(0, 1, None), elcr.access(1, 1, None)) == (0xF8, 0xDE)
    pics.set_line(5, True)
    assert pics.acknowledge() == 0x25
    pics.master.access(0, 1, EOI)
    assert levels[-1] is True
    pics.set_line(5, False)
    assert levels[-1] is False


def test_automatic_eoi() -> None:
    """ICW4 bit 1: nothing stays in service."""
    pics, levels = pair(icw4=0x03)
    pics.set_line(1, True)
    pics.acknowledge()
    assert pics.master.isr == 0
    pics.set_line(6, True)
    assert levels[-1] is True


def test_rotation() -> None:
    """Rotate on EOI: the line just served becomes the lowest; set priority names the lowest."""
    pics, _ = pair()
    pics.set_line(3, True)
    pics.acknowledge()
    pics.master.access(0, 1, ROTATE_EOI)
    pics.set_line(3, False)
    pics.set_line(3, True)
    pics.set_line(4, True)
    assert pics.acknowledge() == 0x24
    pics.master.access(0, 1, SPECIFIC_EOI | 4)
    pics.master.access(0, 1, SET_PRIORITY | 2)
    pics.set_line(1, True)
    assert pics.acknowledge() == 0x23


def test_special_mask_mode() -> None:
    """A masked line in service blocks nobody, and a non-specific EOI spares it."""
    pics, levels = pair()
    pics.set_line(1, True)
    pics.acknowledge()
    pics.master.access(1, 1, 0x02)
    pics.set_line(6, True)
    assert levels == [True, False]
    pics.master.access(0, 1, 0x68)
    assert levels[-1] is True
    assert pics.acknowledge() == 0x26
    pics.master.access(0, 1, EOI)
    assert pics.master.isr == 0x02


def test_poll() -> None:
    """The read after a poll command is an acknowledge."""
    pics, _ = pair()
    pics.master.access(0, 1, 0x0C)
    assert pics.master.access(0, 1, None) == 0
    pics.set_line(6, True)
    pics.master.access(0, 1, 0x0C)
    assert pics.master.access(0, 1, None) == 0x86
    assert pics.master.isr == 0x40


def test_initialisation_forgets() -> None:
    """ICW1 clears mask, service and latched edges; a line that stays high must rise again."""
    pics, levels = pair(masks=(0xFF, 0xFF))
    pics.set_line(1, True)
    pics.master.access(0, 1, 0x11)
    for icw in (0x40, 4, 1):
        pics.master.access(1, 1, icw)
    assert pics.master.imr == 0
    assert levels == []
    pics.set_line(1, False)
    pics.set_line(1, True)
    assert pics.acknowledge() == 0x41


def test_short_initialisation() -> None:
    """ICW1 without IC4 and with SNGL: ICW2 only, then the mask."""
    pics, _ = pair()
    pics.master.access(0, 1, 0x12)
    pics.master.access(1, 1, 0x60)
    pics.master.access(1, 1, 0x5A)
    assert (pics.master.base, pics.master.imr) == (0x60, 0x5A)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 15), st.integers(0, 255))))
def test_whatever_a_guest_writes(steps: list[tuple[int, int, int]]) -> None:
    """Nothing raises, the output is right about there being a request, and acknowledged vectors are of the pair."""
    levels = [False]
    pics = PicPair(levels.append)
    for kind, number, value in steps:
        chip = pics.slave if number & 1 else pics.master
        if kind == 0:
            pics.set_line(number, bool(value & 1))
        elif kind == 1:
            chip.access(number >> 1 & 1, 1, value)
        elif kind == 2:
            chip.access(number >> 1 & 1, 1, None)
        elif levels[-1]:
            assert pics.acknowledge() & ~7 in (pics.master.base, pics.slave.base)
        assert levels[-1] == pics.master.requesting == (pics.master._request() is not None)
