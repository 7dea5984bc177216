"""What the back-ends that run the guest at its own privilege levels have in common: a look at where the CPU stands.

Knows the vCPU whose state is the CPU's own, and the walk of the guest's tables. Changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.decode import Instruction, decode, decode_long
from bt.discover import LONGEST
from vmm.cpu_state import Cpu
from vmm.faults import GuestFault
from vmm.x86.bits import Fault, Vector

if TYPE_CHECKING:
    from vmm.vm import Vm


def load_tables(vm: Vm) -> None:
    """Whatever the VMM walks from now on, it walks by the tables that are in use now."""
    state = vm.vcpu.state
    vm.paging.load(state[Cpu.CR0], vm.vcpu.cr3, state[Cpu.CR4], vm.vcpu.efer, reload_pdptes=True)


def code_address(vm: Vm, eip: int) -> int:
    """The linear address of EIP in the code that runs: 64-bit code has no base."""
    return eip & 0xFFFF_FFFF_FFFF_FFFF if vm.vcpu.code_64 else vm.vcpu.cs.base + eip & 0xFFFFFFFF


def instruction_at(vm: Vm) -> Instruction | None:
    """The instruction at EIP; None when it cannot be fetched any more."""
    vcpu, linear_memory = vm.vcpu, vm.linear
    code = vcpu.cs
    linear, user = code_address(vm, vcpu.eip), vcpu.cpl == 3
    room = min(LONGEST, 0x1000 - (linear & 0xFFF))
    try:
        raw = linear_memory.read(linear, room, user, fetch=True)
        if room < LONGEST:
            try:
                raw += linear_memory.read(code_address(vm, vcpu.eip + room), LONGEST - room, user, fetch=True)
            except GuestFault:
                pass  # it ends before that page, or the next look finds nothing
    except GuestFault:
        return None
    if vcpu.code_64:
        return decode_long(raw, vcpu.eip)
    return next(decode(raw, vcpu.eip, code.wide), None)


def int_size(vm: Vm, vector: int, behind: int) -> int:
    """Bytes of the INT that ends at `behind`: INT3 and INTO have forms of one byte."""
    if vector not in (Vector.BP, Vector.OF):
        return 2
    try:
        raw = vm.linear.read(code_address(vm, behind - 2), 2)
    except GuestFault:
        return 1
    return 2 if raw[0] == 0xCD and raw[1] == vector else 1


def is_fetch(vm: Vm, gva: int, error: int) -> bool:
    """Whether a page fault that the CPU has just taken is of the fetch of the instruction at EIP, and not of its operand."""
    vcpu = vm.vcpu
    linear = code_address(vm, vcpu.eip)
    if error & (Fault.I | Fault.W) or gva - linear & 0xFFFF_FFFF_FFFF_FFFF >= LONGEST:
        return bool(error & Fault.I)
    if not (gva ^ linear) >> 12:
        return True
    load_tables(vm)
    try:
        raw = vm.linear.read(linear, 0x1000 - (linear & 0xFFF), vcpu.cpl == 3, fetch=True)
    except GuestFault:
        return True
    decoded = decode_long(raw, vcpu.eip) if vcpu.code_64 else next(decode(raw, vcpu.eip, vcpu.cs.wide), None)
    return decoded is None
