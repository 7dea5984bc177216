"""Modelled cycles: what the exits of a run would cost on real CPUs, by the price list in costs.toml.

Knows that list and which of its prices an exit has. Knows no time: what is measured and what is modelled are never mixed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final, TypedDict

from tools.compare.model import WAYS

CALLOUTS: Final = frozenset(("callout", "chain", "indirect miss"))
"""Exits of translated code that a VMM in the same address space serves by a call: the others need a change of privilege."""


class Price(TypedDict):
    """Cycles; standing: published, recalled or assumed."""

    cycles: int
    standing: str
    source: str


class CpuModel(TypedDict):
    """The prices of one real CPU."""

    name: str
    vm_exit: Price
    ring_crossing: Price
    callout: Price


class PublishedTable(TypedDict):
    """Somebody else's results. rows: cycles by column."""

    source: str
    columns: list[str]
    rows: dict[str, list[int]]


class ExitCosts(TypedDict):
    """Somebody else's figures for a bare exit."""

    source: str
    columns: list[str]
    cycles: list[int]


class _File(TypedDict):
    machines: dict[str, CpuModel]
    work: dict[str, int]
    published: PublishedTable
    exit_costs: ExitCosts


@dataclass(frozen=True, slots=True)
class Costs:
    """The price list. work: cycles of the VMM's own by reason, "other" for the rest."""

    machines: Mapping[str, CpuModel]
    work: Mapping[str, int]
    published: PublishedTable
    exit_costs: ExitCosts

    def cycles(self, way: str, exits: Mapping[str, float]) -> dict[str, float]:
        """Cycles that architectural exits cost, on each machine; nothing for ways whose exits nobody counts."""
        words = WAYS[way].words
        if words is None:
            return {}
        hardware = words["backend"] == "hw"
        found = {}
        for name, machine in self.machines.items():
            total = 0.0
            for reason, count in exits.items():
                transition = machine["vm_exit"] if hardware else machine["callout"] if reason in CALLOUTS else machine["ring_crossing"]
                total += count * (transition["cycles"] + self.work.get(reason, self.work["other"]))
            found[name] = total
        return found


@cache
def costs() -> Costs:
    """The list as it is shipped."""
    rows: _File = tomllib.loads((files("tools.compare") / "costs.toml").read_text("utf-8"))  # type: ignore[assignment]
    return Costs(rows["machines"], rows["work"], rows["published"], rows["exit_costs"])
