"""Hypercalls about the virtual CPU: handlers, stacks, descriptors in use, flags, debug registers, IRET.

Knows the layouts of the requests (Xen's public headers, xen.h, callback.h, vcpu.h).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.cpu_state import Cpu
from vmm.exits import End, Stop, Stopped
from vmm.mmu.direct import VMM_START
from vmm.mmu.frames import Errno, Refused
from vmm.x86.bits import Flag
from vmm.xen.traps import Handler

if TYPE_CHECKING:
    from vmm.xen.domain import XenDomain

_MASKS_EVENTS: Final = 4
_GDT_ENTRIES: Final = 14 * 512


def _kernel(selector: int) -> int:
    """A code or stack selector of the guest's kernel: never of the VMM's level."""
    return selector & 0xFFFC | max(selector & 3, 1)


def set_trap_table(domain: XenDomain, table: int, _b: int, _c: int, _d: int, _e: int) -> int:
    """{vector, flags, CS, EIP} each, up to an EIP of 0; no table: no handlers."""
    if not table:
        domain.traps.handlers.clear()
        return 0
    for n in range(257):
        head, address = domain.arguments.words(table + 8 * n, 2)
        if not address:
            return 0
        flags = head >> 8 & 0xFF
        domain.traps.handlers[head & 0xFF] = Handler(_kernel(head >> 16), address, flags & 3, bool(flags & _MASKS_EVENTS))
    raise Refused(Errno.INVAL, "a trap table without an end")


def set_gdt(domain: XenDomain, frame_list: int, entries: int, _c: int, _d: int, _e: int) -> int:
    """The frames of the GDT, and how many entries it has."""
    if entries > _GDT_ENTRIES:
        raise Refused(Errno.INVAL, "a GDT that reaches into the VMM's entries")
    domain.descriptors.set_gdt(list(domain.arguments.words(frame_list, -(-entries // 512))))
    return 0


def stack_switch(domain: XenDomain, selector: int, esp: int, _c: int, _d: int, _e: int) -> int:
    """SS and ESP for the next entries from user mode."""
    domain.traps.stack = (_kernel(selector & 0xFFFF), esp)
    return 0


def set_callbacks(domain: XenDomain, event_selector: int, event: int, failsafe_selector: int, failsafe: int, _e: int) -> int:
    """Where events go, and what cannot be returned to."""
    domain.traps.event = Handler(_kernel(event_selector & 0xFFFF), event, masks=True)
    domain.traps.failsafe = Handler(_kernel(failsafe_selector & 0xFFFF), failsafe)
    return 0


def callback_op(domain: XenDomain, command: int, request: int, _c: int, _d: int, _e: int) -> int:
    """The same one by one: register (0) and unregister (1)."""
    kind = domain.arguments.words(request, 1)[0]
    if command == 1:
        return 0
    if command != 0:
        raise Refused(Errno.NOSYS, "an unknown command")
    _, selector, address = domain.arguments.words(request, 3)
    handler = Handler(_kernel(selector & 0xFFFF), address, masks=kind & 0xFFFF == 0)
    match kind & 0xFFFF:
        case 0:
            domain.traps.event = handler
        case 1:
            domain.traps.failsafe = handler
        case 3:
            pass  # non-maskable interrupts: none ever come
        case _:
            raise Refused(Errno.NOSYS, "a callback that 32-bit guests have not")
    return 0


def fpu_taskswitch(domain: XenDomain, on: int, _b: int, _c: int, _d: int, _e: int) -> int:
    """Sets or clears CR0.TS."""
    domain.machine.set_task_switched(bool(on))
    return 0


def set_debugreg(domain: XenDomain, number: int, value: int, _c: int, _d: int, _e: int) -> int:
    """Writes a debug register."""
    if number > 7 or number in (4, 5) or number < 4 and value >= VMM_START:
        raise Refused(Errno.INVAL, "a debug register that a guest may not set so")
    domain.vm.vcpu.debug[number] = value
    return 0


def get_debugreg(domain: XenDomain, number: int, _b: int, _c: int, _d: int, _e: int) -> int:
    """Reads a debug register."""
    if number > 7:
        raise Refused(Errno.INVAL, "a debug register that does not exist")
    return domain.vm.vcpu.debug[number]


def vm_assist(_domain: XenDomain, command: int, kind: int, _c: int, _d: int, _e: int) -> int:
    """4 GiB segments (0) and their notification (1), writable page tables (2), PAE tables above 4 GiB (3): all are always on."""
    if command > 1:
        raise Refused(Errno.NOSYS, "an unknown command")
    if kind > 3:
        raise Refused(Errno.INVAL, "an assistance that does not exist")
    return 0


def vcpu_op(domain: XenDomain, command: int, number: int, request: int, _d: int, _e: int) -> int:
    """The one virtual CPU: whether it is up (3), its timer (6 to 9), where it keeps its run state (4, 5)."""
    if number:
        raise Refused(Errno.NOENT, "a virtual CPU that does not exist")
    arguments = domain.arguments
    match command:
        case 0 | 1:
            return 0
        case 3:
            return 1
        case 4:
            now = domain.clock.now()
            arguments.write_words(request, 0, 0, 0, now & 0xFFFFFFFF, now >> 32, *[0] * 6)
            return 0
        case 6:
            period = arguments.quads(request, 1)[0]
            if period < 1_000_000:
                raise Refused(Errno.INVAL, "a timer period below a millisecond")
            domain.set_period(period)
            return 0
        case 7:
            domain.set_period(0)
            return 0
        case 8:
            low, high, flags = arguments.words(request, 3)
            deadline = high << 32 | low
            if flags & 1 and deadline < domain.clock.now():
                raise Refused(62, "a deadline that has passed")
            domain.set_timer(deadline)
            return 0
        case 9:
            domain.set_timer(0)
            return 0
        case _:
            raise Refused(Errno.NOSYS, "an unknown command")


def iret(domain: XenDomain, _a: int, _b: int, _c: int, _d: int, _e: int) -> int:
    """Returns through the frame on the stack: EAX, EIP, CS, EFLAGS, and ESP, SS to user mode; IF there is the virtual interrupt mask."""
    state, traps, machine = domain.machine.state, domain.traps, domain.machine
    stack = state[Cpu.SS + Cpu.BASE] + state[Cpu.ESP] & 0xFFFFFFFF
    eax, eip, selector, flags = domain.arguments.words(stack, 4)
    level = max(selector & 3, 1)
    if level == 2 or flags & Flag.VM:
        raise Stopped(Stop(End.UNSUPPORTED, f"iret to privilege level {level} or virtual-8086 mode: only levels 1 and 3 are supported"))
    esp = state[Cpu.ESP] + 16 & 0xFFFFFFFF
    if level == 3:
        esp, stack_selector = domain.arguments.words(stack + 16, 2)
        if not traps.load(Cpu.SS, stack_selector, 3):
            raise Stopped(Stop(End.DIED, f"iret with the stack segment {stack_selector:#x}, which is none"))
    if not traps.load(Cpu.CS, selector, level):
        raise Stopped(Stop(End.DIED, f"iret to the code segment {selector:#x}, which is none"))
    state[Cpu.EIP], state[Cpu.ESP], state[Cpu.EAX] = eip, esp, eax
    machine.set_mode(level)
    machine.set_flags(flags & ~(Flag.IOPL | Flag.VM | Flag.RF) & 0x3F7FD7 | Flag.IF)
    domain.shared.masked = 0 if flags & Flag.IF else 1
    return 0
