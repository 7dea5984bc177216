"""`vmm compare --explain`: what it shows of each technique is what was at work."""

from __future__ import annotations

import re

import pytest

from tools.cli import status


def shown(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """What is printed."""
    assert status(["compare", *words]) == 0
    return capfd.readouterr().out


def test_translated_blocks(capfd: pytest.CaptureFixture[str]) -> None:
    """The row's own block, with the instruction that exits, as often as it was done; in the cache it exits never."""
    text = shown(capfd, "--explain", "cr3wr", "--backends", "bt")
    line = next(line for line in text.splitlines() if "mov cr3, edx" in line)
    assert "100 exits" in line and "callout" in line
    text = shown(capfd, "--explain", "cli_sti", "--backends", "bt,bt-trap")
    in_cache, trapping = ([line for line in half.splitlines() if re.search(r"  fa +cli ", line)] for half in text.split("== bt-trap"))
    assert in_cache and all("in-cache" in line and "exits" not in line for line in in_cache)
    assert trapping and all("callout" in line and "100 exits" in line for line in trapping)
    assert "2 exits: callout (cli, sti)" in text


def test_controls(capfd: pytest.CaptureFixture[str]) -> None:
    """Shadow paging asks for exits that nested paging does without."""
    nested, _, shadow = shown(capfd, "--explain", "invlpg", "--backends", "hw,hw-shadow").partition("== hw-shadow")
    assert "ENABLE_EPT" in nested and "INVLPG_EXITING" not in nested and "0 exits, in guest mode" in nested
    assert "INVLPG_EXITING" in shadow and "ENABLE_EPT" not in shadow and "1 exit: invlpg" in shadow


def test_hypercalls(capfd: pytest.CaptureFixture[str]) -> None:
    """By name and with arguments; the others have a line each."""
    text = shown(capfd, "--explain", "ptemod_cold", "--backends", "pv,step")
    assert "2 exits: hypercall (1 mmu_update, 1 mmuext_op)" in text and "\n  mmu_update(0x" in text
    assert "== step" in text and "single step" in text


def test_what_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    """The list of rows, status 2."""
    assert status(["compare", "--explain", "cr8wr"]) == 2
    assert "cr3wr" in capfd.readouterr().err
