"""How the native back-end works: what the user may choose, which is nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NativeOptions:
    """The bare machine has no choices."""

    @property
    def backend(self) -> str:
        """The back-end's name."""
        return "native"
