"""The 8259A programmable interrupt controllers: the master, the slave on its input 2, and the edge/level registers.

Knows lines 0 to 15, priorities and the in-service protocol. Must not know what drives a line, nor what the output drives.
Sources: Intel 8259A data sheet (order number 231468); the edge/level control registers are the 82371AB's (PIIX4 data sheet, 4.2.6).
"""

from collections.abc import Callable

CASCADE = 2
SPURIOUS = 7
_NONE = 8
_FIRST = bytes((bits & -bits).bit_length() - 1 if bits else _NONE for bits in range(256))
_RANKS = tuple(bytes(_FIRST[(bits >> first | bits << 8 - first) & 0xFF] for bits in range(256)) for first in (1, 2, 3, 4, 5, 6, 7, 0))
"""By the input of lowest priority, then by inputs as bits: the rank of the first of these, 0 to 7, or _NONE."""


class Pic:
    """One 8259A. Offset 0 takes ICW1, OCW2, OCW3; offset 1 takes ICW2 to ICW4 and OCW1, the mask."""

    def __init__(self, output: Callable[[bool], None], *, base: int, mask: int) -> None:
        self._output = output
        self.base = base
        """Vector of input 0."""
        self.imr = mask
        self.irr = 0
        self.isr = 0
        self.lines = 0
        self.elcr = 0
        self.all_level = False
        self.lowest = 7
        """Input of lowest priority; the one after it has the highest."""
        self.auto_eoi = False
        self.rotate_in_auto_eoi = False
        self.special_mask = False
        self.fully_nested_special = False
        self.read_isr = False
        self.poll = False
        self.single = False
        self.init_step = 0
        """Which ICW the next write to offset 1 is (2, 3, 4), or 0: it is the mask."""
        self.needs_icw4 = False
        self.requesting = False

    def set_line(self, pin: int, level: bool) -> None:
        """The level of input `pin`. In edge mode a request is latched by the rise and gone again with the fall: the input must
        stay high until it is acknowledged (data sheet, "Edge and Level Triggered Modes")."""
        bit = 1 << pin
        if level:
            if not self.lines & bit or self._is_level(bit):
                self.irr |= bit
            self.lines |= bit
        else:
            self.lines &= ~bit
            if not self.irr & bit:
                return
            self.irr &= ~bit
        self._update()

    def acknowledge(self) -> int:
        """The CPU's INTA: the input served now, which goes in service; 7 without going in service when there is none any more."""
        pin = self._request()
        if pin is None:
            return SPURIOUS
        self._take(pin)
        return pin

    def access(self, offset: int, size: int, value: int | None) -> int:
        if value is None:
            return self._read(offset)
        if offset:
            self._write_data(value)
        elif value & 0x10:
            self._initialize(value)
        elif value & 0x08:
            self._ocw3(value)
        else:
            self._ocw2(value)
        self._update()
        return 0

    def set_elcr(self, value: int) -> None:
        """Which inputs are level-triggered, a bit each."""
        self.elcr = value
        self.irr |= self.lines & value
        self._update()

    def forget_edges(self) -> None:
        """Clear the edge latches: an input that stays high requests nothing until it rises again."""
        self.irr = self.lines if self.all_level else self.lines & self.elcr
        self._update()

    def _read(self, offset: int) -> int:
        if self.poll:
            self.poll = False
            pin = self._request()
            if pin is None:
                return 0
            self._take(pin)
            return 0x80 | pin
        if offset:
            return self.imr
        return self.isr if self.read_isr else self.irr

    def _is_level(self, bit: int) -> bool:
        return self.all_level or bool(self.elcr & bit)

    def _highest(self, bits: int) -> int | None:
        """The set bit of the highest priority."""
        rank = _RANKS[self.lowest][bits]
        return None if rank == _NONE else self.lowest + 1 + rank & 7

    def _request(self) -> int | None:
        """The input that now deserves the CPU, or None."""
        ranks, busy = _RANKS[self.lowest], self.isr
        rank = ranks[self.irr & ~self.imr]
        if self.special_mask:
            busy &= ~self.imr
        if self.fully_nested_special:
            # A slave with a request of higher priority than the one in service may interrupt again through its one input.
            busy &= ~(1 << CASCADE)
        return self.lowest + 1 + rank & 7 if rank < ranks[busy] else None

    def _take(self, pin: int) -> None:
        bit = 1 << pin
        if not self._is_level(bit):
            self.irr &= ~bit
        if not self.auto_eoi:
            self.isr |= bit
        elif self.rotate_in_auto_eoi:
            self.lowest = pin
        # INT drops during INTA: a master that watches for edges must see the next request of a slave.
        self.requesting = False
        self._output(False)
        self._update()

    def _update(self) -> None:
        requesting = self._request() is not None
        if requesting != self.requesting:
            self.requesting = requesting
            self._output(requesting)

    def _initialize(self, icw1: int) -> None:
        self.all_level = bool(icw1 & 0x08)
        self.single = bool(icw1 & 0x02)
        self.needs_icw4 = bool(icw1 & 0x01)
        self.imr = self.isr = 0
        self.forget_edges()
        self.lowest = 7
        self.special_mask = self.read_isr = self.poll = False
        self.auto_eoi = self.rotate_in_auto_eoi = self.fully_nested_special = False
        self.init_step = 2

    def _write_data(self, value: int) -> None:
        if self.init_step == 2:
            self.base = value & 0xF8
            self.init_step = 3 if not self.single else self._after_icw3()
        elif self.init_step == 3:
            # ICW3 says how the chips are wired; the board has wired them already.
            self.init_step = self._after_icw3()
        elif self.init_step == 4:
            self.auto_eoi = bool(value & 0x02)
            self.fully_nested_special = bool(value & 0x10)
            self.init_step = 0
        else:
            self.imr = value & 0xFF

    def _after_icw3(self) -> int:
        return 4 if self.needs_icw4 else 0

    def _ocw2(self, value: int) -> None:
        rotate, specific, eoi = value & 0x80, value & 0x40, value & 0x20
        if not eoi:
            if rotate and specific:
                self.lowest = value & 7
            elif not specific:
                self.rotate_in_auto_eoi = bool(rotate)
            return
        pin: int | None = value & 7
        if not specific:
            # In special mask mode a masked input in service is not ended by a non-specific EOI.
            pin = self._highest(self.isr & ~self.imr if self.special_mask else self.isr)
        if pin is None:
            return
        self.isr &= ~(1 << pin)
        if rotate:
            self.lowest = pin

    def _ocw3(self, value: int) -> None:
        self.poll = bool(value & 0x04)
        if value & 0x02:
            self.read_isr = bool(value & 0x01)
        if value & 0x40:
            self.special_mask = bool(value & 0x20)


