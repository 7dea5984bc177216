"""Which attributes of each device are its state: the one table that snapshots of devices are made by.

Knows every device class by its attributes, and the four kinds of them: plain values, parts that are devices themselves, alarms, and wires,
which are given when a board is built and say nothing about the guest. A test holds the table against the devices of a board. Saves nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmm.devices.acpi_pm import AcpiPm
from vmm.devices.debug_ports import DebugConsole, DebugExit, PostCode
from vmm.devices.fw_cfg import FwCfg
from vmm.devices.ide import Drive, IdeChannel
from vmm.devices.interrupts import Interrupts
from vmm.devices.ioapic import IoApic
from vmm.devices.keyboard import Keyboard
from vmm.devices.lapic import LocalApic
from vmm.devices.ne2000 import Ne2000
from vmm.devices.pci import Function, PciHost, ResetControl
from vmm.devices.pic import EdgeLevelControl, Pic, PicPair
from vmm.devices.pit import Counter, Pit
from vmm.devices.rtc import Rtc
from vmm.devices.serial import Serial
from vmm.devices.system_control import A20, PortA, PortB
from vmm.devices.vga import Vga
from vmm.lapic_page import LapicPage
from vmm.rom import Window


@dataclass(frozen=True, slots=True)
class Fields:
    """The attributes of one class. plain: its state, as values. optional: numbers that may be None. parts: devices, or tuples of devices and None.

    alarms: the method that each calls. wires: the rest. restored: whether there is a method of that name, to be called when the state is another.
    """

    plain: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    alarms: Mapping[str, str] = field(default_factory=dict)
    wires: tuple[str, ...] = ()
    restored: bool = False

    @property
    def values(self) -> tuple[str, ...]:
        """All plain ones."""
        return self.plain + self.optional


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIELDS: Mapping[type, Fields] = {
    Interrupts: Fields(plain=("asserted",), parts=("pics", "lapic", "ioapic"), wires=("_tell", "nmi")),
    PicPair: Fields(parts=("master", "slave")),
    Pic: Fields(
        plain=_words(
            "base imr irr isr lines elcr all_level lowest auto_eoi rotate_in_auto_eoi special_mask fully_nested_special read_isr poll single"
            " init_step needs_icw4 requesting"
        ),
        wires=("_output",),
    ),
    EdgeLevelControl: Fields(wires=("_chips",)),
    LocalApic: Fields(
        plain=_words("registers irr isr tmr errors lint0_level timer_start interrupting"),
        alarms={"timer_alarm": "_expire"},
        wires=_words("_clock _changed _end_of_interrupt _nmi"),
    ),
    LapicPage: Fields(parts=("lapic",), wires=_words("words memory mmu hfn at unread"), restored=True),
    IoApic: Fields(plain=_words("id index lines table"), wires=("_send",)),
    Pit: Fields(parts=("counters",), alarms={"alarm": "_rise"}, wires=_words("_clock _line")),
    Counter: Fields(
        plain=_words("mode bcd format reload loaded start gate triggered next_start read_high"),
        optional=_words("frozen next_reload low_byte latched latched_status"),
    ),
    Rtc: Fields(plain=_words("index ram base synced"), alarms={"alarm": "_expire"}, wires=_words("_clock _line")),
    Keyboard: Fields(
        plain=_words("ram status buffer answers keys break_seen scanning scan_set last_sent level"),
        optional=_words("expected keyboard_expected"),
        wires=_words("_line _a20 _stop"),
    ),
    A20: Fields(plain=("enabled",), wires=("changed",), restored=True),
    PortA: Fields(plain=("control",), parts=("_a20",), wires=("_stop",)),
    PortB: Fields(plain=("control",), wires=_words("_clock _pit _polls")),
    Serial: Fields(
        plain=_words("divisor ier lcr mcr fcr scratch msr overrun transmit_pending fifo backlog level"), wires=_words("_console _line")
    ),
    Vga: Fields(
        plain=_words(
            "crtc attribute sequencer graphics indices attribute_index attribute_data_next misc pel_mask palette palette_index palette_reading"
        ),
        wires=_words("_memory _clock shown"),
    ),
    IdeChannel: Fields(
        plain=_words("selected device_control level"), parts=("drives",), wires=_words("_irq _drive commands control"), restored=True
    ),
    Drive: Fields(
        plain=_words(
            "registers previous status error intrq heads track multiple write_cache extended lba remaining block read_block write_block at"
            " read_end write_end"
        ),
        wires=_words("_disk _changed slot"),
    ),
    Ne2000: Fields(
        plain=_words("memory command interrupt registers station at left receive_status send_status level"), wires=_words("_network _line prom")
    ),
    PostCode: Fields(plain=("code",)),
    DebugConsole: Fields(wires=("_console",)),
    DebugExit: Fields(wires=("_stop",)),
    AcpiPm: Fields(plain=("enable", "control"), wires=("_clock", "_stop")),
    PciHost: Fields(plain=("address",), parts=("functions",), wires=("_by_number",)),
    Function: Fields(plain=("config",), wires=("writable", "changed"), restored=True),
    FwCfg: Fields(plain=_words("selected at dma_high"), wires=_words("_memory _items")),
    Window: Fields(wires=("rom", "first")),
    ResetControl: Fields(plain=("control",), wires=("_stop",)),
}
