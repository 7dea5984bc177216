"""The board: the table of which device sits where. The whole machine on one screen.

Knows addresses and wires. Must not know what any device does inside, nor who runs the VM: memory, time, console and the two
call-backs are given.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vmm.bus import Bus, Memory
from vmm.clock import Clock
from vmm.devices import acpi_pm, fw_cfg, ioapic, lapic, pci
from vmm.devices.acpi_pm import AcpiPm
from vmm.devices.bios_data import write_bios_data
from vmm.devices.debug_ports import DebugConsole, DebugExit, PostCode
from vmm.devices.disk import Storage
from vmm.devices.fw_cfg import FwCfg
from vmm.devices.ide import IdeChannel
from vmm.devices.interrupts import IO_APIC_ID, LOCAL_APIC_ID, TIMER_PIN, Interrupts
from vmm.devices.keyboard import Keyboard
from vmm.devices.mp_table import write_mp_table
from vmm.devices.ne2000 import Ne2000, Network
from vmm.devices.pci import PciHost, ResetControl
from vmm.devices.pic import EdgeLevelControl
from vmm.devices.pit import Pit
from vmm.devices.rtc import Rtc
from vmm.devices.serial import Serial
from vmm.devices.stop import Stop, StopKind
from vmm.devices.system_control import A20, PortA, PortB
from vmm.devices.vga import Vga
from vmm.errors import InputError

__all__ = ["Board", "Memory", "Stop", "StopKind", "build_board"]

LOCAL_APIC, IO_APIC = 0xFEE00000, 0xFEC00000
COM1, CRTC = 0x3F8, 0x3D4
NE2000, NE2000_LINE = 0x300, 9
MOST_DISKS = 4
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Board:
    """The devices of one VM, wired. Frozen: a reset builds a new board, with a new clock."""

    bus: Bus
    clock: Clock
    interrupts: Interrupts
    pit: Pit
    rtc: Rtc
    keyboard: Keyboard
    serial: Serial
    vga: Vga
    pci: PciHost
    power: AcpiPm
    ide: tuple[IdeChannel, ...]
    """The channels that have drives."""
    disks: tuple[Storage | None, ...]
    post_code: PostCode
    debug_exit: DebugExit
    a20: A20
    adapter: Ne2000 | None
    """The Ethernet adapter, where there is a network."""


def build_board(
    memory: Memory,
    clock: Clock,
    *,
    console: Callable[[bytes], None],
    disks: Sequence[Storage | None],
    stop: Callable[[Stop], None],
    interrupts_changed: Callable[[], None],
    date: int | None = None,
    network: Network | None = None,
    firmware: Mapping[str, bytes] | None = None,
) -> Board:
    """A PC of the AT's line with an MP table, in the state firmware leaves it in; its tables are written into `memory`.

    With `firmware`, the files that it is to find, in the state after a reset: the rest is up to firmware.

    `console` gets what the guest sends to COM1 and port E9h; `disks` are primary master and slave, secondary master and slave (None
    for an empty place); `stop` is told when the guest asks for a reset, power off or the debug exit; `interrupts_changed` when `interrupts.pending()`
    has changed. `network` is what the Ethernet adapter is plugged into.
    `date` is what the RTC starts at, in seconds since 1970 (None: the host's). InputError for too many disks.
    """
    if len(disks) > MOST_DISKS:
        raise InputError(f"--disk: more than {MOST_DISKS} disks")
    bus, a20, interrupts = Bus(), A20(), Interrupts(clock, interrupts_changed)
    line = interrupts.line

    pit = Pit(clock, line(0))
    interrupts.pics.master.forget_edges()  # its output rose while it was set up: firmware has served that
    keyboard = Keyboard(line(1), a20, stop)
    serial = Serial(console, line(4))
    rtc = Rtc(clock, line(8), memory_size=memory.size, date=int(time.time()) if date is None else date)
    vga = Vga(memory, clock)
    post_code, debug_exit = PostCode(), DebugExit(stop)
    pics = interrupts.pics
    power, host = AcpiPm(clock, stop), PciHost()

    for first, count, device, offset, widest in (
        (0x020, 2, pics.master, 0, 1),
        (0x040, 4, pit, 0, 1),
        (0x060, 1, keyboard, 0, 1),
        (0x061, 1, PortB(clock, pit), 0, 1),
        (0x064, 1, keyboard, 4, 1),
        (0x070, 2, rtc, 0, 1),
        (0x080, 1, post_code, 0, 1),
        (0x092, 1, PortA(a20, stop), 0, 1),
        (0x0A0, 2, pics.slave, 0, 1),
        (0x0E9, 1, DebugConsole(console), 0, 1),
        (0x0F4, 1, debug_exit, 0, 4),
        (0x3C0, 32, vga, 0, 1),
        (COM1, 8, serial, 0, 1),
        (0x4D0, 2, EdgeLevelControl(pics), 0, 1),
        (0xCF8, 1, host, pci.ADDRESS, 4),
        (0xCF9, 1, ResetControl(stop), 0, 1),
        (0xCFC, 4, host, pci.DATA, 4),
    ):
        bus.attach_ports(first, count, device, offset=offset, widest=widest)

    channels: list[IdeChannel] = []
    places = [*disks, *[None] * (MOST_DISKS - len(disks))]
    for command, control, irq, (master, slave) in ((0x1F0, 0x3F6, 14, places[:2]), (0x170, 0x376, 15, places[2:])):
        if master or slave:  # a channel without drives is an open bus
            channel = IdeChannel(line(irq), master, slave)
            bus.attach_ports(command, 1, channel.commands, widest=4)
            bus.attach_ports(command + 1, 7, channel.commands, offset=1)
            bus.attach_ports(control, 1, channel.control)
            channels.append(channel)

    adapter = Ne2000(network, line(NE2000_LINE)) if network is not None else None
    if adapter is not None:
        bus.attach_ports(NE2000, 16, adapter)
        bus.attach_ports(NE2000 + 16, 8, adapter, offset=16, widest=4)
        bus.attach_ports(NE2000 + 24, 8, adapter, offset=24)

    management = host.function(pci.POWER)
    management.changed = lambda: bus.move_ports(pci.power_base(management), power, acpi_pm.LAYOUT)
    management.changed()

    bus.attach_memory(LOCAL_APIC, 0x1000, interrupts.lapic)
    bus.attach_memory(IO_APIC, 0x1000, interrupts.ioapic)

    if firmware is not None:
        host.function(pci.HOST_BRIDGE).config[pci.PAM : pci.PAM + pci.PAMS] = bytes(pci.PAMS)
        cpus = (1).to_bytes(2, "little")
        configuration = FwCfg(memory, {fw_cfg.CPUS: cpus, fw_cfg.MOST_CPUS: cpus}, firmware)
        bus.attach_ports(0x510, 1, configuration, widest=2)
        bus.attach_ports(0x511, 1, configuration, offset=fw_cfg.DATA)
        bus.attach_ports(0x514, 8, configuration, offset=fw_cfg.DMA, widest=4)
    elif memory.size >= MIB:
        write_bios_data(memory, com1=COM1, crtc=CRTC, disks=sum(disk is not None for disk in disks))
        write_mp_table(memory, lapic_gpa=LOCAL_APIC, lapic_id=LOCAL_APIC_ID, lapic_version=lapic.VERSION_VALUE & 0xFF,
                       ioapic_gpa=IO_APIC, ioapic_id=IO_APIC_ID, ioapic_version=ioapic.VERSION, timer_pin=TIMER_PIN)
    drives = tuple(channels), tuple(disks)
    return Board(bus, clock, interrupts, pit, rtc, keyboard, serial, vga, host, power, *drives, post_code, debug_exit, a20, adapter)
