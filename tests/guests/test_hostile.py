"""Guests that run wild end with a kind of end and a reason, or at the time-out: never with an exception, never with the process.

Knows which guests there are. Every one runs in a process that the test watches, several to a process.
"""

from __future__ import annotations

import pytest

from tests.guests.hostile import random_names, run_all
from tests.guests.hostile_guests import written_guests
from vmm.exits import End

TIMEOUT, RANDOM_TIMEOUT = 0.1, 0.05  # seconds: enough for each to get where it does its harm
CPU_LIMIT = 1.0  # seconds that a guest may take in spite of the time-out
GROUPS, RANDOM_COUNT = 8, 320

NAMES = list(written_guests())
CONFIGURATIONS = ((1, True), (3, True), (1, False), (3, False))  # ring, stubs in the cache


def check(names: list[str], ring: int | str, cached: bool, timeout: float) -> None:
    """Runs the guests and fails with the name of the one that ended the process, took too long, or ran kernel code outside the cache."""
    ended, complaint = run_all(names, ring=ring, cached=cached, timeout=timeout)
    assert not complaint, complaint
    assert {end.why for end in ended.values()} <= set(End.__members__)
    assert not [name for name, end in ended.items() if not end.reason]
    assert not {name: end.seconds for name, end in ended.items() if end.seconds > CPU_LIMIT}
    assert not {name: end.outside for name, end in ended.items() if end.outside}


@pytest.mark.parametrize("group", range(GROUPS))
@pytest.mark.parametrize("how", range(2))
def test_written_guests(how: int, group: int) -> None:
    """Each guest with the usual ring and stubs, and once more with one of the other three combinations, taken in turn."""
    if how == 0:
        check(NAMES[group::GROUPS], *CONFIGURATIONS[0], TIMEOUT)
    else:
        for turn in range(3):
            check(
                [name for index, name in enumerate(NAMES) if index % GROUPS == group and index // GROUPS % 3 == turn],
                *CONFIGURATIONS[1 + turn],
                TIMEOUT,
            )


@pytest.mark.parametrize("group", range(3))
@pytest.mark.parametrize("ring", (1, 3))
def test_random_code(ring: int, group: int) -> None:
    """Blobs of random bytes, each opcode first once, in kernel and user mode, with paging and without, with handlers and without."""
    check(random_names(RANDOM_COUNT, ring)[group::3], ring, True, RANDOM_TIMEOUT)


@pytest.mark.parametrize("group", range(2))
@pytest.mark.parametrize("backend", ("native", "hw", "hw-shadow"))
def test_at_their_own_privilege_levels(backend: str, group: int) -> None:
    """Every fourth written guest and 80 random ones where little or nothing stands between them and the CPU: the process outlives them all."""
    check(NAMES[group::8], backend, True, TIMEOUT)
    check(random_names(RANDOM_COUNT, 0)[group::8], backend, True, RANDOM_TIMEOUT)


@pytest.mark.parametrize(
    ("name", "why", "reason"),
    (
        ("jump-nowhere", "DIED", "no memory"),
        ("over-the-end-of-ram", "DIED", "no memory"),
        ("wipe-tables", "DIED", "triple fault"),
        ("wipe-all-with-ones", "DIED", "triple fault"),
        ("triple", "DIED", "triple fault"),
        ("hlt", "DIED", "halted for good"),
        ("gdt-behind-ram-17", "DIED", "triple fault"),
        ("cr3-behind-ram", "DIED", ""),
        ("push-loop", "TIMEOUT", "time-out"),
        ("smc-own-loop", "TIMEOUT", "time-out"),
        ("iret-to-v86", "UNSUPPORTED", "virtual-8086"),
    ),
)
def test_the_reason_says_what_happened(name: str, why: str, reason: str) -> None:
    """The kind of end and the reason are those that the guest's author had in mind: the guests do what their names say."""
    ended, complaint = run_all([name], ring=1, cached=True, timeout=0.5)
    assert not complaint, complaint
    assert ended[name].why == why
    assert reason in ended[name].reason
