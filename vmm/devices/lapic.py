"""The local APIC of the one CPU: what it has been asked to interrupt for, in which order it does, and its timer.

Knows vectors, priorities and the local vector table. Must not know the 8259 pair nor the I/O APIC: it is sent messages and
told the level of its LINT0 pin. Source: SDM 3A chapter 11 "Advanced Programmable Interrupt Controller (APIC)".
There is one CPU, so messages for others reach nobody; SMI, INIT and start-up messages for this one are dropped.
"""

import struct
from collections.abc import Callable

from vmm.clock import Alarm, Clock

# Registers by offset / 16 (SDM 3A 11.4.1 "The Local APIC Block Diagram", table "Local APIC Register Address Map").
ID, VERSION, TPR, APR, PPR, EOI = 0x02, 0x03, 0x08, 0x09, 0x0A, 0x0B
LDR, DFR, SVR, ISR, TMR, IRR, ESR = 0x0D, 0x0E, 0x0F, 0x10, 0x18, 0x20, 0x28
ICR_LOW, ICR_HIGH, LVT_TIMER, LVT_THERMAL, LVT_PERFORMANCE = 0x30, 0x31, 0x32, 0x33, 0x34
LVT_LINT0, LVT_LINT1, LVT_ERROR, INITIAL_COUNT, CURRENT_COUNT, DIVIDE = 0x35, 0x36, 0x37, 0x38, 0x39, 0x3E
LVTS = range(LVT_TIMER, LVT_ERROR + 1)

KNOWN = frozenset({ID, VERSION, TPR, APR, PPR, EOI, LDR, DFR, SVR, ESR, ICR_LOW, ICR_HIGH, INITIAL_COUNT, CURRENT_COUNT, DIVIDE,
                   *range(ISR, ISR + 8), *range(TMR, TMR + 8), *range(IRR, IRR + 8), *LVTS})
WRITABLE = {  # which bits a plain write changes
    ID: 0xFF000000, TPR: 0xFF, LDR: 0xFF000000, SVR: 0x3FF, ICR_HIGH: 0xFF000000, LVT_TIMER: 0x300FF, LVT_THERMAL: 0x107FF,
    LVT_PERFORMANCE: 0x107FF, LVT_LINT0: 0x1A7FF, LVT_LINT1: 0x1A7FF, LVT_ERROR: 0x100FF, DIVIDE: 0x0B,
}
MASKED = 1 << 16
PERIODIC = 1 << 17
ENABLED = 1 << 8
FIXED, LOWEST_PRIORITY, NMI, EXTINT = 0, 1, 4, 7
SENT_ILLEGAL_VECTOR, RECEIVED_ILLEGAL_VECTOR, ILLEGAL_REGISTER = 1 << 5, 1 << 6, 1 << 7
VERSION_VALUE = 5 << 16 | 0x14
SHORTEST_REARM = 10_000
"""Nanoseconds: a guest that sets a period of a few ticks gets no more than 100,000 interrupts a second."""


