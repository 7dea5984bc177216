"""The window: the linear range that holds translated code and the words that translated code shares with the VMM.

Knows offsets within the window, nothing of where it lies or who maps it. The data part comes first, writable and not
executable; the code part follows, executable and not writable. The first data page is mapped twice: the second mapping,
the doorbell, is taken away while an interrupt waits for the virtual IF, so that setting IF by it traps just then.
"""

from __future__ import annotations


class Word:
    """Offsets in the window of the words that the VMM and translated code share."""

    SAVED = 0x00  # a slot of 4 bytes for each general register, for stubs that need a scratch register
    TARGET = 0x20  # where an indirect jump, call or return goes
    FLAGS = 0x24  # the virtual IF and IOPL, in EFLAGS' places
    FLAGS_BEFORE = 0x28  # their second byte before an iret
    BUDGET = 0x2C  # how many instructions translated code may still begin, where they are counted
    CR0, CR2, CR3, CR4 = 0x30, 0x34, 0x38, 0x3C
    CS, SS, LDT, TR = 0x40, 0x44, 0x48, 0x4C  # selectors as the guest sees them
    GDT_LIMIT, GDT_BASE, IDT_LIMIT, IDT_BASE = 0x50, 0x54, 0x58, 0x5C


WORD_BY_NAME = {name: value for name, value in vars(Word).items() if name.isupper()}

DOORBELL = 0x1000  # the second mapping of the first page
FLAGS_CLASS = 0x2000  # a byte for each value of EFLAGS bits 8-23: see `flags_classes`
RING_3 = FLAGS_CLASS + 0x10000  # a byte for each low byte of a selector: 1 when its RPL is 3
RETURNS = 0x20000  # tables of checked entries, one for each mode
RETURNS_SIZE = 0x40000  # 65,536 entries of 4 bytes
MODES = 8
SLOTS = RETURNS + (MODES + 1) * RETURNS_SIZE  # chaining slots of 4 bytes; not 256 pages from a table: the CPU's TLB would hold only one
CODE = 0x400000
LOADABLE = CODE - 0x10000  # a byte for each selector: 1 when the guest's kernel may load it into a data segment register
SAME_CODE = LOADABLE - 0x10000  # a byte for each selector: 1 when, with it in CS, loading CS with it anew changes nothing
SLOT_LIMIT = (SAME_CODE - SLOTS) // 4

PLAIN_CLEAR, PLAIN_SET = 1, 2  # classes of flags that a stub may load: IF clear, IF set; 0: ask the VMM


def flags_classes() -> bytes:
    """For bits 8-23 of a flags image: PLAIN_CLEAR or PLAIN_SET by its IF; 0 when it sets TF, IOPL, NT, VM, VIF or VIP."""
    plain = bytes(0 if low & 0x71 else PLAIN_SET if low & 2 else PLAIN_CLEAR for low in range(256))
    return b"".join(bytes(256) if high & 0x1A else plain for high in range(256))


def ring_3_selectors() -> bytes:
    """For the low byte of a selector: 1 when its RPL is 3."""
    return bytes((low & 3) == 3 for low in range(256))
