"""Memory of a guest: its own page tables, and what the CPU walks in their place. Each back-end chooses what its VM has.

Knows the contract between what emulates instructions and those parts; knows none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Mmu(Protocol):
    """What the CPU walks for a guest. fills: faults that filled entries."""

    fills: int

    def load(self, user: bool) -> None:
        """The guest's page-table pointer or paging mode has changed (`GuestPaging.load` comes first)."""
        ...

    def drop_roots(self) -> None:
        """Forgets all that was derived from guest tables; `load` must follow."""
        ...

    def invalidate(self, gva: int) -> None:
        """INVLPG."""
        ...

    def map_scratch(self, gva: int, hfn: int, user: bool) -> Callable[[], None]:
        """Maps a frame at `gva`, whatever the guest has there, for one instruction; the result undoes that."""
        ...


class Descriptors(Protocol):
    """What the CPU reads in place of the guest's descriptor tables."""

    def drop_all(self) -> None:
        """The guest loaded another table: forgets what was derived from the former one."""
        ...

    def loaded(self, selector: int) -> None:
        """A data segment register was loaded with `selector` at privilege level 0: the CPU may do that by itself until the descriptor changes."""
        ...

    def returned(self, selector: int) -> None:
        """IRET loaded CS with `selector` at privilege level 0: doing it again changes nothing until the descriptor changes."""
        ...
