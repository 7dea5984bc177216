"""The shared info page: what the VMM and a Xen guest tell each other without a hypercall.

Layout: Xen's public headers, xen.h and arch-x86/xen-x86_32.h. Knows one virtual CPU: the others' events are masked for good.
"""

from __future__ import annotations

from typing import Final

from vmm.clock import SECOND
from vmm.machine import FRAME, Machine

_CPUS = 32
_PENDING, _MASK = 0, 1  # bytes of the first CPU's part
_SELECTOR, _CR2, _VERSION, _TSC, _TIME, _SCALE, _SHIFT = 1, 2, 8, 10, 12, 14, 60  # 32-bit words, but for the last, a byte
CHANNELS_PENDING: Final = 512  # 32-bit words of the page
CHANNELS_MASK: Final = 544
CHANNELS: Final = 1024
_WALL_CLOCK: Final = 576
_MAX_PFN, _P2M_LIST = 579, 580

TSC_HERTZ: Final = 1_000_000_000
"""The virtual time stamp counter: nanoseconds of virtual time."""


class SharedInfo:
    """The page in frame `mfn`. cpu: the first CPU's part, CPU_SIZE bytes, which the guest may have moved elsewhere; place: its frame and offset."""

    CPU_SIZE: Final = 64

    def __init__(self, machine: Machine) -> None:
        self._memory = machine.memory
        (self.mfn,) = machine.allocate(1)
        machine.clear(self.mfn)
        self.bytes = machine.memory[self.mfn * FRAME : (self.mfn + 1) * FRAME]
        self.words = self.bytes.cast("I")
        for cpu in range(_CPUS):
            self.bytes[cpu * self.CPU_SIZE + _MASK] = 1
        self.see(self.mfn, 0)
        self.cpu_words[_SCALE], self.cpu[_SHIFT] = 1 << 31, 1  # ns = (tsc << 1) * 2**31 >> 32

    def see(self, mfn: int, offset: int) -> None:
        """The first CPU's part is what lies there."""
        self.place, at = (mfn, offset), mfn * FRAME + offset
        self.cpu = self._memory[at : at + self.CPU_SIZE]
        self.cpu_words, self.cpu_quads = self.cpu.cast("I"), self.cpu.cast("Q")

    @property
    def moved(self) -> bool:
        """The first CPU's part lies in a page of the guest's."""
        return self.place[0] != self.mfn

    def move(self, mfn: int, offset: int) -> None:
        """The first CPU's part lies in another frame from now on. All events are said to be pending, so that none gets lost."""
        before = bytes(self.cpu)
        self.see(mfn, offset)
        self.cpu[:] = before
        self.cpu[_PENDING], self.cpu_words[_SELECTOR] = 1, 0xFFFFFFFF

    @property
    def pending(self) -> bool:
        """An upcall is due."""
        return self.cpu[_PENDING] != 0

    @pending.setter
    def pending(self, on: bool) -> None:
        self.cpu[_PENDING] = on

    @property
    def masked(self) -> int:
        """The virtual interrupt mask: not 0 means that no upcall may come."""
        return self.cpu[_MASK]

    @masked.setter
    def masked(self, value: int) -> None:
        self.cpu[_MASK] = value

    @property
    def deliverable(self) -> bool:
        """An upcall is due and may come."""
        return self.cpu[_PENDING] != 0 and self.cpu[_MASK] == 0

    def set_cr2(self, gva: int) -> None:
        """Where the page fault was."""
        self.cpu_words[_CR2] = gva

    def tell_time(self, now: int) -> None:
        """now: nanoseconds since the domain's start; the time stamp counter is the same number."""
        words = self.cpu_words
        words[_VERSION] = words[_VERSION] + 1 & 0xFFFFFFFF
        self.cpu_quads[_TSC >> 1] = self.cpu_quads[_TIME >> 1] = now
        words[_VERSION] = words[_VERSION] + 1 & 0xFFFFFFFF

    def tell_date(self, start: int) -> None:
        """start: nanoseconds between 1970 and the domain's start."""
        self.words[_WALL_CLOCK + 1], self.words[_WALL_CLOCK + 2] = start // SECOND & 0xFFFFFFFF, start % SECOND
        self.words[_WALL_CLOCK] += 2

    def raise_channel(self, port: int) -> bool:
        """Marks an event channel pending; True when that makes an upcall due: it was not, and is not masked."""
        word, bit = port >> 5, 1 << (port & 31)
        words = self.words
        if words[CHANNELS_PENDING + word] & bit:
            return False
        words[CHANNELS_PENDING + word] |= bit
        return self._announce(word, bit)

    def unmask_channel(self, port: int) -> bool:
        """Clears a channel's mask; True when an event that waited behind it is due now."""
        word, bit = port >> 5, 1 << (port & 31)
        words = self.words
        if not words[CHANNELS_MASK + word] & bit:
            return False
        words[CHANNELS_MASK + word] &= ~bit
        return bool(words[CHANNELS_PENDING + word] & bit) and self._announce(word, bit)

    def _announce(self, word: int, bit: int) -> bool:
        words = self.words
        if words[CHANNELS_MASK + word] & bit:
            return False
        self.cpu_words[_SELECTOR] |= 1 << word
        self.cpu[_PENDING] = 1
        return True

    def channel_pending(self, port: int) -> bool:
        """Whether an event of the channel waits, masked or not."""
        return bool(self.words[CHANNELS_PENDING + (port >> 5)] & 1 << (port & 31))

    def close_channel(self, port: int) -> None:
        """Forgets an event of the channel."""
        self.words[CHANNELS_PENDING + (port >> 5)] &= ~(1 << (port & 31)) & 0xFFFFFFFF
