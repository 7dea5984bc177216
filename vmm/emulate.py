"""One routine per sensitive instruction: what it does to the virtual CPU.

A routine gets the vCPU's context and the instruction, with the exact state before it. It returns None when the instruction
is done and EIP is to move past it, JUMPED when it has set EIP itself, or an outcome. What the guest does wrong it raises as
GuestFault, having changed nothing. Source: the manual's pseudo-code, SDM 2. Knows no back-end and no translation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from bt.decode import OPERAND_SIZE, Instruction
from vmm.cpuid import EFER
from vmm.exits import RESUME, WAIT, End, Outcome, Stop, Stopped
from vmm.faults import GuestFault
from vmm.x86.bits import Cr0, Cr4, Efer, Flag, Vector
from vmm.x86.descriptors import (
    CALL_GATE,
    CODE,
    CONFORMING,
    LDT_TYPE,
    NULL,
    PRESENT,
    SEGMENT,
    TASK_GATE,
    TSS_AVAILABLE,
    TSS_BUSY,
    WRITABLE,
    Segment,
    dpl,
    segment,
    system_type,
)

if TYPE_CHECKING:
    from vmm.vm import Vm

JUMPED: Final = RESUME
Result = Outcome | None
Routine = Callable[["Vm", Instruction], Result]

_CR4_OFFERED = Cr4.TSD | Cr4.DE | Cr4.PSE | Cr4.PAE | Cr4.MCE | Cr4.PGE | Cr4.PCE | Cr4.OSFXSR | Cr4.OSXMMEXCPT
_TABLE_CR0 = Cr0.PG | Cr0.WP | Cr0.PE
_TABLE_CR4 = Cr4.PSE | Cr4.PAE


def undefined(vm: Vm, instruction: Instruction) -> Result:
    """What the virtual CPU does not have."""
    raise GuestFault(Vector.UD)


def _privileged(vm: Vm) -> None:
    if vm.vcpu.cpl:
        raise GuestFault(Vector.GP, 0)


# -- flags and interrupts ------------------------------------------------------------------------------------------------------


def cli(vm: Vm, instruction: Instruction) -> Result:
    if vm.vcpu.cpl > vm.vcpu.iopl:
        raise GuestFault(Vector.GP, 0)
    vm.vcpu.virtual_flags &= ~Flag.IF
    return None


def sti(vm: Vm, instruction: Instruction) -> Result:
    vcpu = vm.vcpu
    if vcpu.cpl > vcpu.iopl:
        raise GuestFault(Vector.GP, 0)
    if not vcpu.interrupts_on:
        vcpu.inhibited = True
    vcpu.virtual_flags |= Flag.IF
    return None


def pushf(vm: Vm, instruction: Instruction) -> Result:
    vm.operands.push(vm.vcpu.flags() & ~(Flag.RF | Flag.VM), size=vm.operands.size(instruction))
    return None


def popf(vm: Vm, instruction: Instruction) -> Result:
    """IOPL changes only at CPL 0, IF only when CPL <= IOPL (SDM 2B "POPF")."""
    vcpu, size = vm.vcpu, vm.operands.size(instruction)
    (value,) = vm.operands.peek(1, size)
    vm.operands.drop(size)
    before = vcpu.flags()
    kept = Flag.VM | Flag.VIF | Flag.VIP | (0xFFFF0000 if size == 2 else 0)
    if vcpu.cpl:
        kept |= Flag.IOPL
        if vcpu.cpl > vcpu.iopl:
            kept |= Flag.IF
    vcpu.set_flags((value & ~kept | before & kept) & ~Flag.RF)
    return None


def hlt(vm: Vm, instruction: Instruction) -> Result:
    _privileged(vm)
    vm.vcpu.halted = True
    return WAIT


def software_interrupt(vm: Vm, instruction: Instruction) -> Result:
    """INT n, INT3, INTO, ICEBP in virtual kernel mode."""
    vcpu = vm.vcpu
    if instruction.opcode == 0xCE and not vcpu.flags() & Flag.OF:
        return None
    if instruction.opcode == 0xF1:
        vm.events.interrupt(Vector.DB, instruction.next, software=False)
        return JUMPED
    vector = {0xCC: Vector.BP, 0xCE: Vector.OF}.get(instruction.opcode, instruction.raw[-1])
    vm.events.interrupt(vector, instruction.next, software=True)
    return JUMPED


def iret(vm: Vm, instruction: Instruction) -> Result:
    """SDM 2A "IRET": to the same or an outer level. Not to virtual-8086 mode, and not out of a nested task."""
    vcpu, size = vm.vcpu, vm.operands.size(instruction)
    if vcpu.flags() & Flag.NT:
        raise Stopped(Stop(End.UNSUPPORTED, "iret out of a nested task: hardware task switches are not supported"))
    eip, selector, flags = vm.operands.peek(3, size)
    if size == 4 and flags & Flag.VM and vcpu.cpl == 0:
        raise Stopped(Stop(End.UNSUPPORTED, "iret to virtual-8086 mode is not supported"))
    selector &= 0xFFFF
    code = vm.segments.code(selector, returning=True)
    level = selector & 3
    before, kept = vcpu.flags(), Flag.VM | Flag.VIF | Flag.VIP
    if size == 2:
        kept |= 0xFFFF0000
    if vcpu.cpl:
        kept |= Flag.IOPL
        if vcpu.cpl > vcpu.iopl:
            kept |= Flag.IF
    _return_to(vm, eip, code, level, 3 * size, size, 0)
    vcpu.set_flags(flags & ~kept | before & kept)
    return JUMPED


def _return_to(vm: Vm, eip: int, code: Segment, level: int, used: int, size: int, extra: int) -> None:
    """The common end of IRET and RETF: pops the outer stack when the level changes, and releases `extra` bytes of arguments."""
    vcpu = vm.vcpu
    if level == vcpu.cpl:
        vm.operands.drop(used + extra)
    else:
        words = vm.operands.peek(used // size + extra // size + 2, size)
        esp, selector = words[-2:]
        stack = vm.segments.stack(selector & 0xFFFF, level)
        vcpu.ss = stack
        vcpu.esp = (esp if stack.wide else vcpu.esp & 0xFFFF0000 | esp & 0xFFFF) + extra
        vm.segments.drop_privileged_data(level)
    vcpu.cs = code
    vcpu.cpl = level
    vcpu.eip = eip


# -- control registers -----------------------------------------------------------------------------------------------------------


def write_control(vm: Vm, instruction: Instruction) -> Result:
    """MOV to CR0, CR2, CR3, CR4."""
    _privileged(vm)
    number, value = instruction.modrm >> 3 & 7, vm.vcpu.register(instruction.modrm & 7)
    if number == 0:
        set_cr0(vm, value)
    elif number == 2:
        vm.vcpu.cr2 = value
    elif number == 3:
        vcpu = vm.vcpu
        if not vm.paging.load(vcpu.cr0, value, vcpu.cr4, vcpu.efer, reload_pdptes=True):
            raise GuestFault(Vector.GP, 0)
        vcpu.cr3 = value
        vm.mmu.load(vcpu.cpl == 3)
        vm.backend.tables_changed()
    elif number == 4:
        set_cr4(vm, value)
    else:
        raise GuestFault(Vector.UD)
    return None


def read_control(vm: Vm, instruction: Instruction) -> Result:
    """MOV from a control register, where it was not done in the cache."""
    _privileged(vm)
    number, vcpu = instruction.modrm >> 3 & 7, vm.vcpu
    if number not in (0, 2, 3, 4):
        raise GuestFault(Vector.UD)
    vcpu.set_register(instruction.modrm & 7, {0: vcpu.cr0, 2: vcpu.cr2, 3: vcpu.cr3, 4: vcpu.cr4}[number])
    return None


def set_cr0(vm: Vm, value: int) -> None:
    """SDM 3A 2.5: which combinations are refused, and what a change drops."""
    vcpu = vm.vcpu
    value = value & 0xE005003F | Cr0.ET
    if value & Cr0.PG and not value & Cr0.PE or value & Cr0.NW and not value & Cr0.CD:
        raise GuestFault(Vector.GP, 0)
    if not value & Cr0.PE:
        raise Stopped(Stop(End.UNSUPPORTED, "the guest goes to real mode: binary translation runs 32-bit protected mode; use --backend hw"))
    if not vm.paging.load(value, vcpu.cr3, vcpu.cr4, vcpu.efer):
        raise GuestFault(Vector.GP, 0)
    changed, vcpu.cr0 = vcpu.cr0 ^ value, value
    vm.backend.control_changed()
    if changed & _TABLE_CR0:
        _tables_dropped(vm)


def set_cr4(vm: Vm, value: int) -> None:
    vcpu = vm.vcpu
    if value & ~_CR4_OFFERED:
        raise GuestFault(Vector.GP, 0)
    if not vm.paging.load(vcpu.cr0, vcpu.cr3, value, vcpu.efer):
        raise GuestFault(Vector.GP, 0)
    changed, vcpu.cr4 = vcpu.cr4 ^ value, value
    vm.backend.control_changed()
    if changed & _TABLE_CR4:
        _tables_dropped(vm)
    elif changed & Cr4.PGE:
        vm.mmu.load(vcpu.cpl == 3)


def _tables_dropped(vm: Vm) -> None:
    vm.mmu.drop_roots()
    vm.mmu.load(vm.vcpu.cpl == 3)
    vm.backend.tables_changed()


def clts(vm: Vm, instruction: Instruction) -> Result:
    _privileged(vm)
    vm.vcpu.cr0 &= ~Cr0.TS
    vm.backend.control_changed()
    return None


def lmsw(vm: Vm, instruction: Instruction) -> Result:
    """Sets PE, MP, EM and TS; cannot clear PE."""
    _privileged(vm)
    value = vm.operands.read(instruction, 2) & 0xF
    set_cr0(vm, vm.vcpu.cr0 & ~0xE | value)
    return None


def smsw(vm: Vm, instruction: Instruction) -> Result:
    size = vm.operands.size(instruction) if instruction.modrm >= 0xC0 else 2
    vm.operands.write(instruction, size, vm.vcpu.cr0)
    return None


def invlpg(vm: Vm, instruction: Instruction) -> Result:
    _privileged(vm)
    address = vm.operands.address(instruction)
    vm.mmu.invalidate(address)
    vm.backend.page_invalidated(address)
    return None


def read_debug(vm: Vm, instruction: Instruction) -> Result:
    """DR4 and DR5 mean DR6 and DR7 unless CR4.DE is set."""
    _privileged(vm)
    vm.vcpu.set_register(instruction.modrm & 7, vm.vcpu.debug[_debug_number(vm, instruction)])
    return None


def write_debug(vm: Vm, instruction: Instruction) -> Result:
    _privileged(vm)
    number, value = _debug_number(vm, instruction), vm.vcpu.register(instruction.modrm & 7)
    if number == 6:
        value = value & 0xE00F | 0xFFFF0FF0
    elif number == 7:
        value = value & 0xFFFF2BFF | 0x400
    vm.vcpu.debug[number] = value
    return None


def _debug_number(vm: Vm, instruction: Instruction) -> int:
    number = instruction.modrm >> 3 & 7
    if number in (4, 5):
        if vm.vcpu.cr4 & Cr4.DE:
            raise GuestFault(Vector.UD)
        number += 2
    return number


# -- model-specific registers ----------------------------------------------------------------------------------------------------


def rdmsr(vm: Vm, instruction: Instruction) -> Result:
    _privileged(vm)
    vcpu, number = vm.vcpu, vm.vcpu.register(1)
    value = vcpu.efer if number == EFER else vcpu.msrs.get(number)
    if value is None:
        raise GuestFault(Vector.GP, 0)
    vcpu.set_register(0, value)
    vcpu.set_register(2, value >> 32)
    return None


def wrmsr(vm: Vm, instruction: Instruction) -> Result:
    _privileged(vm)
    vcpu, number = vm.vcpu, vm.vcpu.register(1)
    value = vcpu.register(2) << 32 | vcpu.register(0)
    if number == EFER:
        if value & ~Efer.NXE:
            raise GuestFault(Vector.GP, 0)
        vcpu.efer = value
        vm.paging.load(vcpu.cr0, vcpu.cr3, vcpu.cr4, value)
        _tables_dropped(vm)
    elif number in vcpu.msrs:
        vcpu.msrs[number] = value
    else:
        raise GuestFault(Vector.GP, 0)
    return None


def rdpmc(vm: Vm, instruction: Instruction) -> Result:
    """There are no performance counters."""
    raise GuestFault(Vector.GP, 0)


# -- descriptor tables ------------------------------------------------------------------------------------------------------------


def _load_table(vm: Vm, instruction: Instruction) -> tuple[int, int]:
    _privileged(vm)
    address = vm.operands.address(instruction)
    limit, base = vm.linear.read_int(address, 2), vm.linear.read_int(address + 2, 4)
    return base & 0xFFFFFF if instruction.prefixes & OPERAND_SIZE else base, limit


def lgdt(vm: Vm, instruction: Instruction) -> Result:
    vm.vcpu.gdt_base, vm.vcpu.gdt_limit = _load_table(vm, instruction)
    vm.descriptors.drop_all()
    return None


def lidt(vm: Vm, instruction: Instruction) -> Result:
    vm.vcpu.idt_base, vm.vcpu.idt_limit = _load_table(vm, instruction)
    return None


def store_table(vm: Vm, instruction: Instruction) -> Result:
    """SGDT, SIDT."""
    vcpu = vm.vcpu
    base, limit = (vcpu.idt_base, vcpu.idt_limit) if instruction.modrm >> 3 & 1 else (vcpu.gdt_base, vcpu.gdt_limit)
    vm.linear.write(vm.operands.address(instruction), limit.to_bytes(2, "little") + base.to_bytes(4, "little"), vcpu.cpl == 3)
    return None


def lldt(vm: Vm, instruction: Instruction) -> Result:
    _privileged(vm)
    selector = vm.operands.read(instruction, 2)
    if not selector & 0xFFFC:
        vm.vcpu.ldt = NULL
    else:
        descriptor, _ = _system_descriptor(vm, selector, (LDT_TYPE,))
        vm.vcpu.ldt = segment(selector, descriptor)
    vm.descriptors.drop_all()
    return None


def ltr(vm: Vm, instruction: Instruction) -> Result:
    _privileged(vm)
    selector = vm.operands.read(instruction, 2)
    if not selector & 0xFFFC:
        raise GuestFault(Vector.GP, 0)
    descriptor, address = _system_descriptor(vm, selector, (TSS_AVAILABLE, 1))
    busy = descriptor | 2 << 40
    vm.linear.write_int(address + 5, 1, busy >> 40)
    vm.vcpu.tr = segment(selector, busy)
    return None


def _system_descriptor(vm: Vm, selector: int, types: tuple[int, ...]) -> tuple[int, int]:
    error = selector & 0xFFFC
    if selector & 4:
        raise GuestFault(Vector.GP, error)
    descriptor, address = vm.segments.descriptor(selector)
    high = descriptor >> 32
    if high & SEGMENT or system_type(high) not in types:
        raise GuestFault(Vector.GP, error)
    if not high & PRESENT:
        raise GuestFault(Vector.NP, error)
    return descriptor, address


def sldt(vm: Vm, instruction: Instruction) -> Result:
    size = vm.operands.size(instruction) if instruction.modrm >= 0xC0 else 2
    vm.operands.write(instruction, size, vm.vcpu.ldt.selector)
    return None


def str_(vm: Vm, instruction: Instruction) -> Result:
    size = vm.operands.size(instruction) if instruction.modrm >= 0xC0 else 2
    vm.operands.write(instruction, size, vm.vcpu.tr.selector)
    return None


# -- segment registers --------------------------------------------------------------------------------------------------------------


def push_segment(vm: Vm, instruction: Instruction) -> Result:
    """PUSH CS, PUSH SS."""
    vcpu = vm.vcpu
    vm.operands.push((vcpu.cs if instruction.opcode == 0x0E else vcpu.ss).selector, size=vm.operands.size(instruction))
    return None


def read_segment(vm: Vm, instruction: Instruction) -> Result:
    """MOV r/m, CS or SS."""
    vcpu = vm.vcpu
    size = vm.operands.size(instruction) if instruction.modrm >= 0xC0 else 2
    vm.operands.write(instruction, size, (vcpu.cs if instruction.modrm >> 3 & 7 == 1 else vcpu.ss).selector)
    return None


def _load_ss(vm: Vm, selector: int) -> None:
    stack = vm.segments.stack(selector, vm.vcpu.cpl)
    vm.vcpu.ss = stack
    vm.vcpu.inhibited = True


def mov_ss(vm: Vm, instruction: Instruction) -> Result:
    _load_ss(vm, vm.operands.read(instruction, 2))
    return None


def pop_ss(vm: Vm, instruction: Instruction) -> Result:
    size = vm.operands.size(instruction)
    (selector,) = vm.operands.peek(1, size)
    esp = vm.vcpu.esp
    _load_ss(vm, selector & 0xFFFF)
    vm.vcpu.esp = esp
    vm.operands.drop(size)
    return None


def lss(vm: Vm, instruction: Instruction) -> Result:
    if instruction.modrm >= 0xC0:
        raise GuestFault(Vector.UD)
    size, address, user = vm.operands.size(instruction), vm.operands.address(instruction), vm.vcpu.cpl == 3
    offset, selector = vm.linear.read_int(address, size, user), vm.linear.read_int(address + size, 2, user)
    _load_ss(vm, selector)
    vm.operands.write_register(instruction.modrm >> 3 & 7, size, offset)
    return None


def _far_pointer(vm: Vm, instruction: Instruction) -> tuple[int, int]:
    """(offset, selector) of a far jump's or call's operand."""
    size = vm.operands.size(instruction)
    if instruction.opcode == 0xFF:
        if instruction.modrm >= 0xC0:
            raise GuestFault(Vector.UD)
        address, user = vm.operands.address(instruction), vm.vcpu.cpl == 3
        return vm.linear.read_int(address, size, user), vm.linear.read_int(address + size, 2, user)
    raw = instruction.raw
    return int.from_bytes(raw[-2 - size : -2], "little"), int.from_bytes(raw[-2:], "little")


def jmp_far(vm: Vm, instruction: Instruction) -> Result:
    offset, selector = _far_pointer(vm, instruction)
    gate = _gate(vm, selector)
    if gate is not None:
        offset, selector = gate
    vcpu = vm.vcpu
    vcpu.cs = vm.segments.code(selector & 0xFFFC if gate else selector)
    vcpu.eip = offset
    return JUMPED


def call_far(vm: Vm, instruction: Instruction) -> Result:
    """To the same level, directly or through a call gate. A call gate to an inner level can only come from user mode."""
    offset, selector = _far_pointer(vm, instruction)
    size, vcpu = vm.operands.size(instruction), vm.vcpu
    gate = _gate(vm, selector)
    if gate is not None:
        offset, selector = gate
        size, selector = 4, selector & 0xFFFC
    code = vm.segments.code(selector)
    vm.operands.push(vcpu.cs.selector, instruction.next, size=size)
    vcpu.cs = code
    vcpu.eip = offset
    return JUMPED


def _gate(vm: Vm, selector: int) -> tuple[int, int] | None:
    """(offset, selector) behind a call gate, or None when the selector names none. Raises for what cannot be jumped to."""
    if not selector & 0xFFFC:
        raise GuestFault(Vector.GP, 0)
    descriptor, _ = vm.segments.descriptor(selector)
    high, error = descriptor >> 32, selector & 0xFFFC
    if high & SEGMENT:
        return None
    kind = system_type(high)
    if kind not in (CALL_GATE, TASK_GATE, TSS_AVAILABLE) or dpl(high) < max(vm.vcpu.cpl, selector & 3):
        raise GuestFault(Vector.GP, error)
    if not high & PRESENT:
        raise GuestFault(Vector.NP, error)
    if kind != CALL_GATE:
        raise Stopped(Stop(End.UNSUPPORTED, "a far transfer to a task: hardware task switches are not supported"))
    return descriptor & 0xFFFF | high & 0xFFFF0000, descriptor >> 16 & 0xFFFF


def ret_far(vm: Vm, instruction: Instruction) -> Result:
    size = vm.operands.size(instruction)
    eip, selector = vm.operands.peek(2, size)
    selector &= 0xFFFF
    extra = int.from_bytes(instruction.raw[-2:], "little") if instruction.opcode == 0xCA else 0
    code = vm.segments.code(selector, returning=True)
    _return_to(vm, eip, code, selector & 3, 2 * size, size, extra)
    return JUMPED


# -- what looks at descriptors ---------------------------------------------------------------------------------------------------------


def _visible(vm: Vm, selector: int, types: tuple[int, ...]) -> int | None:
    """The second word of the descriptor that LAR, LSL, VERR and VERW may see, else None."""
    if not selector & 0xFFFC:
        return None
    try:
        descriptor, _ = vm.segments.descriptor(selector)
    except GuestFault as fault:
        if fault.vector == Vector.PF:
            raise
        return None
    high = descriptor >> 32
    if not high & SEGMENT:
        if system_type(high) not in types:
            return None
    elif high & CODE and high & CONFORMING:
        return high
    return high if dpl(high) >= max(vm.vcpu.cpl, selector & 3) else None


def _set_zf(vm: Vm, on: bool) -> None:
    vm.vcpu.set_flags(vm.vcpu.flags() & ~Flag.ZF | (Flag.ZF if on else 0))


def lar(vm: Vm, instruction: Instruction) -> Result:
    high = _visible(vm, vm.operands.read(instruction, 2), (1, LDT_TYPE, 3, 4, TASK_GATE, TSS_AVAILABLE, TSS_BUSY, CALL_GATE))
    _set_zf(vm, high is not None)
    if high is not None:
        vm.operands.write_register(instruction.modrm >> 3 & 7, vm.operands.size(instruction), high & 0xF0FF00)
    return None


def lsl(vm: Vm, instruction: Instruction) -> Result:
    selector = vm.operands.read(instruction, 2)
    high = _visible(vm, selector, (1, LDT_TYPE, 3, TSS_AVAILABLE, TSS_BUSY))
    _set_zf(vm, high is not None)
    if high is not None:
        limit = segment(selector, vm.segments.descriptor(selector)[0]).limit
        vm.operands.write_register(instruction.modrm >> 3 & 7, vm.operands.size(instruction), limit)
    return None


def verr(vm: Vm, instruction: Instruction) -> Result:
    high = _visible(vm, vm.operands.read(instruction, 2), ())
    _set_zf(vm, high is not None and (not high & CODE or bool(high & WRITABLE)))
    return None


def verw(vm: Vm, instruction: Instruction) -> Result:
    high = _visible(vm, vm.operands.read(instruction, 2), ())
    _set_zf(vm, high is not None and not high & CODE and bool(high & WRITABLE))
    return None


def arpl(vm: Vm, instruction: Instruction) -> Result:
    destination = vm.operands.read(instruction, 2)
    source = vm.vcpu.register(instruction.modrm >> 3 & 7)
    lower = destination & 3 < source & 3
    if lower:
        vm.operands.write(instruction, 2, destination & ~3 | source & 3)
    _set_zf(vm, lower)
    return None


# -- flow that has no template: 16-bit operand sizes, and any form where control must come back to the VMM -------------------------------


def near_return(vm: Vm, instruction: Instruction) -> Result:
    size = vm.operands.size(instruction)
    (vm.vcpu.eip,) = vm.operands.peek(1, size)
    vm.operands.drop(size + (int.from_bytes(instruction.raw[-2:], "little") if instruction.opcode == 0xC2 else 0))
    return JUMPED


def indirect_jump(vm: Vm, instruction: Instruction) -> Result:
    vm.vcpu.eip = vm.operands.read(instruction, vm.operands.size(instruction))
    return JUMPED


def near_call(vm: Vm, instruction: Instruction) -> Result:
    """CALL rel and CALL r/m."""
    size = vm.operands.size(instruction)
    target = instruction.relative_target() if instruction.opcode == 0xE8 else vm.operands.read(instruction, size)
    vm.operands.push(instruction.next, size=size)
    vm.vcpu.eip = target
    return JUMPED


def near_jump(vm: Vm, instruction: Instruction) -> Result:
    vm.vcpu.eip = instruction.relative_target()
    return JUMPED


def conditional_jump(vm: Vm, instruction: Instruction) -> Result:
    if _condition(instruction.opcode & 0xF, vm.vcpu.flags()):
        vm.vcpu.eip = instruction.relative_target()
        return JUMPED
    return None


def _condition(code: int, flags: int) -> bool:
    """Condition codes of Jcc: SDM 1 appendix B "EFLAGS Condition Codes"."""
    carry, zero, sign, overflow, parity = (bool(flags & bit) for bit in (Flag.CF, Flag.ZF, Flag.SF, Flag.OF, Flag.PF))
    tests = (overflow, carry, zero, carry or zero, sign, parity, sign != overflow, zero or sign != overflow)
    return tests[code >> 1] != bool(code & 1)


ROUTINES: dict[str, Routine] = {
    "cli": cli,
    "sti": sti,
    "hlt": hlt,
    "pushf": pushf,
    "popf": popf,
    "iret": iret,
    "int": software_interrupt,
    "int3": software_interrupt,
    "into": software_interrupt,
    "icebp": software_interrupt,
    "mov r,cr0": read_control,
    "mov r,cr2": read_control,
    "mov r,cr3": read_control,
    "mov r,cr4": read_control,
    "mov r,cr": read_control,
    "mov cr,r": write_control,
    "mov r,dr": read_debug,
    "mov dr,r": write_debug,
    "clts": clts,
    "lmsw": lmsw,
    "smsw": smsw,
    "invlpg": invlpg,
    "rdmsr": rdmsr,
    "wrmsr": wrmsr,
    "rdpmc": rdpmc,
    "lgdt": lgdt,
    "lidt": lidt,
    "sgdt": store_table,
    "sidt": store_table,
    "lldt": lldt,
    "ltr": ltr,
    "sldt": sldt,
    "str": str_,
    "push cs": push_segment,
    "push ss": push_segment,
    "mov r/m,cs": read_segment,
    "mov r/m,ss": read_segment,
    "mov ss,r/m": mov_ss,
    "pop ss": pop_ss,
    "lss": lss,
    "jmp far": jmp_far,
    "jmp far m": jmp_far,
    "call far": call_far,
    "call far m": call_far,
    "ret far": ret_far,
    "ret far n": ret_far,
    "lar": lar,
    "lsl": lsl,
    "verr": verr,
    "verw": verw,
    "arpl": arpl,
    "ret": near_return,
    "ret n": near_return,
    "jmp r/m": indirect_jump,
    "call r/m": near_call,
    "call rel": near_call,
    "jmp rel": near_jump,
    "jmp rel8": near_jump,
    **{f"jcc rel {n:X}": conditional_jump for n in range(16)},
    **{f"jcc rel8 {n:X}": conditional_jump for n in range(16)},
}