class LocalApic:
    """The register page of one local APIC. `interrupting` is true while a vector is deliverable; every change calls `changed`.

    The timer counts bus clocks of one nanosecond, as on QEMU.
    """

    def __init__(
        self,
        clock: Clock,
        changed: Callable[[], None],
        end_of_interrupt: Callable[[int], None],
        nmi: Callable[[], None] = lambda: None,
        *,
        apic_id: int = 0,
    ) -> None:
        """`end_of_interrupt(vector)` is the EOI message that level-triggered interrupts send to the I/O APIC; `nmi` is the CPU's NMI pin."""
        self._clock = clock
        self._changed = changed
        self._end_of_interrupt = end_of_interrupt
        self._nmi = nmi
        self.registers = [0] * 64
        """The registers that are no more than stored values, by offset / 16."""
        self.irr = self.isr = self.tmr = 0
        """256 bits each, one a vector."""
        self.errors = 0
        """Errors since the last write to ESR."""
        self.lint0_level = False
        self.timer_start = 0
        self.timer_alarm: Alarm | None = None
        self.interrupting = False
        registers = self.registers
        registers[ID], registers[VERSION], registers[DFR] = apic_id << 24, VERSION_VALUE, 0xFFFFFFFF
        for lvt in LVTS:
            registers[lvt] = MASKED
        # As firmware leaves it: enabled, the 8259 wired through (MultiProcessor Specification 1.4, 3.6.2.2 "Virtual Wire Mode").
        registers[SVR], registers[LVT_LINT0], registers[LVT_LINT1] = ENABLED | 0xFF, 0x8000 | EXTINT << 8, 0x8000 | NMI << 8

    def takes_extint(self) -> bool:
        """Does the 8259's request reach the CPU: LINT0 passes it on as ExtINT, or the APIC is software-disabled?"""
        return not self.registers[SVR] & ENABLED or self.registers[LVT_LINT0] & (MASKED | 0x700) == EXTINT << 8

    def set_lint0(self, level: bool) -> None:
        """The level of the LINT0 pin; matters only while the pin is programmed as a fixed interrupt or an NMI."""
        rose = level and not self.lint0_level
        self.lint0_level = level
        if rose:
            self._pin(self.registers[LVT_LINT0])

    def pulse_lint1(self) -> None:
        """A pulse on the LINT1 pin, where a PC has its NMI line."""
        self._pin(self.registers[LVT_LINT1])

    def _pin(self, entry: int) -> None:
        if not entry & MASKED:
            mode = entry >> 8 & 7
            if mode == FIXED:
                self._accept(entry & 0xFF, level=False)
            elif mode == NMI:
                self._nmi()

    def receive(self, destination: int, logical: bool, mode: int, vector: int, level: bool) -> bool:
        """An interrupt message (SDM 3A 11.6.2 "Determining IPI Destination"); True when it was for this CPU and was taken."""
        if not self._is_addressed(destination, logical) or mode not in (FIXED, LOWEST_PRIORITY, NMI):
            return False
        if mode == NMI:  # edge-triggered, and its vector means nothing
            self._nmi()
            return False
        return self._accept(vector, level)

    def acknowledge(self) -> int:
        """The CPU takes the interrupt: its vector goes in service. The spurious vector when none is deliverable any more."""
        if not self.interrupting:
            return self.registers[SVR] & 0xFF
        vector = self.irr.bit_length() - 1
        self.irr &= ~(1 << vector)
        self.isr |= 1 << vector
        self._update()
        return vector

    def page(self) -> bytearray:
        """All 4 KiB as reads would find them now. Reads have no side effects, so a VMM may map this read-only and refresh it after
        writes and interrupts; only the timer's current count (390h) moves by itself."""
        page = bytearray(4096)
        for index in KNOWN:
            struct.pack_into("<I", page, index * 16, self._read(index))
        return page

    def access(self, offset: int, size: int, value: int | None) -> int:
        """Registers are 32 bits at multiples of 16. Narrow reads give their part; a narrow write counts as zero-extended."""
        index = offset >> 4
        if index not in KNOWN:
            self._error(ILLEGAL_REGISTER)
        elif value is None:
            return self._read(index) >> 8 * (offset & 3) & (1 << 8 * size) - 1 if offset & 0xC == 0 else 0
        elif offset & 0xF == 0:
            self._write(index, value)
        return 0

    def _read(self, index: int) -> int:
        if ISR <= index < ESR:
            words = self.isr if index < TMR else self.tmr if index < IRR else self.irr
            return words >> 32 * (index & 7) & 0xFFFFFFFF
        if index in (PPR, APR):
            return self._processor_priority()
        if index == CURRENT_COUNT:
            return self._current_count(self._clock.now())
        return self.registers[index]

    def _write(self, index: int, value: int) -> None:
        registers = self.registers
        if index == EOI:
            self._end()
            return
        if index == ICR_LOW:
            self._send(value)
            return
        if index == ESR:
            registers[ESR], self.errors = self.errors, 0
        elif index == INITIAL_COUNT:
            registers[index] = value
            self.timer_start = self._clock.now()
            self._arm_timer(self.timer_start)
        elif index == DFR:
            registers[index] = value | 0x0FFFFFFF
        elif index in (LVT_TIMER, DIVIDE):
            self._change_timer(index, value & WRITABLE[index] | self._forced_mask(index))
        elif index in WRITABLE:
            registers[index] = value & WRITABLE[index] | self._forced_mask(index)
            if index == SVR and not value & ENABLED:
                # SDM 3A 11.4.7.2 "Local APIC State After It Has Been Software Disabled"
                for lvt in LVTS:
                    registers[lvt] |= MASKED
        self._update()
        if index in (SVR, LVT_LINT0):
            self._changed()

    def _forced_mask(self, index: int) -> int:
        return MASKED if index in LVTS and not self.registers[SVR] & ENABLED else 0

    def _processor_priority(self) -> int:
        """SDM 3A 11.8.3.1 "Task and Processor Priorities"."""
        tpr, served = self.registers[TPR], max(self.isr.bit_length() - 1, 0)
        return tpr if tpr >> 4 >= served >> 4 else served & 0xF0

    def _update(self) -> None:
        # Cheap first: after most register writes nothing is requested.
        irr = self.irr
        interrupting = irr != 0 and irr.bit_length() - 1 >> 4 > self._processor_priority() >> 4
        if interrupting != self.interrupting:
            self.interrupting = interrupting
            self._changed()

    def _is_addressed(self, destination: int, logical: bool) -> bool:
        if not logical:
            return destination == 0xFF or destination == self.registers[ID] >> 24
        own = self.registers[LDR] >> 24
        if self.registers[DFR] >> 28 == 0xF:
            return bool(destination & own)
        return destination >> 4 in (0xF, own >> 4) and bool(destination & own & 0xF)

    def _accept(self, vector: int, level: bool) -> bool:
        if not self.registers[SVR] & ENABLED:
            return False
        if vector < 16:
            self._error(RECEIVED_ILLEGAL_VECTOR)
            return False
        bit = 1 << vector
        self.irr |= bit
        self.tmr = self.tmr | bit if level else self.tmr & ~bit
        self._update()
        return True

    def _end(self) -> None:
        vector = self.isr.bit_length() - 1
        if vector < 0:
            return
        self.isr &= ~(1 << vector)
        if self.tmr >> vector & 1:
            self._end_of_interrupt(vector)
        self._update()

    def _error(self, error: int) -> None:
        self.errors |= error
        entry = self.registers[LVT_ERROR]
        # An error entry with an illegal vector of its own must not report itself for ever.
        if not entry & MASKED and entry & 0xFF >= 16:
            self._accept(entry & 0xFF, level=False)

    def _send(self, value: int) -> None:
        """SDM 3A 11.6.1 "Interrupt Command Register (ICR)". Delivery is instant, so the delivery status never shows."""
        self.registers[ICR_LOW] = value & 0xCCFFF
        shorthand, mode, vector = value >> 18 & 3, value >> 8 & 7, value & 0xFF
        if shorthand == 3 or mode not in (FIXED, LOWEST_PRIORITY, NMI):
            return
        if vector < 16 and mode != NMI:
            self._error(SENT_ILLEGAL_VECTOR)
        elif shorthand or self._is_addressed(self.registers[ICR_HIGH] >> 24, bool(value & 0x800)):
            if mode == NMI:
                self._nmi()
            else:
                self._accept(vector, level=False)

    # The timer: `timer_start` is when the count was the initial count, so that nothing drifts and reading costs no state.

    def _divider(self) -> int:
        code = self.registers[DIVIDE]
        return 1 << ((code & 3 | code >> 1 & 4) + 1 & 7)

    def _current_count(self, now: int) -> int:
        initial = self.registers[INITIAL_COUNT]
        if not initial:
            return 0
        elapsed = (now - self.timer_start) // self._divider()
        if self.registers[LVT_TIMER] & PERIODIC:
            return initial - elapsed % initial
        return max(0, initial - elapsed)

    def _change_timer(self, index: int, value: int) -> None:
        """A new mode or divider: the count goes on from where it is."""
        now = self._clock.now()
        count = self._current_count(now)
        self.registers[index] = value
        self.timer_start = now - (self.registers[INITIAL_COUNT] - count) * self._divider()
        self._arm_timer(now)

    def _arm_timer(self, now: int) -> None:
        if self.timer_alarm is not None:
            self.timer_alarm.cancel()
            self.timer_alarm = None
        period = self.registers[INITIAL_COUNT] * self._divider()
        if not period:
            return
        deadline = self.timer_start + period
        if self.registers[LVT_TIMER] & PERIODIC:
            # Periods that passed while the VMM was busy are one interrupt, and the next keeps the phase.
            deadline = self.timer_start + ((now - self.timer_start) // period + 1) * period
            if period < SHORTEST_REARM:
                deadline = max(deadline, now + SHORTEST_REARM)
        elif deadline <= now:
            return
        self.timer_alarm = self._clock.at(deadline, self._expire)

    def _expire(self) -> None:
        self.timer_alarm = None
        entry = self.registers[LVT_TIMER]
        if not entry & MASKED:
            self._accept(entry & 0xFF, level=False)
        if entry & PERIODIC:
            self._arm_timer(self._clock.now())
