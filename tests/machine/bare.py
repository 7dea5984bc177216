"""A bare engine as the reference: the same code at real CPL 0, with no VMM and no code of ours between.

Knows Unicorn's public interface alone. It delivers no exception: a reference program must raise none.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import unicorn
from unicorn import x86_const as x86

MEMORY = 4 << 20


@dataclass(frozen=True)
class Ran:
    """What a bare run left: all memory from address 0."""

    memory: bytes


def run_bare(parts: Mapping[int, bytes], entry: int) -> Ran:
    """Runs 32-bit code at CPL 0 with flat segments from `entry` until it writes to a port; parts are put at their addresses."""
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
    uc.mem_map(0, MEMORY)
    for at, part in parts.items():
        uc.mem_write(at, part)
    uc.reg_write(x86.UC_X86_REG_CR0, 0x11)
    uc.reg_write(x86.UC_X86_REG_CR4, 0)
    faults: list[int] = []

    def out(uc: unicorn.Uc, port: int, size: int, value: int, _data: object) -> None:
        uc.emu_stop()

    def fault(uc: unicorn.Uc, vector: int, _data: object) -> None:
        faults.append(vector)
        uc.emu_stop()

    uc.hook_add(unicorn.UC_HOOK_INSN, out, None, 1, 0, x86.UC_X86_INS_OUT)
    uc.hook_add(unicorn.UC_HOOK_INTR, fault)
    uc.ctl_exits_enabled(True)
    uc.emu_start(entry, 0)
    if faults:
        raise AssertionError(f"the reference program raised exception {faults[0]} at {uc.reg_read(x86.UC_X86_REG_EIP):#x}")
    return Ran(bytes(uc.mem_read(0, MEMORY)))
