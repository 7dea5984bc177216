"""One routine per sensitive instruction: the table from rows of the translator's table to routines.

Each row that the translator or another back-end hands to the VMM stands here; what does not is undefined on the virtual CPU.
Knows no back-end and no translation.
"""

from __future__ import annotations

from bt.sensitive import ADAPTED
from vmm.emulate import control, fast_calls, flow, interrupts, moves, msrs, port_access, selectors, tables, transfers, visibility
from vmm.emulate.control import set_cr0
from vmm.emulate.routine import Routine, undefined

__all__ = ["ROUTINES", "set_cr0", "undefined"]

ROUTINES: dict[str, Routine] = {
    "cli": interrupts.cli,
    "sti": interrupts.sti,
    "hlt": interrupts.hlt,
    "pushf": interrupts.pushf,
    "popf": interrupts.popf,
    "iret": interrupts.iret,
    "int": interrupts.software_interrupt,
    "int3": interrupts.software_interrupt,
    "into": interrupts.software_interrupt,
    "icebp": interrupts.software_interrupt,
    "mov r,cr0": control.read_control,
    "mov r,cr2": control.read_control,
    "mov r,cr3": control.read_control,
    "mov r,cr4": control.read_control,
    "mov r,cr": control.read_control,
    **{f"mov cr{n},r": control.write_control for n in (0, 2, 3, 4, "")},
    "mov r,dr": control.read_debug,
    "mov dr,r": control.write_debug,
    "clts": control.clts,
    "lmsw": control.lmsw,
    "invd": control.write_back,
    "wbinvd": control.write_back,
    "smsw": control.smsw,
    "invlpg": control.invlpg,
    "rdmsr": msrs.rdmsr,
    "wrmsr": msrs.wrmsr,
    "rdpmc": msrs.rdpmc,
    "rdtsc": msrs.rdtsc,
    "lgdt": tables.lgdt,
    "lidt": tables.lidt,
    "sgdt": tables.store_table,
    "sidt": tables.store_table,
    "lldt": tables.lldt,
    "ltr": tables.ltr,
    "sldt": tables.sldt,
    "str": tables.str_,
    **{f"push {name}": selectors.push_segment for name in ("es", "cs", "ss", "ds", "fs", "gs")},
    **{f"mov r/m,{name}": selectors.read_segment for name in ("es", "cs", "ss", "ds", "fs", "gs")},
    **{f"mov {name},r/m": selectors.mov_segment for name in ("es", "ss", "ds", "fs", "gs")},
    **{f"pop {name}": selectors.pop_segment for name in ("es", "ss", "ds", "fs", "gs")},
    **{f"l{name}": selectors.load_far_pointer for name in ("es", "ss", "ds", "fs", "gs")},
    "sysenter": fast_calls.sysenter,
    "sysexit": fast_calls.sysexit,
    "syscall": fast_calls.syscall,
    "jmp far": transfers.jmp_far,
    "jmp far m": transfers.jmp_far,
    "call far": transfers.call_far,
    "call far m": transfers.call_far,
    "ret far": transfers.ret_far,
    "ret far n": transfers.ret_far,
    "lar": visibility.lar,
    "lsl": visibility.lsl,
    "verr": visibility.verr,
    "verw": visibility.verw,
    "arpl": visibility.arpl,
    **{f"in {operands}": port_access.in_ for operands in ("al,n", "eax,n", "al,dx", "eax,dx")},
    **{f"out {operands}": port_access.out for operands in ("n,al", "n,eax", "dx,al", "dx,eax")},
    **dict.fromkeys(("insb", "ins", "outsb", "outs"), port_access.string),
    ADAPTED.name: moves.move,
    "ret": flow.near_return,
    "ret n": flow.near_return,
    "jmp r/m": flow.indirect_jump,
    "call r/m": flow.near_call,
    "call rel": flow.near_call,
    "jmp rel": flow.near_jump,
    "jmp rel8": flow.near_jump,
    **dict.fromkeys(("loopne", "loope", "loop", "jecxz"), flow.loop),
    **{f"jcc rel {n:X}": flow.conditional_jump for n in range(16)},
    **{f"jcc rel8 {n:X}": flow.conditional_jump for n in range(16)},
}
