"""What a routine is: one sensitive instruction's effect on the virtual CPU.

A routine gets the vCPU's context and the instruction, with the exact state before it. It returns None when the instruction
is done and EIP is to move past it, JUMPED when it has set EIP itself, or an outcome. What the guest does wrong it raises as
GuestFault, having changed nothing. Source: the manual's pseudo-code, SDM 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from bt.decode import Instruction
from vmm.exits import RESUME, Outcome
from vmm.faults import GuestFault
from vmm.x86.bits import Cr0, Vector

if TYPE_CHECKING:
    from vmm.vm import Vm

JUMPED: Final = RESUME
Result = Outcome | None
Routine = Callable[["Vm", Instruction], Result]


def undefined(vm: Vm, instruction: Instruction) -> Result:
    """What the virtual CPU does not have."""
    raise GuestFault(Vector.UD)


def protected(vm: Vm) -> None:
    """#UD in real mode, where there are no descriptors."""
    if not vm.vcpu.cr0 & Cr0.PE:
        raise GuestFault(Vector.UD)


def privileged(vm: Vm) -> None:
    """#GP(0) unless at privilege level 0."""
    if vm.vcpu.cpl:
        raise GuestFault(Vector.GP, 0)
