"""The bundled guest kernels: which there are, how each is run, and what it must print.

Knows guests.toml and the prebuilt files beside it. Knows no VMM: it is read by `vmm kernels`, by tests, and by anybody's script.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypedDict

FOLDER = Path(__file__).resolve().parent


class _Row(TypedDict, total=False):
    file: str
    platform: str
    description: str
    command_line: str
    memory: int
    disk: int
    timeout: int
    groups: list[str]
    status: int
    console: list[str]
    console_again: list[str]


@dataclass(frozen=True, slots=True)
class Guest:
    """One kernel and one way of running it.

    platform: "pc", "pc64" for a PC with long mode, or "network" for one of a pair that needs the other, "damage" for one that
    damages itself and ends as it happens, "xen" for a paravirtual flavour.
    memory_mib: guest memory in MiB. disk_bytes: size of the raw image on the primary IDE master, all zeros at first; None for
    no disk. timeout_s: seconds. status: 0 all passed, 1 failures were reported, 3 the guest dies, as `vmm run` ends.
    console: whole lines that must appear in this order. console_again: the same for a second run on the same image; empty when
    there is no second run.
    """

    name: str
    platform: str
    file: Path
    description: str
    command_line: str
    memory_mib: int
    disk_bytes: int | None
    timeout_s: int
    groups: tuple[str, ...]
    status: int
    console: tuple[str, ...]
    console_again: tuple[str, ...]

    def runs(self) -> tuple[tuple[str, ...], ...]:
        """The expected console lines of each run, in order; later runs get the disk image as the run before left it."""
        return (self.console, self.console_again) if self.console_again else (self.console,)


def kernels(platform: str = "pc") -> dict[str, Guest]:
    """The bundled guests for a platform by name, in the order of guests.toml; "any" for those of every one."""
    return {name: guest for name, guest in _all().items() if platform in ("any", guest.platform)}


@cache
def _all() -> dict[str, Guest]:
    rows: dict[str, _Row] = tomllib.loads((FOLDER / "guests.toml").read_text(encoding="utf-8"))
    return {name: _guest(name, row) for name, row in rows.items()}


def missing_line(printed: str, expected: tuple[str, ...]) -> str | None:
    """The first line of `expected` that `printed` lacks, in order, or an unexpected "FAIL: " line; None when all is as it should be."""
    lines = printed.replace("\r\n", "\n").split("\n")
    for line in lines:
        if line.startswith("FAIL: ") and line not in expected:
            return line
    rest = iter(lines)
    return next((line for line in expected if line not in rest), None)


def _guest(name: str, row: _Row) -> Guest:
    return Guest(
        name=name,
        platform=row.get("platform", "pc"),
        file=FOLDER / "prebuilt" / row["file"],
        description=row["description"],
        command_line=row.get("command_line", ""),
        memory_mib=row["memory"],
        disk_bytes=row.get("disk"),
        timeout_s=row["timeout"],
        groups=tuple(row["groups"]),
        status=row["status"],
        console=tuple(row["console"]),
        console_again=tuple(row.get("console_again", [])),
    )
