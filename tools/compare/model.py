"""What is compared: ways of running a guest, guests and their rows, the cell where one meets the other, and what is read of it.

Plain data. Knows the names that a user types and which of them go together; runs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tools.fetch_guests import guest
from vmm.errors import InputError


@dataclass(frozen=True, slots=True)
class Way:
    """One way of running guest code. words: the options of `vmm run` that it stands for, None for a program that is not ours.

    paravirtual: it runs kernels for Xen, and no others.
    """

    name: str
    words: Mapping[str, str] | None
    description: str
    paravirtual: bool = False


WAYS: Final = {
    way.name: way
    for way in (
        Way("native", {"backend": "native"}, "the bare machine, no VMM under the guest"),
        Way("bt", {"backend": "bt"}, "binary translation, kernel at CPL 1, emulation in the cache"),
        Way("bt-trap", {"backend": "bt", "stubs": "trap"}, "binary translation, kernel at CPL 1, trapping stubs only"),
        Way("bt-3", {"backend": "bt", "ring": "3"}, "binary translation, kernel at CPL 3, emulation in the cache"),
        Way("bt-3-trap", {"backend": "bt", "ring": "3", "stubs": "trap"}, "binary translation, kernel at CPL 3, trapping stubs only"),
        Way("pv", {"backend": "pv"}, "paravirtualization, direct paging", paravirtual=True),
        Way("hw", {"backend": "hw", "mmu": "nested"}, "hardware assist, nested paging"),
        Way("hw-shadow", {"backend": "hw", "mmu": "shadow"}, "hardware assist, shadow paging"),
        Way("trap", {"backend": "trap"}, "trap and emulate, deprivileged and untranslated"),
        Way("step", {"backend": "step"}, "every instruction one at a time under the VMM"),
        Way("qemu", None, "outside: qemu-system-i386 with TCG"),
        Way("unicorn", None, "outside: a bare Unicorn engine with port hooks and nothing else"),
    )
}
SHORT_WAYS: Final = ("native", "bt", "bt-trap", "pv", "hw", "hw-shadow")


@dataclass(frozen=True, slots=True)
class Boot:
    """A real kernel that is run until it prints `until`. path: where it is; None when it is absent, and then `absent` says how to get it."""

    path: Path | None
    append: str
    until: str
    memory_mib: int
    absent: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """A guest that is compared. rows: its rows, in order. boot: for kernels that are only booted, by flavour: "pc", "xen".

    file: the bundled kernel for a flavour of one whose rows are chosen by its command line.
    """

    name: str
    rows: tuple[str, ...]
    description: str
    file: Mapping[str, str] = field(default_factory=dict)
    boot: Mapping[str, Boot] = field(default_factory=dict)


NANO: Final = (
    "null", "syscall", "in", "out", "cli_sti", "pushf_popf", "callret", "iret", "cr3wr", "cr0rd", "cpuid", "pgfault", "divzero",
    "ptemod_cold", "ptemod_hot", "ptemod_batch", "invlpg", "ctxswitch", "hlt_wake",
)  # fmt: skip
WORK: Final = ("compute", "stream", "sort", "forkwait", "pipe", "mix", "file")
SHORT: Final = ("syscall", "cli_sti", "callret", "cr3wr", "ptemod_cold", "forkwait")
_FETCH: Final = "python -m tools.fetch_guests gets it"


def kernels() -> dict[str, Kernel]:
    """The kernels by name; where real ones are is looked up now."""
    tree = os.environ.get("XV6")
    xv6 = Path(tree) / "kernelmemfs" if tree else None
    mach = Boot(guest("gnumach"), "console=com0", "No bootstrap code loaded with the kernel!", 128, _FETCH)
    found = (
        Kernel("nano", NANO, "what privileged operations cost", {"pc": "nano", "xen": "nano-pv"}),
        Kernel("work", WORK, "what programs and kernels do all day", {"pc": "work", "xen": "work-pv"}),
        Kernel(
            "mach", ("mach",), "GNU Mach's boot, natively and for Xen",
            boot={"pc": mach, "xen": Boot(guest("gnumach-xen"), mach.append, mach.until, mach.memory_mib, _FETCH)},
        ),
        Kernel(
            "xv6", ("xv6",), "xv6's boot to its shell",
            boot={"pc": Boot(xv6 if xv6 and xv6.is_file() else None, "", "init: starting sh", 256, "XV6=DIR names a built xv6-public tree")},
        ),
        Kernel(
            "linux", ("linux",), "Linux's boot until it looks for a root file system",
            boot={"pc": Boot(guest("linux-pae"), "console=ttyS0 nolapic noapic acpi=off pci=off", "VFS: Unable to mount root fs", 256, _FETCH)},
        ),
    )  # fmt: skip
    return {kernel.name: kernel for kernel in found}


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of one kernel under one way."""

    kernel: str
    row: str
    way: str


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run of a cell showed. Either `reason` says why there is nothing, or the rest is there.

    count: how often the row's work was done. cpu_ns, wall_ns: for all of it. The counts are for all of it as well, and what measuring itself
    took is not in them: exits by reason, architectural ones and engine assists; emulated instructions; hypercalls. retired: instructions,
    where virtual time counts them.
    """

    reason: str = ""
    count: int = 0
    cpu_ns: int = 0
    wall_ns: int = 0
    architectural: Mapping[str, int] = field(default_factory=dict)
    engine: Mapping[str, int] = field(default_factory=dict)
    callouts: Mapping[str, int] = field(default_factory=dict)
    hypercalls: Mapping[str, int] = field(default_factory=dict)
    retired: int | None = None


def chosen_ways(text: str | None, short: bool) -> tuple[Way, ...]:
    """The ways that "bt,hw" names; all, or those of the short set, when nothing was named. Raises InputError."""
    names = (SHORT_WAYS if short else tuple(WAYS)) if text is None else tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in WAYS:
            raise InputError(f"--backends {name}: must be of {', '.join(WAYS)}")
    return tuple(WAYS[name] for name in names)


def chosen_cells(names: Sequence[str], rows: str | None, ways: Sequence[Way], short: bool) -> list[Cell]:
    """The cells of the kernels named (those that are bundled or present, when none is) and their rows named. Raises InputError.

    Cells of one row follow one another, so that they are measured under the same circumstances.
    """
    every = kernels()
    for name in names:
        if name not in every:
            raise InputError(f"{name}: no such kernel to compare (there are {', '.join(every)})")
    wanted = None if rows is None else tuple(dict.fromkeys(rows.split(",")))
    if names:
        kept = [every[name] for name in dict.fromkeys(names)]
    else:
        kept = [kernel for kernel in every.values() if wanted is not None or kernel.file or any(boot.path for boot in kernel.boot.values())]
    if wanted is None and short:
        wanted = tuple(row for kernel in kept for row in kernel.rows if row in SHORT or kernel.name in names and not kernel.file)
    known = [row for kernel in kept for row in kernel.rows]
    for row in wanted or ():
        if row not in known:
            raise InputError(f"--rows {row}: must be of {', '.join(known)}")
    return [Cell(kernel.name, row, way.name) for kernel in kept for row in kernel.rows if wanted is None or row in wanted for way in ways]
