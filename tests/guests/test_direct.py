"""Every bundled guest kernel under the back-ends that translate nothing: `step` passes like QEMU, `trap` as far as x86 lets it.

Knows guests.toml and the way a VM is made. What slips under `trap` is written down here kernel by kernel.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from guest_kernels import missing_line
from tests.guests.hostile import random_names, run_all
from tests.guests.hostile_guests import written_guests
from tests.guests.test_bt import ALIKE, GUESTS, empty_disk, qemu_consoles, run
from tests.guests.test_qemu import QEMU
from vmm.backends.step import StepOptions
from vmm.backends.trap import TrapOptions
from vmm.exits import End

SHOWN = [  # what a kernel sees of the machine under it
    "SGDT gives what LGDT loaded",
    "SIDT gives what LIDT loaded",
    "STR gives what LTR loaded",
    "SLDT gives the null LDT",
    "CS, SS, DS, ES read as loaded",
    "far call to a second code segment and back",
    "LAR, LSL, VERR and VERW show the kernel's descriptors",
]
CRITICAL = ["IF is clear in the critical section", "the clock ticks behind it"]  # PUSHF shows the physical IF, and POPF loses the virtual one
LOST = ["CLI, STI, PUSHF and POPF agree about IF", "POPF changes IOPL at CPL 0"]
A_RETURN_TO_USERS = r"unexpected trap: vector (13|14|128) error \w+ eip \w+ cr2 \w+ from kernel"  # with ring 3 it changes no mode
UNSEEN = ["cli_sti: 3", "pushf_popf: 3", "iret: 3"]  # virtual IF is clear, and PUSHF shows the physical one
FAILS: dict[tuple[int, str], list[str]] = {
    (1, "rings"): [*SHOWN, *LOST],
    (1, "faults"): ["a segment of the LDT", "an interrupt gate clears IF until IRET"],
    (1, "lost-if"): CRITICAL,
    (1, "nano"): UNSEEN,
    (3, "nano"): [A_RETURN_TO_USERS],
    (3, "work"): [A_RETURN_TO_USERS],
    (3, "lost-if"): CRITICAL,
    (3, "rings"): [*SHOWN, *LOST, A_RETURN_TO_USERS],
    (3, "faults"): ["#GP: a user segment into SS: .*", A_RETURN_TO_USERS],
    (3, "faults-pae"): [A_RETURN_TO_USERS],
    (3, "faults-io"): [A_RETURN_TO_USERS],
    (3, "faults-step"): [A_RETURN_TO_USERS],
    (3, "smc"): [A_RETURN_TO_USERS],
    (3, "mono"): [A_RETURN_TO_USERS],
    (3, "mono-whole"): [A_RETURN_TO_USERS],
}
# IRET to a user loses IF for good: no timer interrupt ever ends the first process's turn, or the counter's.
NEVER_ENDS = {(1, "rings"), (1, "mono-whole"), *((ring, name) for ring in (1, 3) for name in ("ukernel", "ukernel-whole"))}


@pytest.mark.parametrize("name", GUESTS)
def test_passes_under_step(name: str, tmp_path: Path) -> None:
    """Status and console lines are those of guests.toml in every run, and the console is, to the byte, QEMU's where that is installed."""
    guest = GUESTS[name]
    disk = empty_disk(guest, tmp_path)
    references = qemu_consoles(name) if name in ALIKE and shutil.which(QEMU) else [None] * len(guest.runs())
    for expected, reference in zip(guest.runs(), references, strict=True):
        status, printed, vm = run(guest, StepOptions(), disk)
        assert (status, missing_line(printed, expected)) == (guest.status, None), printed
        assert reference is None or printed == reference
        assert vm.stats.architectural["single step"] > vm.stats.callouts.total() > 0


@pytest.mark.parametrize("ring", (1, 3))
@pytest.mark.parametrize("name", ALIKE)
def test_what_slips_under_trap(name: str, ring: int, tmp_path: Path) -> None:
    """Each kernel fails in exactly the lines that stand above, and ends by its own report but for one."""
    guest, slips = GUESTS[name], FAILS.get((ring, name), [])
    disk = empty_disk(guest, tmp_path)
    for expected in guest.runs():
        _, printed, vm = run(guest, TrapOptions(ring=ring), disk, timeout=(5 if slips else 2) if (ring, name) in NEVER_ENDS else None)
        failed = re.findall(r"^FAIL: (.*?)\r?$", printed, re.MULTILINE)
        assert len(failed) == len(slips), printed
        assert all(re.fullmatch(slip, line) or slip == line for slip, line in zip(slips, failed, strict=True)), failed
        assert vm.stopped is not None
        if (ring, name) in NEVER_ENDS:
            assert vm.stopped.why is End.TIMEOUT
            assert not vm.vcpu.interrupts_on
        elif slips:
            assert vm.stopped.why is End.REPORTED
            assert vm.stopped.value == len(slips)
        else:
            assert vm.stopped.why is (End.DIED if guest.status == 3 else End.REPORTED)
            assert missing_line(printed, expected) is None, printed


@pytest.mark.parametrize("backend", ("step", "trap", "trap-3"))
def test_hostile_guests(backend: str) -> None:
    """A part of the guests that run wild, and of the random ones: all end with a kind of end and a reason."""
    turn = len(backend)
    names = [*list(written_guests())[turn::8], *random_names(320, turn)[::8]]
    ended, complaint = run_all(names, ring=backend, cached=True, timeout=0.05)
    assert not complaint, complaint
    assert not [name for name, end in ended.items() if not end.reason]
    assert not {name: end.seconds for name, end in ended.items() if end.seconds > 1}
