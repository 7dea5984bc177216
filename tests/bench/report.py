"""The table of docs/PERFORMANCE.md: its rows, their bounds, and how it gets into the file.

Knows the file's markers. Knows nothing of how a figure is measured.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent.parent / "docs" / "PERFORMANCE.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True, slots=True)
class Row:
    """A figure that must not exceed `bound`."""

    what: str
    against: str
    bound: float


ROWS: dict[str, Row] = {
    "boot": Row("xv6 boot to its prompt, CPU time of the whole process", "`qemu-system-i386` (TCG)", 2),
    "forktest": Row("xv6 `forktest`, CPU time", "`qemu-system-i386` (TCG)", 3),
    "icount": Row("xv6 `forktest` under `--icount`, CPU time", "the same in real time", 4),
    "translate_user": Row("xv6 `forktest` under `--user translate`, CPU time", "user code run directly", 1.5),
    "store": Row("stores in guest code", "the same loop on a bare Unicorn engine with one RWX map", 0.2),
    "load": Row("loads", "bare Unicorn", 1.1),
    "register": Row("register loops", "bare Unicorn", 1.1),
    "push": Row("push and pop", "bare Unicorn", 1.1),
    "call": Row("call and return in the translation cache", "direct execution of the same code in user mode", 2.5),
    "exits": Row("exits of cli, sti, pushf and popf in steady state", "(a count, of 100,000 rounds)", 0),
    "translate": Row("translation of one instruction", "an empty `UC_HOOK_INTR` callback", 10),
    "pv-null": Row("a hypercall that does nothing", "an empty `UC_HOOK_INTR` callback", 4),
    "pv-update": Row("a validated update of one page-table entry by hypercall", "such a callback", 8),
    "pv-batch": Row("one entry in a batch of 256", "such a callback", 1),
    "pv-pin": Row("the validated pin of a full table and its unpin, the hypercall itself aside", "such a callback", 40),
    "pv-user": Row("loads and stores of user code under direct paging", "direct execution under shadow tables", 1.1),
    "pv-rings": Row("system calls and batched page-table updates under pv", "the same under bt", 0.6),
    "linux-pae": Row("Linux with PAE to its shell under hw, CPU time of the whole process", "`qemu-system-i386` (TCG)", 1.3),
    "linux": Row("Linux without PAE, the same", "`qemu-system-i386` (TCG)", 3),
    "linux-amd64": Row("Linux for amd64, the same", "`qemu-system-x86_64` (TCG)", 1.5),
    "bt-boot": Row("Linux with PAE from its own entry to the end of its boot under bt, CPU time", "the same under hw", 1.5),
    "bt-getppid": Row("getppid of its processes", "the same under hw", 1.5),
    "bt-fork": Row("fork, exit and wait", "the same under hw", 2),
    "bt-yield": Row("a switch by sched_yield", "the same under hw", 2),
    "bt-touch": Row("the first touch of a page", "the same under hw", 1.5),
    "hw-syscall": Row("SYSCALL and SYSRET of a 64-bit guest's users", "empty callbacks", 15),
    "hw-cpuid": Row("an exit that is handled and resumed (CPUID) under hw", "an empty `UC_HOOK_INTR` callback", 4),
    "hw-port": Row("a port access", "such a callback", 3),
    "hw-interrupt": Row("an interrupt: from the rise of a device's line to the handler, and back", "such a callback", 15),
    "hw-request": Row("one that the guest asks its local APIC for, with the request and the end of interrupt", "such a callback", 25),
    "world-switch": Row("a world switch from one VM to another on the same machine", "such a callback", 20),
    "snapshot": Row("a snapshot of an idle Linux guest of 128 MiB, as a durable file", "(s)", 1),
    "snapshot-size": Row("its size", "(MiB)", 40),
    "snapshot-changes": Row("the changes since, after half a second", "(s)", 0.2),
    "restore": Row("from the file to a guest about to run", "(s)", 0.5),
    "idle": Row("eight idle VMs, each a process, whose guests wait for a key: CPU time", "(% of one core)", 5),
    "idle-linux": Row("eight idle Linux guests of 128 MiB, whose timer ticks on", "(% of one core)", 80),
    "vm-memory": Row("memory of such a process beside the guest's own", "(MiB; of pages that they share, a part each)", 60),
    "dump": Row("`vmm dump` of a run of 5,000 instructions, whole process", "(s)", 2),
    "start": Row("`vmm run hello`, whole process", '`python -c "import unicorn, capstone"`', 4),
    "memory": Row("memory beside the guest's own, xv6 after 300 rounds of `forktest`", "(MiB)", 80),
    "growth": Row("growth of resident size over 200 rounds of `forktest`", "(MiB; 2 are the allocator's unrest)", 2),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value, and in words what it is made of."""

    value: float
    made_of: str


def table(figures: dict[str, Figure]) -> str:
    """The machine and the table, as Markdown."""
    lines = [f"Machine: {machine()}.", "", "| what | measured against | at most | measured | that is |", "|---|---|---|---|---|"]
    for key, row in ROWS.items():
        figure = figures.get(key)
        value, made_of = (f"{figure.value:.3g}", figure.made_of) if figure else ("not measured", "")
        lines.append(f"| {row.what} | {row.against} | {row.bound:g} | {value} | {made_of} |")
    return "\n".join(lines)


def write(figures: dict[str, Figure]) -> None:
    """Puts the table between the file's markers."""
    before, _, rest = FILE.read_text().partition(BEGIN)
    FILE.write_text(f"{before}{BEGIN}\n{table(figures)}\n{END}{rest.partition(END)[2]}")


def machine() -> str:
    """The machine in a few words: processor, number of cores, system, Python."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release().partition('-')[0]}, Python {platform.python_version()}"
