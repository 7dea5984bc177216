"""Back-ends: what runs guest code until it exits. One file or folder each, found by name.

Knows the contract between a VM and its back-end, and how one is found; knows none of them. A module `vmm.backends.NAME` has a
function `machine(memory_size)` that makes a physical machine for one VM of so many bytes, and a function `build(vm, options)` that
puts the back-end's parts under the VM and returns the back-end. Where VMs can share a machine it has a function `room(memory_size)`:
bytes that such a VM takes in scattered frames, and in runs of consecutive ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from vmm.errors import InputError

if TYPE_CHECKING:
    from bt.cache import TranslationCache
    from vmm.machine import Machine
    from vmm.start import Start
    from vmm.vm import Vm


COUNTING = frozenset(("bt", "hw", "native", "pv", "step"))
"""The back-ends that count instructions: `--icount`."""


class Options(Protocol):
    """How a back-end works: what the user may choose. Each back-end has a class of its own."""

    @property
    def backend(self) -> str:
        """The back-end's name."""
        ...


class Backend(Protocol):
    """Runs guest code until it exits.

    The guest's state is exact whenever the monitor handles an exit. A back-end never touches a device and never decides what an exit
    means; it makes progress or exits, and delivers interrupts only at instruction boundaries, by the monitor. ring: CPL of the guest's kernel.
    """

    ring: int

    @property
    def caches(self) -> Mapping[str, TranslationCache]:
        """Translation caches by what code they hold; none where nothing is translated."""
        ...

    def start(self, start: Start) -> None:
        """Takes over the machine: hooks, control registers, and the CPU's state at the guest's first instruction."""
        ...

    def run(self) -> None:
        """Runs guest code until the engine is stopped: by the ticker, for a wait, or for good."""
        ...

    def retired(self) -> int:
        """Instructions retired so far, by the rule of `vmm.icount`; exact whenever the guest or a device can ask."""
        ...

    def settle(self) -> None:
        """Between two runs: gets the guest to an instruction boundary with nothing under way, and the vCPU exact: all of the guest is in the vCPU."""
        ...

    def restored(self) -> None:
        """EFER and MSRs of the vCPU are another guest's; the other registers will be loaded next, as a guest loads them."""
        ...

    def synchronize(self) -> None:
        """Makes the vCPU exact, as near as the place allows, for reports on a stopped VM."""
        ...

    def interrupts_changed(self, pending: bool) -> None:
        """The interrupt controllers' output changed."""
        ...

    def control_changed(self) -> None:
        """An emulated instruction changed the guest's CR0 or CR4."""
        ...

    def tables_changed(self) -> None:
        """An emulated instruction brought other guest page tables into use."""
        ...

    def page_invalidated(self, gva: int) -> None:
        """INVLPG was emulated."""
        ...

    def step(self, done: Callable[[bool], None]) -> None:
        """Lets the one instruction at the vCPU's EIP run; then done(completed) is called, before anything else happens."""
        ...

    def memory_access(self, write: bool) -> tuple[int, bool, bool]:
        """(bytes, reads, writes) of the memory operand of the instruction at the vCPU's EIP. write: the fault that led here was one."""
        ...


def machine(options: Options, memory_size: int) -> Machine:
    """A physical machine for one VM of `memory_size` bytes under the back-end that `options` are for."""
    maker = cast("Callable[[int], Machine]", import_module(f"vmm.backends.{options.backend}").machine)
    return maker(memory_size)


def room(options: Options, memory_size: int) -> tuple[int, int]:
    """Bytes that a VM of `memory_size` bytes takes of a machine that it shares: in scattered frames, and in runs. Raises InputError."""
    needs = getattr(import_module(f"vmm.backends.{options.backend}"), "room", None)
    if needs is None:
        raise InputError(f"--backend {options.backend}: the guest has the whole machine: it cannot share one")
    return cast("Callable[[int], tuple[int, int]]", needs)(memory_size)


def build(vm: Vm, options: Options) -> Backend:
    """Makes the back-end that `options` are for, with its parts: memory, paging, linear, mmu, descriptors and vcpu of `vm`."""
    maker = cast("Callable[[Vm, Options], Backend]", import_module(f"vmm.backends.{options.backend}").build)
    return maker(vm, options)
