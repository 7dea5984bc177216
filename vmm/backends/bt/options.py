"""How the bt back-end works: what the user may choose."""

from dataclasses import dataclass

from vmm.machine import MIB

MISTAKES = ("no-invalidate", "no-trace", "popf", "raw-ptp")
"""Classic mistakes that `--break` makes, one each."""


@dataclass(frozen=True, slots=True)
class BtOptions:
    """ring: CPL of the guest's kernel, 1 or 3. stubs_in_cache: `--stubs cache`. translate_user: `--user translate`.

    cache_size: bytes of translated code, whole frames, for the kernel's code and for users' code each. counted: translated code
    counts how often it runs (`vmm dump --hot`). adapt: what keeps faulting is translated again, and a page table that is written goes out of
    sync (docs/adr/0031); else each such access is a fault that is stepped over. broken: which of MISTAKES are made (docs/EXERCISES.md).
    """

    ring: int = 1
    stubs_in_cache: bool = True
    translate_user: bool = False
    cache_size: int = 16 * MIB
    counted: bool = False
    adapt: bool = True
    broken: frozenset[str] = frozenset()

    @property
    def backend(self) -> str:
        """The back-end's name."""
        return "bt"
