"""The board of a Xen guest: which virtual device sits behind which event channel and page.

Knows the devices by their contracts, and what the store tells the guest of them. There is no PC: of a PC's ports only those for people who write
kernels are granted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmm.devices.xen_block import XenBlock
from vmm.devices.xen_console import XenConsole
from vmm.devices.xen_store import XenStore
from vmm.machine import FRAME
from vmm.mmu.frames import Refused
from vmm.start import CONSOLE_PORT, STORE_PORT

if TYPE_CHECKING:
    from vmm.devices.disk import Storage
    from vmm.start import Domain
    from vmm.vm import Vm
    from vmm.xen.domain import XenDomain

HOME: Final = "/local/domain/1"
_PORTS: Final = frozenset((0x80, 0xE9, 0xF4))  # POST code, debug console and debug exit


@dataclass(frozen=True, slots=True)
class XenBoard:
    """The devices of one domain."""

    console: XenConsole
    store: XenStore
    blocks: tuple[XenBlock, ...]


def build_xen_board(vm: Vm, domain: XenDomain, built: Domain, disks: Sequence[Storage]) -> XenBoard:
    """Wires the devices of a domain that is about to start."""

    def page(number: int) -> memoryview:
        at = vm.memory.frames[number] * FRAME
        return vm.machine.memory[at : at + FRAME]

    channels = domain.channels
    console = XenConsole(page(built.console), vm.console.write, lambda: channels.raise_port(CONSOLE_PORT))
    store = XenStore(page(built.store), HOME, lambda: channels.raise_port(STORE_PORT))
    channels.open[CONSOLE_PORT].notify = console.signalled
    channels.open[STORE_PORT].notify = store.signalled
    domain.console, domain.granted_ports = vm.console.write, _PORTS
    for path, value in (
        ("name", "guest"),
        ("domid", "1"),
        ("vm", "/vm/1"),
        ("memory/target", str(vm.memory.size >> 10)),
        ("console/type", "vmm"),
        ("console/port", str(CONSOLE_PORT)),
        ("console/ring-ref", str(vm.memory.frames[built.console])),
    ):
        store.set(f"{HOME}/{path}", value)

    def access(reference: int, write: bool) -> memoryview | None:
        try:
            return domain.grants.access(reference, write)
        except Refused as refused:
            domain.stats.refused[refused.why] += 1
            return None

    blocks = tuple(XenBlock(disk, number, store, access, channels.connect) for number, disk in enumerate(disks))

    def written(path: str) -> None:
        for block in blocks:
            block.changed(path)

    store.on_write = written
    return XenBoard(console, store, blocks)
