"""`vmm compare --explain ROW`: the mechanism at work in each technique: the translated block, the VMCS controls, the hypercalls.

Knows where each back-end keeps what it works with. Measures no time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from enum import IntFlag
from typing import Final

from tools.compare.answers import mechanism
from tools.compare.cell import Meter, Wanted, measure
from tools.compare.model import WAYS, Cell, Way
from tools.compare.results import comparison
from tools.compare.runner import RowJob, RowSamples
from tools.dump.command import Wanted as WantedDump
from tools.dump.command import dump_kernel
from tools.session import Request
from tools.technique import Technique, options_of
from vmm.backends.hw.engine import Hardware
from vmm.backends.hw.vmcs import Field, Pin, Primary, Secondary, Vmcs
from vmm.errors import InputError
from vmm.exits import Exit, Hypercall
from vmm.observation import observe
from vmm.vcpu import Vcpu
from vmm.vm import Vm
from vmm.xen.hypercalls import HYPERCALLS

TIMEOUT: Final = 60.0
COUNT: Final = 50
MOST_CALLS: Final = 12
BLOCKS: Final = 1
_IN_KERNEL: Final = {"syscall": "system_call", "forkwait": "system_call", "pipe": "system_call", "mix": "system_call", "cpuid": "cpuid_row"}
_ARGUMENTS: Final = (3, 1, 2, 6, 7)  # EBX, ECX, EDX, ESI, EDI
_CONTROLS: Final[tuple[tuple[Field, type[IntFlag]], ...]] = (
    (Field.PIN_BASED_CONTROLS, Pin), (Field.PRIMARY_CONTROLS, Primary), (Field.SECONDARY_CONTROLS, Secondary),
)  # fmt: skip


def explain(kernel: str, row: str, ways: tuple[Way, ...]) -> None:
    """Prints, for each way, the row's mechanism in a line and what stands behind it."""
    shown: dict[str, Callable[[Cell], None]] = {"bt": _translated, "hw": _controls, "pv": _hypercalls}
    for way in ways:
        if way.words is None:
            continue
        cell = Cell(kernel, row, way.name)
        print(f"\n== {way.name}: {way.description}")
        print(_in_a_line(cell))
        if way.words["backend"] in shown:
            shown[way.words["backend"]](cell)


def _in_a_line(cell: Cell) -> str:
    job = RowJob(cell.kernel, cell.row, (cell.way,), 1, TIMEOUT)
    found = comparison([RowSamples(job, {cell.way: [measure(_wanted(cell))]})], 1, False)
    return mechanism(cell.way, found.rows[0].cells[cell.way])


def _wanted(cell: Cell) -> Wanted:
    return Wanted(cell, COUNT, TIMEOUT)


def _translated(cell: Cell) -> None:
    """The blocks of the row's function, each beside its translation, with counts."""
    words = WAYS[cell.way].words
    assert words is not None
    at: list[str] = []

    def ready(vm: Vm, _meter: Meter) -> None:
        for name in filter(None, (_IN_KERNEL.get(cell.row), f"{cell.kernel}_{cell.row}", cell.row)):
            with suppress(InputError):
                assert vm.start is not None
                vm.start.symbols.address(name)
                at.append(name)

    measure(_wanted(cell), ready)
    if not at:
        print("  (nothing to show: a kernel of its own, see vmm dump)")
        return
    options = options_of(Technique(**words))
    request = Request(kernel=cell.kernel, append=f"rows={cell.row} n={COUNT}", options=options, timeout=TIMEOUT, reboot=False)
    sys.stdout.flush()
    dump_kernel(request, WantedDump(at=at[0], blocks=BLOCKS, hot=True, static=False, form="text", output=None))


def _controls(cell: Cell) -> None:
    """What the VMM has asked the CPU to exit for."""
    kept: list[Vmcs] = []

    def ready(vm: Vm, _meter: Meter) -> None:
        assert isinstance(vm.backend, Hardware)
        kept.append(vm.backend.vmcs)

    measure(_wanted(cell), ready)
    for vmcs in kept:
        for field, flags in _CONTROLS:
            print(f"  {field.name}: {' '.join(flag.name or '' for flag in flags if vmcs[field] & flag) or '-'}")
        for field in (Field.EXCEPTION_BITMAP, Field.CR0_MASK, Field.CR4_MASK):
            print(f"  {field.name}: {vmcs[field]:#x}")


def _hypercalls(cell: Cell) -> None:
    """The first hypercalls of what is measured, with their arguments."""
    calls: list[str] = []

    def ready(vm: Vm, meter: Meter) -> None:
        def seen(exit_: Exit, vcpu: Vcpu) -> None:
            if isinstance(exit_, Hypercall) and meter.measuring and len(calls) < MOST_CALLS:
                known = HYPERCALLS.get(exit_.number)
                arguments = ", ".join(f"{vcpu.register(number):#x}" for number in _ARGUMENTS)
                calls.append(f"  {known.name if known else exit_.number}({arguments})")

        observe(vm, seen)

    measure(_wanted(cell), ready)
    print("\n".join(calls) or "  no hypercall")
