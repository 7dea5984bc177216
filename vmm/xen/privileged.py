"""Instructions of a paravirtual guest that the ABI has emulated though they are no hypercalls, and call gates, which a long-mode CPU has not.

Told from true faults by the bytes at EIP. Knows the few instructions that Xen emulates for an unprivileged guest; all others are the guest's fault.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from bt.decode import Instruction, decode
from vmm.cpu_state import Cpu
from vmm.cpuid import EFER
from vmm.exits import End, Stop, Stopped
from vmm.faults import GuestFault
from vmm.x86.bits import Cr0, Vector
from vmm.x86.descriptors import CALL_GATE, CODE, PRESENT, SEGMENT, dpl, system_type

if TYPE_CHECKING:
    from vmm.xen.domain import XenDomain

_FORCED_CPUID: Final = b"\x0f\x0bxen\x0f\xa2"
_CPUID_BASE: Final = 0x40000000
_CR0: Final = Cr0.PG | Cr0.WP | Cr0.NE | Cr0.ET | Cr0.MP | Cr0.PE
_CONTROL_REGISTERS: Final = (0, 2, 3, 4)
_CLI, _STI, _FAR_CALL, _FAR_JUMP, _GROUP_5 = 0xFA, 0xFB, 0x9A, 0xEA, 0xFF
_CLTS, _INVD, _WBINVD, _READ_CR, _READ_DR, _WRITE_CR, _WRITE_DR, _WRMSR, _RDTSC, _RDMSR = (
    0x0F06, 0x0F08, 0x0F09, 0x0F20, 0x0F21, 0x0F22, 0x0F23, 0x0F30, 0x0F31, 0x0F32,
)  # fmt: skip


def emulate_privileged(domain: XenDomain, error: int | None, code: bytes) -> None:
    """Emulates the instruction at EIP, or raises the GuestFault that it is."""
    if error is None:
        if not code.startswith(_FORCED_CPUID):
            raise GuestFault(Vector.UD)
        _forced_cpuid(domain)
        return
    instruction = next(decode(code, domain.machine.state[Cpu.EIP]), None)
    if instruction is None:
        raise GuestFault(Vector.GP, error)
    state = domain.machine.state
    if error:
        _call_gate(domain, instruction, error)
        return
    kernel = state[Cpu.HFLAGS] & 3 == 1
    if instruction.opcode in (_READ_CR, _WRITE_CR) and instruction.modrm >> 3 & 7 not in _CONTROL_REGISTERS:
        raise GuestFault(Vector.UD)  # at any level; this CPU looks at the level first
    if instruction.opcode == _RDTSC:
        _wide_result(domain, domain.clock.now())
    elif instruction.opcode in (_CLI, _STI) and state[Cpu.HFLAGS] & 3 <= domain.vm.vcpu.iopl:
        domain.shared.masked = instruction.opcode == _CLI
    elif not kernel or not _kernel_only(domain, instruction):
        raise GuestFault(Vector.GP, 0)
    state[Cpu.EIP] = instruction.next


def _kernel_only(domain: XenDomain, instruction: Instruction) -> bool:
    """What the guest's kernel may try; False: it may not."""
    machine, state = domain.machine, domain.machine.state
    number, register = instruction.modrm >> 3 & 7, 2 * (instruction.modrm & 7)
    match instruction.opcode:
        case 0x0F06:
            machine.set_task_switched(False)
        case 0x0F08 | 0x0F09:
            pass
        case 0x0F20:
            values = (_CR0 | state[Cpu.CR0] & Cr0.TS, 0, domain.vm.vcpu.cr2, domain.mmu.base << 12, state[Cpu.CR4])
            state[register] = values[number]
        case 0x0F22:
            return _write_control(domain, number, state[register])
        case 0x0F21:
            state[register] = domain.vm.vcpu.debug[number]
        case 0x0F23:
            domain.vm.vcpu.debug[number] = state[register]
        case 0x0F32:
            _wide_result(domain, 0 if state[Cpu.ECX] == EFER else domain.vm.vcpu.msrs.get(state[Cpu.ECX], 0))
        case 0x0F30:
            pass  # Xen drops an unprivileged guest's writes
        case _:
            return False
    return True


