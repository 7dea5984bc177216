"""Port access in user mode: whether IOPL or the TSS's I/O permission map allows it (SDM 1 18.5 "Protected-Mode I/O")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.cpu_state import Cpu
from vmm.exits import RESUME, Outcome
from vmm.faults import GuestFault
from vmm.x86.bits import Flag, Vector

if TYPE_CHECKING:
    from vmm.vm import Vm

_MAP_BASE = 0x66  # of the 16-bit offset of the map in a 32-bit TSS


def port_allowed(vm: Vm, port: int, size: int) -> bool:
    """Whether code at the vCPU's CPL may access `size` ports from `port`."""
    vcpu = vm.vcpu
    if vcpu.cpl <= vcpu.iopl and not vcpu.state[Cpu.EFLAGS] & Flag.VM:  # virtual-8086 mode asks the map alone
        return True
    tr = vcpu.tr
    if not tr.selector & 0xFFFC or tr.limit < _MAP_BASE + 1:
        return False
    offset = vm.linear.read_int(tr.base + _MAP_BASE, 2) + (port >> 3)
    if offset + 1 > tr.limit:
        return False
    allowed = vm.linear.read_int(tr.base + offset, 2)
    return not allowed >> (port & 7) & (1 << size) - 1


def user_port_access(vm: Vm, port: int, size: int) -> Outcome:
    """A user's IN or OUT that was stopped: a #GP."""
    if not port_allowed(vm, port, size):
        raise GuestFault(Vector.GP, 0)
    return RESUME
