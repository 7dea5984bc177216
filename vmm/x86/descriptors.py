"""Segment descriptors and selectors: SDM 3A 3.4 "Logical and Linear Addresses", 3.5 "System Descriptor Types"."""

from __future__ import annotations

from dataclasses import dataclass

ACCESSED, WRITABLE, CONFORMING, CODE = 1 << 8, 1 << 9, 1 << 10, 1 << 11  # in a descriptor's second word
READABLE = WRITABLE  # of code
SEGMENT = 1 << 12  # code or data, not a system descriptor
PRESENT = 1 << 15
LONG_CODE = 1 << 21  # L: of a code segment, 64-bit code
WIDE = 1 << 22  # D or B: 32-bit
GRANULAR = 1 << 23

FLAT_CODE, FLAT_DATA = 0x00CF9B00, 0x00CF9300  # accessed, 32-bit, of all 4 GiB, for ring 0
FLAT_CODE_64 = FLAT_CODE & ~WIDE | LONG_CODE

LDT_TYPE, TSS_AVAILABLE, TSS_BUSY, CALL_GATE, TASK_GATE, INTERRUPT_GATE, TRAP_GATE = 2, 9, 11, 12, 5, 14, 15
TSS_AVAILABLE_16, TSS_BUSY_16, CALL_GATE_16 = 1, 3, 4


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register with its hidden part: selector, linear base, limit in bytes (inclusive), second descriptor word."""

    selector: int
    base: int
    limit: int
    attributes: int

    @property
    def wide(self) -> bool:
        """32-bit code, or a 32-bit stack."""
        return bool(self.attributes & WIDE)


NULL = Segment(0, 0, 0, 0)


def segment(selector: int, descriptor: int) -> Segment:
    """The hidden part that loading `selector` takes from an 8-byte descriptor."""
    low, high = descriptor & 0xFFFFFFFF, descriptor >> 32
    limit = low & 0xFFFF | high & 0xF0000
    if high & GRANULAR:
        limit = limit << 12 | 0xFFF
    return Segment(selector, low >> 16 | (high & 0xFF) << 16 | high & 0xFF000000, limit, high)


def dpl(high: int) -> int:
    """Descriptor privilege level of a second descriptor word."""
    return high >> 13 & 3


def with_dpl(high: int, level: int) -> int:
    """A second descriptor word with another privilege level."""
    return high & ~0x6000 | level << 13
def deprivileged(high: int, level: int) -> int:
    """The second word of a segment descriptor as code at `level` or outside of it may load it, accessed.

    How much of its privilege it has lost stands in the two bits that protected mode leaves to software and to 64-bit code, so
    that a loaded segment's own level can be told (`own_dpl`), whatever stands in memory by then. A level that it has already
    leaves them clear: a set second bit would make 64-bit code.
    """
    shown = max(dpl(high), level)
    return high & ~0x306000 | shown << 13 | shown - dpl(high) << 20 | ACCESSED


def own_dpl(high: int) -> int:
    """The guest's privilege level of what `deprivileged` made."""
    return dpl(high) - (high >> 20 & 3)


def system_type(high: int) -> int:
    """Type of a system descriptor."""
    return high >> 8 & 0xF
