"""How the hw back-end works: what the user may choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NAMES: Final = ("cpuid", "hlt", "cr0", "cr3", "cr4", "dr", "invlpg", "rdtsc", "rdpmc", "wbinvd", "descriptor")
"""Exits that can be asked for by name alone; those of NUMBERED take a number behind a colon."""
NUMBERED: Final = {"io": 0x10000, "msr": 1 << 32, "exception": 32}


@dataclass(frozen=True, slots=True)
class HwOptions:
    """mmu: "nested"; "shadow", until the guest goes to real mode; or "auto": for Linux shadow until it uses NX or real mode, else nested.

    exit_on: the exits wanted beside the least that are needed, as (name, number or 0).
    """

    mmu: str = "auto"
    exit_on: frozenset[tuple[str, int]] = frozenset()

    @property
    def backend(self) -> str:
        """The back-end's name."""
        return "hw"
