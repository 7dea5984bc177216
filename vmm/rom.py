"""The BIOS ROM of a VM: at the top of the address space and, as the chip set's PAM registers say, in front of the RAM below 1 MiB.

Knows frames, and that writes to a ROM go nowhere, or to the RAM behind it. The guest reads and executes ROM without exits; a page that it writes
is a device's, on the bus, until it is executed. Must not know where PAM registers are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vmm.bus import Bus
from vmm.machine import FRAME, Machine
from vmm.memory import GuestMemory
from vmm.mmu.nested import NestedMmu

TOP: Final = 1 << 32
LOW, LOW_END = 0xC_0000, 0x10_0000
_BELOW_1_MIB = 0x2_0000  # the last bytes of the image show there
_PART = 0x4000
_READ, _WRITE = 1, 2  # in an attribute
_NOTHING = b"\xff" * FRAME


class Rom:
    """`image`, whole pages of it, in a machine's frames. attributes: PAM's, by parts of 16 KiB from C0000h, the last one being F0000h to FFFFFh."""

    def __init__(self, machine: Machine, memory: GuestMemory, nested: NestedMmu, bus: Bus, image: bytes) -> None:
        self.machine, self.memory, self.nested = machine, memory, nested
        frames = machine.allocate(len(image) // FRAME + 1)
        for hfn, at in zip(frames, range(0, len(image) + 1, FRAME), strict=True):
            machine.memory[hfn * FRAME : (hfn + 1) * FRAME] = image[at : at + FRAME] or _NOTHING
        nothing = frames.pop()
        first = (TOP - len(image)) // FRAME
        memory.rom = dict(enumerate(frames, first))
        low = (LOW_END - _BELOW_1_MIB) // FRAME
        behind = (TOP - LOW_END) // FRAME
        self._rom = {gfn: memory.rom.get(gfn + behind, nothing) if gfn >= low else nothing for gfn in range(LOW // FRAME, LOW_END // FRAME)}
        memory.ram = list(memory.frames)
        self.behind: dict[int, int] = {}  # gfn -> hfn of the RAM that is written while ROM is read
        bus.attach_memory(LOW, LOW_END - LOW, Window(self, LOW))
        bus.attach_memory(first * FRAME, len(image), Window(self, first * FRAME))

    def set_attributes(self, pam: Sequence[int]) -> None:
        """The guest wrote PAM: seven registers of two attributes each, of which the first counts for F0000h and has one only."""
        parts = [attribute for register in pam[1:] for attribute in (register & 3, register >> 4 & 3)] + [pam[0] >> 4 & 3] * 4
        for gfn in self._rom:
            self._set(gfn, parts[(gfn * FRAME - LOW) // _PART])

    def _set(self, gfn: int, attribute: int) -> None:
        memory = self.memory
        if attribute == _WRITE:
            self.behind[gfn] = memory.ram[gfn]
        elif gfn in self.behind:
            self.machine.drop_frame_code(self.behind.pop(gfn))
        hfn = memory.ram[gfn] if attribute & _READ else self._rom[gfn]
        if attribute == _READ | _WRITE:
            changed = memory.rom.pop(gfn, None) is not None
        else:
            changed = memory.rom.get(gfn) != hfn
            memory.rom[gfn] = hfn
        if changed or memory.frames[gfn] != hfn:
            memory.frames[gfn] = hfn
            self.nested.refresh(gfn)


class Window:
    """ROM as a device, from address `first` on: reads find it, writes go nowhere or behind it."""

    def __init__(self, rom: Rom, first: int) -> None:
        self.rom, self.first = rom, first

    def access(self, offset: int, size: int, value: int | None) -> int:
        gpa = self.first + offset
        if value is None:
            return int.from_bytes(self.rom.memory.read(gpa, size), "little")
        for byte, at in enumerate(range(gpa, gpa + size)):
            if (hfn := self.rom.behind.get(at // FRAME)) is not None:
                self.rom.machine.memory[hfn * FRAME + at % FRAME] = value >> 8 * byte & 0xFF
        return 0
