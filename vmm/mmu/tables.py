"""What shadow paging is made of: roots, leaves, and the outcomes of a page fault. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DeviceAccess:
    """The access reaches guest-physical memory without RAM: a device's, or nobody's."""

    gpa: int


@dataclass(frozen=True, slots=True)
class StepOver:
    """The frame may be written by the one instruction at hand; then `retrace(gfn)` must be called."""

    gfn: int


@dataclass(slots=True, eq=False)
class Root:
    """A top-level table. directories: quads index of each of the four page directories. leaves: region (gva >> 21) to Leaf.

    late: regions that were linked while their directory was open, with its entry then.
    """

    key: tuple[int, ...]
    frames: list[int]
    directories: list[int]
    user: bool
    leaves: dict[int, Leaf] = field(default_factory=dict)
    watched: list[int] = field(default_factory=list)
    late: dict[int, int] = field(default_factory=dict)
    legacy: bool = False  # for a CPU in legacy mode, whose PAE tables begin at the second level

    @property
    def cr3(self) -> int:
        return self.frames[self.legacy] << 12


@dataclass(slots=True, eq=False)
class Leaf:
    """A lowest-level shadow table: 512 entries at `at` (quads index).

    gfn: the guest table behind it, -1 for a large page. half: which 512 of its entries. guest: index of the first of them, in
    32-bit words or quads by their width; -1 when the table lies outside RAM. directory: the upper guest entry, for its rights.
    barren: how many times in a row filling around a fault found nothing to fill. late: entries that were filled while the guest table was
    out of sync, with its entry then: it may have changed more than once since. watched: entries that something else than mappings is derived
    from; changes: how often such an entry was found to have changed.
    """

    key: tuple[int, ...]
    hfn: int
    gfn: int
    half: int
    at: int
    guest: int
    directory: int
    barren: int = 0
    late: dict[int, int] = field(default_factory=dict)
    watched: set[int] = field(default_factory=set)
    changes: int = 0
    links: set[tuple[Root, int]] = field(default_factory=set)
