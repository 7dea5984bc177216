"""Page tables and descriptor tables where the CPU walks the guest's own: nothing stands in their place, so nothing is to be kept in step."""

from __future__ import annotations

from collections.abc import Callable


class NativeMmu:
    """The CPU's own paging unit: loads of control registers and INVLPG reach it by themselves."""

    fills = 0

    def load(self, user: bool) -> None:
        """The write of the control register has done it."""

    def drop_roots(self) -> None:
        """Nothing is derived from the guest's tables."""

    def invalidate(self, gva: int) -> None:
        """INVLPG is the CPU's own."""

    def map_scratch(self, gva: int, hfn: int, user: bool) -> Callable[[], None]:
        """Device memory is reached by its physical address: no instruction needs another page in its place."""
        raise AssertionError("no instruction is stepped on a bare machine")


class NativeDescriptors:
    """The guest's own descriptor tables."""

    def drop_all(self) -> None:
        """Nothing is derived from them."""

    def loaded(self, selector: int) -> None:
        """The CPU loads its segment registers itself."""

    def returned(self, selector: int) -> None:
        """IRET is the CPU's own."""
