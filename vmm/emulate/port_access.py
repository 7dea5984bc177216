"""IN, OUT, INS and OUTS, where they are not left to the CPU: in translated code outside of privilege level 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt.decode import REPEAT, Instruction
from vmm.cpu_state import Cpu
from vmm.emulate.routine import JUMPED, Result
from vmm.faults import GuestFault
from vmm.ports import port_allowed
from vmm.x86.bits import Flag, Vector

if TYPE_CHECKING:
    from vmm.vm import Vm

_ECX, _EDX, _ESI, _EDI = 1, 2, 6, 7
_AT_ONCE = 256  # iterations of REP before others get their turn: it goes on at the same EIP
_BYTE_FORMS = 0xFE  # of the opcode: bit 0 is clear for an operand of one byte


def _operand(vm: Vm, instruction: Instruction) -> tuple[int, int]:
    """(port, bytes), which the guest may access at its privilege level. Raises #GP(0)."""
    size = vm.operands.size(instruction) if instruction.opcode & ~_BYTE_FORMS else 1
    immediate = instruction.opcode in (0xE4, 0xE5, 0xE6, 0xE7)
    port = instruction.raw[-1] if immediate else vm.vcpu.register(_EDX) & 0xFFFF
    if not port_allowed(vm, port, size):
        raise GuestFault(Vector.GP, 0)
    return port, size


def in_(vm: Vm, instruction: Instruction) -> Result:
    port, size = _operand(vm, instruction)
    vm.operands.write_register(0, size, vm.board.bus.port(port, size, None))
    return None


def out(vm: Vm, instruction: Instruction) -> Result:
    port, size = _operand(vm, instruction)
    vm.board.bus.port(port, size, vm.vcpu.register(0) & (1 << 8 * size) - 1)
    return None


def string(vm: Vm, instruction: Instruction) -> Result:
    """INS and OUTS, with REP: a page fault comes between two iterations, with the registers as they are then."""
    port, size = _operand(vm, instruction)
    vcpu, linear, user = vm.vcpu, vm.linear, vm.vcpu.cpl == 3
    into_memory = instruction.opcode < 0x6E
    index = _EDI if into_memory else _ESI
    base = vm.operands.base(Cpu.ES) if into_memory else vm.operands.overridden(instruction, Cpu.DS)
    mask = 0xFFFF if instruction.address_size == 2 else 0xFFFFFFFF
    step = -size if vcpu.flags() & Flag.DF else size
    repeated = bool(instruction.prefixes & REPEAT)
    for _ in range(1 if vcpu.trap_flag or vm.icount else _AT_ONCE):  # counted, each is an instruction
        if repeated and not vcpu.register(_ECX) & mask:
            return None
        offset = vcpu.register(index) & mask
        address = base + offset & 0xFFFFFFFF
        if into_memory:
            for last in {address, address + size - 1 & 0xFFFFFFFF}:
                vm.paging.walk(last, True, user)  # the page first: what the port gives is gone once it is read
            linear.write_int(address, size, vm.board.bus.port(port, size, None), user)
        else:
            vm.board.bus.port(port, size, linear.read_int(address, size, user))
        vcpu.set_register(index, vcpu.register(index) & ~mask | offset + step & mask)
        if not repeated:
            return None
        vcpu.set_register(_ECX, vcpu.register(_ECX) & ~mask | vcpu.register(_ECX) - 1 & mask)
    return JUMPED if vcpu.register(_ECX) & mask else None
