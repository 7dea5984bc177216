"""Instructions counted one by one, where each runs by itself: the plain definition of what `vmm.icount` says.

Knows which instructions repeat, and how many iterations one step of theirs was. Knows nothing of how they are run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.decode import REPEAT, decode
from vmm.cpu_state import Cpu
from vmm.x86.bits import Flag

if TYPE_CHECKING:
    from vmm.vm import Vm

_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))
_COMPARES = frozenset((0xA6, 0xA7, 0xAE, 0xAF))
_STRINGS = _COMPARES | frozenset((0x6C, 0x6D, 0x6E, 0x6F, 0xA4, 0xA5, 0xAA, 0xAB, 0xAC, 0xAD))


class Count:
    """retired: instructions so far."""

    def __init__(self) -> None:
        self.retired = 0
        self._due = 0
        self._repeats = False  # the instruction under way is a REP string instruction with iterations to do
        self._compares: bool | None = None  # and goes on while ZF is this

    def due_in(self, vm: Vm, least: int = 0) -> None:
        """Virtual time may have another next deadline now. least: instructions that run before it all the same, for progress."""
        if vm.icount is not None:
            self._due = self.retired + max(least, vm.icount.left(vm.clock.next_deadline()))

    @property
    def is_due(self) -> bool:
        """Whether the run loop must have its turn at this boundary."""
        return self.retired >= self._due

    def enters(self, vm: Vm, code: bytes) -> None:
        """The instruction that stands first in `code`, at the vCPU's EIP, runs next."""
        self._repeats = False
        if code and code[0] in _PREFIXES:
            instruction = next(decode(code, 0, vm.vcpu.cs.wide), None)
            if instruction is not None and instruction.prefixes & REPEAT and instruction.opcode in _STRINGS:
                narrow = instruction.address_size == 2
                self._repeats = bool(vm.vcpu.register(1) & (0xFFFF if narrow else 0xFFFFFFFF))
                self._compares = 0xF3 in instruction.raw[: instruction.at - 1] if instruction.opcode in _COMPARES else None

    def ran(self, vm: Vm, *, interruptible: bool) -> bool:
        """It has run, or one iteration of it; whether it is done. The end of one that no comparison ended counts too.

        interruptible: something may come between its last iteration and its end. The CPU then stands at it again, with ECX 0.
        """
        vcpu = vm.vcpu
        self.retired += 1
        if not self._repeats:
            return True
        done: bool = vcpu.state[Cpu.EIP] != vcpu.eip
        if done and (self._compares is None or bool(vcpu.flags() & Flag.ZF) == self._compares):
            if interruptible and (self.is_due or vm.board.interrupts.asserted):
                vcpu.state[Cpu.EIP] = vcpu.eip
                return False
            self.retired += 1
        return done
