"""The window in host memory: its frames, the tables that map it, the doorbell, and where in the linear space it lies.

Knows frames and page-table entries. Knows nothing of what is put into the window, and of the guest only, through a
function, what use it makes of linear ranges.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import cache

from bt.window import CODE, DOORBELL, SLOTS
from vmm.machine import FRAME, Machine
from vmm.mmu.host import NX, TABLE_ENTRY
from vmm.x86.bits import Pte

REGION = 0x200000
_DATA = 0x63 | NX  # P W A D
_CODE = 0x61  # P A D: executable, read-only
_FIRST_CHOICE, _FIRST_CHOICE_OF_USERS = 0xE8000000, 0xE4000000


class Use(IntEnum):
    """What the guest has in a region of the linear address space."""

    FREE = 0
    NOBODY = 1  # mapped to guest-physical addresses at which there is neither RAM nor a device
    TAKEN = 2


class NoRoom(Exception):
    """The guest maps the whole linear address space: the window lies nowhere."""


class Window:
    """A window of CODE bytes of data and `code_size` bytes (whole frames) of code, at linear `base`.

    user: reachable at CPL 3. guarded: only the first page of the data can be written by what runs there: the words that stubs write;
    with `counted` the slots as well, since counters are among them.
    """

    def __init__(self, machine: Machine, code_size: int, *, user: bool, guarded: bool = False, counted: bool = False) -> None:
        self.machine = machine
        self.rights = Pte.U if user else 0
        self.regions = -(-(CODE + code_size) // REGION)
        frames = (CODE + code_size) // FRAME
        first = machine.allocate_run(frames + self.regions)
        self.first, self.tables = first, first + frames
        start = first * FRAME
        self.data = machine.memory[start : start + CODE]
        self.code = machine.memory[start + CODE : start + CODE + code_size]
        quads = machine.quads
        for page in range(frames):
            read_only = guarded and page and not (counted and page >= SLOTS // FRAME)
            kind = _CODE if page >= CODE // FRAME else _DATA & ~Pte.W if read_only else _DATA
            quads[self.tables * 512 + page] = (first + page) << 12 | kind | self.rights
        self._bell = self.tables * 512 + DOORBELL // FRAME
        self.armed = True
        self.base = _FIRST_CHOICE_OF_USERS if guarded else _FIRST_CHOICE
        if guarded:
            quads[self._bell] = 0  # users set no IF
        else:
            self.ring(False)

    def ring(self, armed: bool) -> None:
        """Arms the doorbell: stores through it trap. Or disarms it. Nothing happens when it is so already."""
        if armed == self.armed:
            return
        if armed:
            self.machine.quads[self._bell] = 0
            self.machine.flush_tlb()
        else:
            self.machine.quads[self._bell] = self.first << 12 | _DATA | self.rights
        self.armed = armed

    def entries(self) -> dict[int, int]:
        """Region to upper page-table entry, at the present base."""
        first = self.base // REGION
        return {first + n: (self.tables + n) << 12 | TABLE_ENTRY for n in range(self.regions)}

    def place(self, use: Callable[[int], Use]) -> None:
        """Chooses a base where the guest maps nothing, the present one first; failing that, one where it maps nobody's memory. Raises NoRoom."""
        known = cache(use)  # of few regions: the present base is free nearly always
        candidates = (self.base // REGION, *range(2040 - self.regions, 0, -2))
        for worst in (Use.FREE, Use.NOBODY):
            for first in candidates:
                if all(known(region) <= worst for region in range(first, first + self.regions)):
                    self.base = first * REGION
                    return
        raise NoRoom

    def holds(self, gva: int) -> bool:
        """Whether a linear address lies in the window."""
        return 0 <= gva - self.base < self.regions * REGION

    def on_doorbell(self, gva: int) -> bool:
        """Whether a linear address lies on the doorbell page."""
        return gva - self.base & ~0xFFF == DOORBELL
