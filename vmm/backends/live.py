"""What the back-ends that run the guest at its own privilege levels have in common: a look at where the CPU stands.

Knows the vCPU whose state is the CPU's own, and the walk of the guest's tables. Changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.decode import Instruction, decode
from bt.discover import LONGEST
from vmm.cpu_state import Cpu
from vmm.faults import GuestPageFault
from vmm.x86.bits import Vector

if TYPE_CHECKING:
    from vmm.vm import Vm


def load_tables(vm: Vm) -> None:
    """Whatever the VMM walks from now on, it walks by the tables that are in use now."""
    state = vm.vcpu.state
    vm.paging.load(state[Cpu.CR0], state[Cpu.CR3], state[Cpu.CR4], vm.vcpu.efer, reload_pdptes=True)


def instruction_at(vm: Vm) -> Instruction | None:
    """The instruction at EIP; None when it cannot be fetched any more."""
    vcpu, linear_memory = vm.vcpu, vm.linear
    code = vcpu.cs
    linear, user = code.base + vcpu.eip & 0xFFFFFFFF, vcpu.cpl == 3
    room = min(LONGEST, 0x1000 - (linear & 0xFFF))
    try:
        raw = linear_memory.read(linear, room, user, fetch=True)
        if room < LONGEST:
            try:
                raw += linear_memory.read(linear + room & 0xFFFFFFFF, LONGEST - room, user, fetch=True)
            except GuestPageFault:
                pass  # it ends before that page, or the next look finds nothing
    except GuestPageFault:
        return None
    return next(decode(raw, vcpu.eip, code.wide), None)


def int_size(vm: Vm, vector: int, behind: int) -> int:
    """Bytes of the INT that ends at `behind`: INT3 and INTO have forms of one byte."""
    if vector not in (Vector.BP, Vector.OF):
        return 2
    try:
        raw = vm.linear.read(vm.vcpu.cs.base + behind - 2 & 0xFFFFFFFF, 2)
    except GuestPageFault:
        return 1
    return 2 if raw[0] == 0xCD and raw[1] == vector else 1
