"""Every bundled guest kernel in guest mode: what guests.toml expects, and the very console that QEMU's run of it shows.

Knows guests.toml and the way a VM is made. QEMU is the oracle: where it is not installed, only guests.toml is.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from guest_kernels import missing_line
from tests.guests.test_bt import ALIKE, GUESTS, empty_disk, qemu_consoles, run
from tests.guests.test_qemu import QEMU
from tests.require import require
from vmm.backends.hw import HwOptions


@pytest.mark.parametrize("mmu", ("nested", "shadow"))
@pytest.mark.parametrize("name", GUESTS)
def test_passes_in_guest_mode(name: str, mmu: str, tmp_path: Path) -> None:
    """Status and console lines are those of guests.toml in every run."""
    guest = GUESTS[name]
    disk = empty_disk(guest, tmp_path)
    for expected in guest.runs():
        status, printed, vm = run(guest, HwOptions(mmu=mmu), disk)
        assert (status, missing_line(printed, expected)) == (guest.status, None), printed
        assert vm.stats.architectural["port"]


@pytest.mark.parametrize("name", ALIKE)
def test_console_is_that_of_qemu(name: str, tmp_path: Path) -> None:
    """The whole console of each run is, to the byte, what the same kernel prints on QEMU."""
    require(QEMU)
    guest = GUESTS[name]
    disk = empty_disk(guest, tmp_path)
    for reference in qemu_consoles(name):
        _, printed, _ = run(guest, HwOptions(), disk)
        assert printed == reference