class PicPair:
    """Master and slave as a PC wires them: lines 0 to 7 on the master, 8 to 15 on the slave, whose output is the master's input 2."""

    def __init__(self, output: Callable[[bool], None]) -> None:
        """`output` is told the level of the master's INT. The chips start as PC firmware leaves them: vectors 08h and 70h,
        timer, keyboard, RTC and disk unmasked (read from QEMU with its firmware: many kernels keep these masks when they move the vectors)."""
        self.master = Pic(output, base=0x08, mask=0xB8)
        self.slave = Pic(lambda level: self.master.set_line(CASCADE, level), base=0x70, mask=0x8E)

    def set_line(self, irq: int, level: bool) -> None:
        """The level of ISA line `irq` (0 to 15; 2 is the cascade and does nothing)."""
        if irq >= 8:
            self.slave.set_line(irq - 8, level)
        elif irq != CASCADE:
            self.master.set_line(irq, level)

    def acknowledge(self) -> int:
        """INTA: the vector of what is served now; input 7's of the chip in question when the request has gone (spurious)."""
        pin = self.master.acknowledge()
        if pin == CASCADE:
            return self.slave.base + self.slave.acknowledge()
        return self.master.base + pin


class EdgeLevelControl:
    """The two registers that make lines level-triggered, master at offset 0, slave at 1. Lines 0, 1, 2, 8 and 13 stay edge-triggered."""

    SETTABLE = (0xF8, 0xDE)

    def __init__(self, pair: PicPair) -> None:
        self._chips = (pair.master, pair.slave)

    def access(self, offset: int, size: int, value: int | None) -> int:
        chip = self._chips[offset & 1]
        if value is None:
            return chip.elcr
        chip.set_elcr(value & self.SETTABLE[offset & 1])
        return 0