def _write_control(domain: XenDomain, number: int, value: int) -> bool:
    if number == 0:
        domain.machine.set_task_switched(bool(value & Cr0.TS))
        return not (value ^ _CR0) & ~Cr0.TS
    if number == 2:
        domain.vm.vcpu.cr2 = value
        domain.shared.set_cr2(value)
        return True
    return number == 4


def _wide_result(domain: XenDomain, value: int) -> None:
    """EDX:EAX."""
    state = domain.machine.state
    state[Cpu.EAX], state[Cpu.EDX] = value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF


def _forced_cpuid(domain: XenDomain) -> None:
    """CPUID behind the prefix that asks for the VMM's view: with it the leaves that name the VMM."""
    state = domain.machine.state
    leaf = state[Cpu.EAX]
    if leaf == _CPUID_BASE:
        values = (_CPUID_BASE + 2, *struct.unpack("<3I", b"XenVMMXenVMM"))
    elif leaf == _CPUID_BASE + 1:
        values = (4 << 16 | 17, 0, 0, 0)
    elif leaf == _CPUID_BASE + 2:
        values = (0, 0, 0, 0)
    else:
        values = domain.cpuid(leaf, state[Cpu.ECX])
    for register, value in zip((Cpu.EAX, Cpu.EBX, Cpu.ECX, Cpu.EDX), values, strict=True):
        state[register] = value
    state[Cpu.EIP] = state[Cpu.EIP] + len(_FORCED_CPUID) & 0xFFFFFFFF


def _call_gate(domain: XenDomain, instruction: Instruction, error: int) -> None:
    """A far call through a call gate, into the guest's kernel or within it, or a far jump within it (SDM 2 "CALL", "JMP")."""
    selector = _far_selector(domain, instruction)
    gate = domain.descriptors.descriptor(selector) if selector else 0
    high, state, traps = gate >> 32, domain.machine.state, domain.traps
    level = state[Cpu.HFLAGS] & 3
    if system_type(high) != CALL_GATE or high & (SEGMENT | PRESENT) != PRESENT:
        raise GuestFault(Vector.GP, error)
    if dpl(high) < max(level, selector & 3):
        raise GuestFault(Vector.GP, selector & 0xFFFC)
    target = gate >> 16 & 0xFFFF
    descriptor = domain.descriptors.descriptor(target) >> 32
    if descriptor & (SEGMENT | PRESENT | CODE) != SEGMENT | PRESENT | CODE or dpl(descriptor) > level:
        raise GuestFault(Vector.GP, target & 0xFFFC)
    jump = instruction.opcode == _FAR_JUMP or instruction.opcode == _GROUP_5 and instruction.modrm >> 3 & 7 == 5
    frame = [] if jump else [instruction.next, state[Cpu.CS]]
    outer, inner = state[Cpu.ESP], max(dpl(descriptor), 1)
    if jump and inner != level:
        raise GuestFault(Vector.GP, target & 0xFFFC)
    esp = outer
    if inner < level:
        count = high & 31
        base = state[Cpu.SS + Cpu.BASE]
        parameters = struct.unpack(f"<{count}I", domain.mmu.read(base + outer & 0xFFFFFFFF, 4 * count, user=True)) if count else ()
        frame += [*parameters, outer, state[Cpu.SS]]
        stack, esp = traps.stack
        if not traps.load(Cpu.SS, stack, 1):
            raise Stopped(Stop(End.DIED, f"the kernel's stack segment {stack:#x} is no stack"))
    esp = esp - 4 * len(frame) & 0xFFFFFFFF
    domain.mmu.write(state[Cpu.SS + Cpu.BASE] + esp & 0xFFFFFFFF, struct.pack(f"<{len(frame)}I", *frame))
    traps.load(Cpu.CS, target, inner)
    state[Cpu.ESP], state[Cpu.EIP] = esp, gate & 0xFFFF | high & 0xFFFF0000
    domain.machine.set_mode(inner)


def _far_selector(domain: XenDomain, instruction: Instruction) -> int:
    """The selector of a far call or jump, 0 for another instruction."""
    if instruction.opcode in (_FAR_CALL, _FAR_JUMP):
        return int.from_bytes(instruction.raw[-2:], "little")
    if instruction.opcode == _GROUP_5 and instruction.modrm >> 3 & 7 in (3, 5):
        linear = domain.vm.operands.address(instruction)
        return int.from_bytes(domain.mmu.read(linear + 4 & 0xFFFFFFFF, 2), "little")
    return 0
