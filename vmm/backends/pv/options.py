"""How the pv back-end works: what the user may choose."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PvOptions:
    """strict: as Xen does, stores into page tables are emulated for the lowest level only."""

    strict: bool = False

    @property
    def backend(self) -> str:
        """The back-end's name."""
        return "pv"
