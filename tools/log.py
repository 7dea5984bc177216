"""The log of `-d`: a line for each event of the chosen kinds, in the manner of QEMU's.

Knows which method of a VM's parts each kind goes through, and puts itself before it; without `-d` nothing of this exists. The
lines are for people: their form is not stable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TextIO

from bt.block import Block, Mode
from bt.cache import TranslationCache
from vmm.devices.debug_ports import DebugConsole
from vmm.exits import Stopped
from vmm.faults import GuestFault, GuestPageFault
from vmm.mmu.shadow import ShadowMmu
from vmm.mmu.tables import DeviceAccess, StepOver

if TYPE_CHECKING:
    from vmm.vm import Vm

_SEABIOS = 0x402
_WIDTH = {1: "b", 2: "w", 4: "l", 8: "q"}


class Log:
    """Writes to `file`. `attach` once for each VM that is loaded and has not run."""

    def __init__(self, kinds: Collection[str], file: TextIO) -> None:
        self._kinds, self._file = kinds, file

    def attach(self, vm: Vm) -> None:
        """Logs what happens in `vm` from now on."""
        for kind, attach in (("int", self._events), ("exec", self._blocks), ("mmu", self._memory), ("io", self._devices), ("bios", self._firmware)):
            if kind in self._kinds:
                attach(vm)

    def _line(self, kind: str, text: str) -> None:
        self._file.write(f"{kind}: {text}\n")

    def _events(self, vm: Vm) -> None:
        """Every try to deliver an event: a fault on the way makes the next line, up to the triple fault."""
        number = 0

        def wrap(deliver: Callable[..., None]) -> Callable[..., None]:
            def delivered(vector: int, error: int | None, **how: Any) -> None:
                nonlocal number
                vcpu = vm.vcpu
                kind = "int" if how["software"] else "irq" if how["external"] else "exc"
                code = "----" if error is None else f"{error:04x}"
                self._line(
                    "int",
                    f"{number:6}: v={vector:02x} e={code} {kind} cpl={vcpu.cpl} IP={vcpu.cs.selector:04x}:{vcpu.eip:08x}"
                    f" SP={vcpu.ss.selector:04x}:{vcpu.esp:08x} CR2={vcpu.cr2:08x} {_name(vm, vcpu.eip)}".rstrip(),
                )
                number += 1
                try:
                    deliver(vector, error, **how)
                except GuestPageFault as fault:
                    self._line("int", f"        cannot be delivered: page fault at {fault.gva:08x}, e={fault.error or 0:04x}")
                    raise
                except GuestFault as fault:
                    self._line("int", f"        cannot be delivered: v={fault.vector:02x} e={fault.error or 0:04x}")
                    raise
                except Stopped as stopped:
                    self._line("int", f"        {stopped.stop.reason}")
                    raise

            return delivered

        _put_before(vm.events, "_deliver", wrap)
        vm.monitor.inject = lambda vector: False  # what the CPU delivers by itself makes no line

    def _blocks(self, vm: Vm) -> None:
        """Every block when it is translated."""
        for cache in vm.backend.caches.values():
            self._blocks_of(vm, cache)

    def _blocks_of(self, vm: Vm, cache: TranslationCache) -> None:
        def wrap(install: Callable[..., int]) -> Callable[..., int]:
            def installed(block: Block, mode: Mode, source: list[tuple[int, int, bytes]]) -> int:
                address = install(block, mode, source)
                size = sum(len(instruction.raw) for instruction in block.instructions)
                made = cache.translation_at(address)
                into = f"{len(made.code)} bytes at {made.start:08x}" if made else f"{address:08x}"
                made_of = f"{len(block.instructions)} instructions, {size} bytes"
                self._line("exec", f"{block.entry:08x} {made_of} -> {into} {_name(vm, block.entry)}".rstrip())
                return address

            return installed

        _put_before(cache, "install", wrap)

    def _memory(self, vm: Vm) -> None:
        """Faults of the shadow tables and what became of them, traces, and the tables' changes."""

        def wrap_fault(fault: Callable[..., object]) -> Callable[..., object]:
            def faulted(gva: int, write: bool, user: bool, fetch: bool) -> object:
                what = f"{gva:08x} {'user' if user else 'kernel'} {'fetch' if fetch else 'write' if write else 'read'}"
                try:
                    outcome = fault(gva, write, user, fetch)
                except GuestPageFault as true_fault:
                    self._line("mmu", f"{what}: the guest's own fault, e={true_fault.error or 0:04x}")
                    raise
                match outcome:
                    case DeviceAccess(gpa):
                        result = f"device memory {gpa:08x}"
                    case StepOver(gfn):
                        result = f"write to a page directory, gfn {gfn:05x}"
                    case _:
                        result = "filled"
                self._line("mmu", f"{what}: {result}")
                return outcome

            return faulted

        def wrap(text: str) -> Callable[[Callable[..., object]], Callable[..., object]]:
            def wrapper(method: Callable[..., object]) -> Callable[..., object]:
                def called(number: int) -> object:
                    self._line("mmu", text.format(number))
                    return method(number)

                return called

            return wrapper

        mmu = vm.mmu
        if not isinstance(mmu, ShadowMmu):
            return
        _put_before(mmu, "fault", wrap_fault)
        _put_before(mmu, "written", wrap("write to a traced or translated frame, gfn {:05x}"))
        _put_before(mmu, "retrace", wrap("traced again, gfn {:05x}"))
        _put_before(mmu, "invalidate", wrap("invlpg {:08x}"))
        vm.memory.before_write = mmu.written

    def _devices(self, vm: Vm) -> None:
        """Every access to a port or to device memory; one that the bus splits is one line."""

        def wrap(name: str, digits: int) -> Callable[[Callable[..., int]], Callable[..., int]]:
            def wrapper(access: Callable[..., int]) -> Callable[..., int]:
                inside = False

                def accessed(address: int, size: int, value: int | None) -> int:
                    nonlocal inside
                    if inside:
                        return access(address, size, value)
                    inside = True
                    try:
                        result = access(address, size, value)
                    finally:
                        inside = False
                    arrow, shown = ("->", result) if value is None else ("<-", value)
                    self._line("io", f"{name} {address:0{digits}x} {_WIDTH.get(size, size)} {arrow} {shown:0{2 * size}x}")
                    return result

                return accessed

            return wrapper

        _put_before(vm.board.bus, "port", wrap("port", 4))
        _put_before(vm.board.bus, "memory", wrap("memory", 8))


    def _firmware(self, vm: Vm) -> None:
        """What SeaBIOS has to say: it looks for a debug console at port 402h, and talks to one that answers."""
        begun = bytearray()

        def write(data: bytes) -> None:
            begun.extend(data)
            while b"\n" in begun:
                line, _, rest = begun.partition(b"\n")
                begun[:] = rest
                self._line("bios", line.decode("latin-1"))

        vm.board.bus.attach_ports(_SEABIOS, 1, DebugConsole(write))


def _put_before(part: object, method: str, wrapper: Callable[[Any], object]) -> None:
    """The instance's own attribute goes before its class's method."""
    setattr(part, method, wrapper(getattr(part, method)))


def _name(vm: Vm, eip: int) -> str:
    name = vm.start.symbols.name(eip) if vm.start else ""
    return "" if name.startswith("0x") else name
