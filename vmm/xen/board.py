"""The board of a Xen guest: which virtual device sits behind which event channel and page.

Knows the devices by their contracts, and what the store tells the guest of them. There is no PC: of a PC's ports only those for people who write
kernels are granted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def signals(self) -> dict[str, Callable[[], None]]:
        """What an event that the guest sends calls, by the device's name."""
        blocks = {f"block {number}": block.signalled for number, block in enumerate(self.blocks)}
        return {"console": self.console.signalled, "store": self.store.signalled, **blocks}


def build_xen_board(vm: Vm, domain: XenDomain, disks: Sequence[Storage]) -> XenBoard:
    """Wires the devices of a domain whose rings are shared; its open channels are to be connected to their `signals`."""

    def page(mfn: int) -> memoryview:
        return vm.machine.memory[mfn * FRAME : (mfn + 1) * FRAME]

    channels, rings = domain.channels, domain.rings
    store = XenStore(page(rings[0]), HOME, lambda: channels.raise_port(STORE_PORT))
    console = XenConsole(page(rings[1]), vm.console.write, lambda: channels.raise_port(CONSOLE_PORT))
    domain.console, domain.granted_ports = vm.console.write, _PORTS
    for path, value in (
        ("name", "guest"),
        ("domid", "1"),
        ("vm", "/vm/1"),
        ("memory/target", str(vm.memory.size >> 10)),
        ("console/type", "vmm"),
        ("console/port", str(CONSOLE_PORT)),
        ("console/ring-ref", str(rings[1])),
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
