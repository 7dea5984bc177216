"""Hypercalls about the virtual CPU: handlers, stacks, descriptors in use, flags, debug registers, IRET.

Knows the layouts of the requests (Xen's public headers, xen.h, callback.h, vcpu.h).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.cpu_state import Cpu
from vmm.exits import End, Stop, Stopped
from vmm.machine import FRAME
from vmm.mmu.direct import VMM_START
from vmm.mmu.frames import Errno, Kind, Refused
from vmm.x86.bits import Flag, Vector
from vmm.xen.descriptors import KERNEL_CODE
from vmm.xen.traps import Handler

if TYPE_CHECKING:
    from vmm.xen.domain import XenDomain

SHORTEST_PERIOD: Final = 1_000_000
"""Nanoseconds between two timer interrupts."""
_MASKS_EVENTS: Final = 4
_GDT_ENTRIES: Final = 14 * 512
_EVENT, _FAILSAFE, _NMI = 0, 1, 4  # kinds of callbacks


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
    word = domain.arguments.words(request, 1)[0]
    kind, masks = word & 0xFFFF, bool(word >> 16 & 1)
    if kind not in (_EVENT, _FAILSAFE, _NMI):
        raise Refused(Errno.NOSYS, "a callback that this guest cannot have")
    if command == 1:
        if kind != _NMI:
            raise Refused(Errno.INVAL, "a callback that cannot be taken back")
        return nmi_op(domain, 1, 0, 0, 0, 0)
    if command != 0:
        raise Refused(Errno.NOSYS, "an unknown command")
    _, selector, address = domain.arguments.words(request, 3)
    handler = Handler(_kernel(selector & 0xFFFF), address, masks=masks or kind != _FAILSAFE)
    if kind == _EVENT:
        domain.traps.event = handler
    elif kind == _FAILSAFE:
        domain.traps.failsafe = handler
    else:
        domain.traps.handlers[Vector.NMI] = handler
    return 0


def nmi_op(domain: XenDomain, command: int, request: int, _c: int, _d: int, _e: int) -> int:
    """Where non-maskable interrupts go: register (0), unregister (1)."""
    if command == 0:
        address = domain.arguments.words(request, 1)[0]
        domain.traps.handlers[Vector.NMI] = Handler(KERNEL_CODE, address, masks=True)
    elif command == 1:
        domain.traps.handlers.pop(Vector.NMI, None)
    else:
        raise Refused(Errno.NOSYS, "an unknown command")
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
    """The one virtual CPU: whether it is up (0 to 3), its run state (4, 5), its timers (6 to 9), its part of the shared info (10), an NMI (11)."""
    if number:
        raise Refused(Errno.NOENT, "a virtual CPU that does not exist")
    arguments = domain.arguments
    match command:
        case 0:
            raise Refused(Errno.EXIST, "a virtual CPU that runs already")
        case 1:
            return 0
        case 2:
            raise Stopped(Stop(End.SHUTDOWN, "power off by the guest (its last virtual CPU goes down)"))
        case 3:
            return 1
        case 4:
            arguments.write(request, domain.run_state.image(domain.clock.now()))
        case 5:
            area = arguments.words(request, 1)[0]
            arguments.write(area, domain.run_state.image(domain.clock.now()))
            domain.run_state.area = area
        case 10:
            _move_info(domain, *arguments.words(request, 3))
        case 11:
            domain.send_nmi()
        case _:
            _timers(domain, command, request)
    return 0


def _timers(domain: XenDomain, command: int, request: int) -> None:
    match command:
        case 6:
            period = domain.arguments.quads(request, 1)[0]
            if period < SHORTEST_PERIOD:
                raise Refused(Errno.INVAL, "a timer period below a millisecond")
            domain.set_period(period)
        case 7:
            domain.set_period(0)
        case 8:
            low, high, flags = domain.arguments.words(request, 3)
            deadline = high << 32 | low
            if flags & 1 and deadline < domain.clock.now():
                raise Refused(62, "a deadline that has passed")
            domain.set_timer(deadline)
        case 9:
            domain.set_timer(0)
        case _:
            raise Refused(Errno.NOSYS, "an unknown command")


def _move_info(domain: XenDomain, mfn: int, mfn_high: int, offset: int) -> None:
    """From now on the virtual CPU's part of the shared info page lies in a page of the guest's: once, and for good."""
    shared = domain.shared
    if offset > FRAME - shared.CPU_SIZE or offset & 3 or shared.moved:
        raise Refused(Errno.INVAL, "a place that the virtual CPU's information cannot have")
    domain.frames.take_type(mfn | mfn_high << 32, Kind.WRITABLE)
    domain.rings.append(mfn)
    shared.move(mfn, offset)
    domain.mmu.written(mfn)


def iret(domain: XenDomain, _a: int, _b: int, _c: int, _d: int, _e: int) -> int:
    """Returns through the frame on the stack: EAX, EIP, CS, EFLAGS, and ESP, SS to user mode; IF there is the virtual interrupt mask.

    Where that cannot be returned to, the failsafe callback gets the frame.
    """
    state, traps, machine = domain.machine.state, domain.traps, domain.machine
    stack = state[Cpu.SS + Cpu.BASE] + state[Cpu.ESP] & 0xFFFFFFFF
    eax, eip, selector, flags = domain.arguments.words(stack, 4)
    level = max(selector & 3, 1)
    if level == 2 or flags & Flag.VM:
        raise Stopped(Stop(End.UNSUPPORTED, f"iret to privilege level {level} or virtual-8086 mode: only levels 1 and 3 are supported"))
    outer = domain.arguments.words(stack + 16, 2) if level == 3 else ()
    domain.shared.masked = 0 if flags & Flag.IF else 1
    domain.nmi_ended()
    state[Cpu.EAX], state[Cpu.ESP] = eax, state[Cpu.ESP] + 16 & 0xFFFFFFFF
    if (outer and not traps.load(Cpu.SS, outer[1], 3)) or not traps.load(Cpu.CS, selector, level):
        traps.cannot_return([eip, selector | domain.shared.masked << 16, flags, *outer])
        return 0
    state[Cpu.EIP] = eip
    if outer:
        state[Cpu.ESP] = outer[0]
    machine.set_mode(level)
    machine.set_flags(flags & ~(Flag.IOPL | Flag.VM | Flag.RF) & 0x3F7FD7 | Flag.IF)
    return 0
