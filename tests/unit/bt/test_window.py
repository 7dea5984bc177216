"""The tables that stubs look flags and selectors up in, from their meaning bit by bit."""

from bt.window import CODE, FLAGS_CLASS, PLAIN_CLEAR, PLAIN_SET, RETURNS, RING_3, SLOTS, WORD_BY_NAME, flags_classes, ring_3_selectors

_TF, _IF, _IOPL, _NT, _VM, _VIF, _VIP = 0x100, 0x200, 0x3000, 0x4000, 0x20000, 0x80000, 0x100000


def test_flags_classes() -> None:
    """0 whenever a flag is set that a stub may not load, else by IF."""
    classes = flags_classes()
    assert len(classes) == 0x10000
    for image in range(0, 0x1000000, 0x100):
        unusual = image & (_TF | _IOPL | _NT | _VM | _VIF | _VIP)
        assert classes[image >> 8] == (0 if unusual else PLAIN_SET if image & _IF else PLAIN_CLEAR), hex(image)


def test_ring_3_selectors() -> None:
    """By the RPL."""
    assert ring_3_selectors() == bytes(low & 3 == 3 for low in range(256))


def test_the_parts_of_the_window_do_not_overlap() -> None:
    """Words in the first page, then the doorbell's, the tables, the slots, the code."""
    assert max(WORD_BY_NAME.values()) < 0x1000 <= FLAGS_CLASS - 0x1000
    assert FLAGS_CLASS + 0x10000 <= RING_3 < RING_3 + 256 <= RETURNS < SLOTS < CODE
    assert len(set(WORD_BY_NAME.values())) == len(WORD_BY_NAME)
