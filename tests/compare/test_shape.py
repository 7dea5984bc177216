"""The shape of the results: how many architectural exits each way takes for each row, as the literature has it, counted exactly.

Times are measured elsewhere; here only counts matter, and they are the same in every run.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from tools.compare.cell import Wanted, measure
from tools.compare.model import NANO, WORK, Cell, Sample

COUNTED = ("native", "bt", "step")
COUNT = 100
TIMEOUT = 60.0


@cache
def sample(row: str, way: str, kernel: str = "nano", count: int = COUNT) -> Sample:
    """One run, under counted instructions where every way of the back-end counts them."""
    found = measure(Wanted(Cell(kernel, row, way), count, TIMEOUT, way.partition("-")[0] in COUNTED))
    assert not found.reason, found.reason
    assert found.count == count
    return found


def exits(row: str, way: str, kernel: str = "nano", count: int = COUNT) -> float:
    """Architectural exits for one time of the row's work."""
    return sum(sample(row, way, kernel, count).architectural.values()) / count


@pytest.mark.parametrize("row", ("null", "cli_sti", "pushf_popf", "callret", "cr0rd", "ptemod_hot"))
@pytest.mark.parametrize("way", ("bt", "bt-3"))
def test_binary_translation_takes_none(row: str, way: str) -> None:
    """What is emulated in the cache exits never: not once in a hundred times."""
    assert sample(row, way).architectural == {}


@pytest.mark.parametrize("row", ("cli_sti", "pushf_popf", "cr0rd"))
def test_trapping_stubs_take_one_for_each_instruction(row: str) -> None:
    """The same rows by the lecture's stubs."""
    assert exits(row, "bt-trap") == {"cr0rd": 1}.get(row, 2)


@pytest.mark.parametrize(
    "row", ("null", "syscall", "cli_sti", "callret", "divzero", "pgfault", "ptemod_cold", "ptemod_hot", "cr3wr", "invlpg", "ctxswitch")
)
def test_hardware_assist_takes_none_under_nested_paging(row: str) -> None:
    """The guest's own traps and page tables are its own business; that this CPU needs help with traps is counted apart."""
    assert sample(row, "hw").architectural == {}
    assert bool(sample(row, "hw").engine) == (row in ("syscall", "divzero", "pgfault"))


@pytest.mark.parametrize(("row", "most"), [("ptemod_cold", 1), ("cr3wr", 1), ("invlpg", 1), ("syscall", 0), ("divzero", 0), ("pgfault", 1)])
def test_hardware_assist_under_shadow_paging(row: str, most: int) -> None:
    """At most one exit for a change of a page-table entry with its INVLPG, and one for a load of CR3; a page fault exits too."""
    assert exits(row, "hw-shadow") == most


def test_hardware_assist_exits_for_what_it_must() -> None:
    """CPUID always exits."""
    assert sample("cpuid", "hw").architectural == {"cpuid": COUNT}


@pytest.mark.parametrize(("row", "kernel"), [("ptemod_batch", "nano"), ("forkwait", "work"), ("mix", "work")])
def test_paravirtualization_batches_page_tables(row: str, kernel: str) -> None:
    """Fewer exits about memory than under binary translation: one request for many entries, and no shadow to fill again."""
    of_memory = ("hidden page fault", "directory write", "callout", "hypercall")
    ours, theirs = (sum(sample(row, way, kernel, 10).architectural.get(reason, 0) for reason in of_memory) for way in ("pv", "bt"))
    assert 0 < ours < theirs


def test_a_system_call_under_binary_translation_is_one_exit() -> None:
    """The way back is not: IRET to directly run users is native at CPL 1, and an exit where the kernel has their privilege level."""
    for way, most in (("bt", {"system call": COUNT}), ("bt-3", {"system call": COUNT, "callout": COUNT})):
        assert measure(Wanted(Cell("nano", "syscall", way), COUNT, TIMEOUT)).architectural == most


def test_trap_and_emulate_goes_wrong_and_says_so() -> None:
    """POPF slips: the guest sees it, and so does the comparison."""
    found = measure(Wanted(Cell("nano", "pushf_popf", "trap"), COUNT, TIMEOUT))
    assert found.reason == f"wrong result: the guest says 'FAIL: pushf_popf: {COUNT}'"


TWICE = [(row, way) for row in ("syscall", "iret", "ctxswitch", "hlt_wake") for way in ("native", "bt", "bt-3-trap")]


@pytest.mark.parametrize(("row", "way"), [*TWICE, ("hlt_wake", "step")])
def test_counted_runs_are_the_same(row: str, way: str) -> None:
    """Exits and instructions of two runs under --icount are equal, with a timer among them."""
    one, two = (measure(Wanted(Cell("nano", row, way), 20, TIMEOUT, True)) for _ in range(2))
    assert not one.reason
    assert (one.architectural, one.engine, one.callouts, one.retired) == (two.architectural, two.engine, two.callouts, two.retired)
    assert one.retired


def test_the_same_instructions_whatever_runs_them() -> None:
    """A row's work is as long under every way that counts."""
    assert len({sample("syscall", way).retired for way in ("native", "bt", "bt-3", "step")}) == 1


@pytest.mark.parametrize("way", ("native", "bt", "bt-3-trap", "pv", "hw", "hw-shadow"))
def test_exits_of_two_comparisons_are_the_same(way: str) -> None:
    """Under --icount, in every row that the way can run: exits of each kind, and instructions, to the last one."""
    for kernel, rows in (("nano", NANO), ("work", WORK)):
        for row in rows:
            one, two = (replace(measure(Wanted(Cell(kernel, row, way), 3, TIMEOUT, True)), cpu_ns=0, wall_ns=0) for _ in range(2))
            assert one == two and not one.reason and one.retired, (row, one, two)
