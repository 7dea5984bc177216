"""Blocks and translations: what the translator reads and what it makes, with the map that leads back.

Knows no encoding and no cache policy: plain data.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from enum import Enum, auto

from bt.decode import Instruction
from bt.sensitive import Row

# Recovery flags of a map entry: what must be done to have the guest's state before its instruction.
CLEAN = 0  # nothing: registers are the guest's
ADJUSTED = 0x08  # | register: it has the difference of the mode's bases (CS less SS) added
SPILLED = 0x10  # | register: its value is in its SAVED word
MIDWAY = 0x20  # the instruction is partly done: go on to the next clean place
SHADOWED = 0x40  # clean, but no interrupt may be delivered here (behind sti and loads of ss)
RETURNING = 0x80  # a native iret: the flags word has been changed already

ITERATIONS = 0xFF  # in Translation.left


@dataclass(frozen=True, slots=True)
class Mode:
    """All that decoding and emission depend on besides the bytes.

    index: a small number for it, unique within a cache. bases: linear, of CS and SS. plain: a 32-bit stack and a virtual
    IOPL of 0, so that flags may be handled in the cache. careful: every instruction that the table names is a callout and ends
    its block, and the code runs in a segment with the guest's base: for 16-bit code (not `wide`), 16-bit stacks, and privilege
    levels 1 and 2, and `real` mode. cpl: the privilege level of the guest's code.
    """

    index: int
    cs_base: int
    ss_base: int
    plain: bool = True
    careful: bool = False
    wide: bool = True
    cpl: int = 0
    real: bool = False

    @property
    def code_base(self) -> int:
        """Linear base of the segment in which translations of this mode run."""
        return self.cs_base if self.careful else 0


@dataclass(slots=True)
class Block:
    """Guest code to be translated as one: runs of instructions, each run in address order, all in one page.

    rows: for each instruction its row in the table, None when it is innocuous. undecodable: addresses at which the bytes are
    no instruction.
    """

    entry: int
    instructions: list[Instruction]
    rows: list[Row | None]
    undecodable: list[int] = field(default_factory=list)

    @property
    def repeats(self) -> bool:
        """Whether it begins with a string instruction with a REP prefix."""
        return bool(self.instructions) and self.instructions[0].is_repeated_string


class SiteKind(Enum):
    """Why translated code traps."""

    CALLOUT = auto()  # emulate the instruction, go on behind it
    CHAIN = auto()  # a jump whose target has no translation yet
    UNDEFINED = auto()  # bytes that are no instruction
    MISS = auto()  # a return or indirect jump that its table did not know
    STEPPED = auto()  # the end of a translation of a single instruction, or of a careful one
    PROTECTED = auto()  # a store through a CS override
    ALONE = auto()  # an instruction that is to run by itself, its time known exactly
    OVERDRAWN = auto()  # a run of instructions that is longer than the budget


@dataclass(slots=True)
class Site:
    """One trapping place in translated code.

    address: guest EIP of the instruction. target: where a jump goes (CHAIN, STEPPED). slot: window offset of its slot.
    resume: cache address behind the trap (CALLOUT). count: how often it trapped.
    """

    kind: SiteKind
    address: int
    translation: Translation
    instruction: Instruction | None = None
    row: Row | None = None
    target: int = 0
    slot: int = 0
    count: int = 0


@dataclass(slots=True, eq=False)
class Translation:
    """A translated block.

    start, code: where its code stands (linear) and the bytes. marks, guests, recovery: the address map, by rising cache
    address. body: how many map entries belong to instructions; those of the stubs follow. returns: guest EIP to its checked
    entry, as (linear address, slot of the next one in its table's chain). sites: linear address behind the trap instruction
    to site. slots: window offset of each outgoing slot to (guest EIP it leads to, linear address of the trap that it holds
    while that has no translation). source: what it was made of, as (gfn, offset in the frame, bytes). incoming: slots that
    hold addresses in it, but for the time of a nap. keys: its keys in the cache's table. alive: False from invalidation to
    revival, and during a nap. single: for one instruction only, not looked up. counters: guest EIP of the head of each
    counted run of instructions to the window offset of its counter; empty when nothing is counted. left: where a budget is
    kept, for each map entry how many instructions have been taken off it that are not done there (ITERATIONS: as many as ECX
    says, and one); empty without a budget.
    """

    block: Block
    mode: Mode
    start: int
    code: bytes = b""
    marks: array[int] = field(default_factory=lambda: array("I"))
    guests: array[int] = field(default_factory=lambda: array("I"))
    recovery: array[int] = field(default_factory=lambda: array("B"))
    returns: dict[int, tuple[int, int]] = field(default_factory=dict)
    sites: dict[int, Site] = field(default_factory=dict)
    slots: dict[int, tuple[int, int]] = field(default_factory=dict)
    source: list[tuple[int, int, bytes]] = field(default_factory=list)
    incoming: set[int] = field(default_factory=set)
    keys: list[int] = field(default_factory=list)
    counters: dict[int, int] = field(default_factory=dict)
    left: array[int] = field(default_factory=lambda: array("B"))
    body: int = 0
    alive: bool = True
    single: bool = False

    @property
    def end(self) -> int:
        """Linear address behind its code."""
        return self.start + len(self.code)

    def locate(self, address: int) -> tuple[int, int, bool]:
        """(guest EIP, recovery flags, whether `address` is exactly the start of the entry) for a cache address in it."""
        at = bisect_right(self.marks, address) - 1
        return self.guests[at], self.recovery[at], self.marks[at] == address

    def is_shadowed(self, guest: int) -> bool:
        """Whether no interrupt may be delivered before the instruction at a guest EIP, where a run begins."""
        at = self._clean_start(guest)
        return at is not None and self.recovery[at] == SHADOWED

    def unfinished(self, address: int, ecx: int) -> int:
        """How many instructions have been taken off the budget that are not done at a cache address in it, where ECX is this."""
        if not self.left:
            return 0
        left = self.left[bisect_right(self.marks, address) - 1]
        return ecx + 1 if left == ITERATIONS else left

    def find(self, guest: int) -> int | None:
        """Cache address at which the instruction at a guest EIP starts cleanly, when this translation has it.

        Counted code, and code that keeps a budget, is entered at the heads of runs only: what is entered in their midst would not count.
        """
        if self.counters and guest not in self.counters:
            return None
        at = self._clean_start(guest)
        return None if at is None else self.marks[at]

    def _clean_start(self, guest: int) -> int | None:
        """Which entry of the map that is. Others may begin at the same cache address."""
        at = -1
        try:
            while True:
                at = self.guests.index(guest, at + 1, self.body)
                if self.recovery[at] in (CLEAN, SHADOWED) and not (self.left and self.left[at]):
                    return at
        except ValueError:
            return None
