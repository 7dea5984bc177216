"""Who called whom in a stopped guest: its stack frames by frame pointer, with names where the kernel's file has symbols.

Knows the frame layout of code that keeps EBP (System V ABI, Intel386 supplement, 3-15 "Standard Stack Frame"; the AMD64 supplement's is twice as
wide): [EBP] is the caller's EBP, [EBP+4] the return address. Trusts nothing that it finds: a wild guest's stack may hold anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.faults import GuestFault

if TYPE_CHECKING:
    from vmm.vm import Vm

MOST = 32
"""Frames after which a trace is cut off."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, innermost first. eip: where it is, for a caller the return address. ebp: its frame pointer. name: as `Symbols.name`."""

    eip: int
    ebp: int
    name: str


@dataclass(frozen=True, slots=True)
class Backtrace:
    """The frames, innermost first, and why there are no more of them."""

    frames: tuple[Frame, ...]
    end: str


def backtrace(vm: Vm, most: int = MOST) -> Backtrace:
    """The stack of the guest at its vCPU's present EIP; never raises. At most `most` frames.

    Reads as the virtual CPU does, so it may set the accessed bits of the stack's pages in the guest's tables.
    """
    vcpu = vm.vcpu
    eip, ebp, width = vcpu.eip, vcpu.register(5), 8 if vcpu.code_64 else 4
    frames = [Frame(eip, ebp, _name(vm, eip))]
    if not _is_code(vm, eip):  # a call to nowhere made no frame: its return address is still on top of the stack
        caller = _word(vm, vcpu.esp)
        if caller is not None and _is_code(vm, caller):
            frames.append(Frame(caller, ebp, _caller(vm, caller)))
    while len(frames) < most:
        if ebp == 0:
            return Backtrace(tuple(frames), "the frame pointer is 0")
        outer, back_to = _word(vm, ebp), _word(vm, ebp + width)
        if outer is None or back_to is None:
            return Backtrace(tuple(frames), f"no memory at the frame pointer {ebp:#x}")
        if not _is_code(vm, back_to):
            return Backtrace(tuple(frames), f"the return address {back_to:#x} at frame pointer {ebp:#x} is no code")
        frames.append(Frame(back_to, outer, _caller(vm, back_to)))
        if outer and outer <= ebp:
            return Backtrace(tuple(frames), f"the frame pointer {outer:#x} does not lie above {ebp:#x}")
        ebp = outer
    return Backtrace(tuple(frames), "cut off here")


def _word(vm: Vm, offset: int) -> int | None:
    """The word at an offset in the stack segment, None where there is no memory. In 64-bit code it has 64 bits, and the segment no base."""
    try:
        return vm.linear.read_int(offset, 8) if vm.vcpu.code_64 else vm.linear.read_int(vm.vcpu.ss.base + offset & 0xFFFFFFFF, 4)
    except GuestFault:
        return None


def _is_code(vm: Vm, eip: int) -> bool:
    """Whether there is memory at `eip`; address 0 is not taken for code, though with paging off there is some."""
    if eip == 0:
        return False
    try:
        linear = eip if vm.vcpu.code_64 else vm.vcpu.cs.base + eip & 0xFFFFFFFF
        return vm.paging.walk(linear).gpa < vm.paging.memory.size
    except GuestFault:
        return False


def _name(vm: Vm, eip: int) -> str:
    return f"{eip:#x}" if vm.start is None else vm.start.symbols.name(eip)


def _caller(vm: Vm, back_to: int) -> str:
    """The name of a return address. A call that never returns may be its function's last instruction: the next function is not meant."""
    name, before = _name(vm, back_to), _name(vm, back_to - 1)
    return before if "+" in before and "+" not in name else name
