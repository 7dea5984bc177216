"""Hypercalls about events and time: event channels, waiting, shutting down, the timer.

Knows the layouts of the requests (Xen's public headers, event_channel.h and sched.h).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.exits import End, Stop, Stopped
from vmm.mmu.frames import Errno, Refused
from vmm.xen.calls_memory import check_self
from vmm.xen.channels import Channel, State

if TYPE_CHECKING:
    from vmm.xen.domain import XenDomain

_ENDS: Final = {
    0: (End.SHUTDOWN, "power off by the guest (sched_op)"),
    1: (End.RESET, "reset by the guest (sched_op)"),
    2: (End.UNSUPPORTED, "the guest asks to be suspended, which is not supported"),
}
_LONGEST_POLL: Final = 128


def event_channel_op(domain: XenDomain, command: int, request: int, _c: int, _d: int, _e: int) -> int:
    """bind_interdomain 0, bind_virq 1, bind_pirq 2, close 3, send 4, status 5, alloc_unbound 6, bind_ipi 7, bind_vcpu 8, unmask 9, reset 10."""
    arguments, channels = domain.arguments, domain.channels
    match command:
        case 0:
            domid, remote = arguments.words(request, 2)
            check_self(domid & 0xFFFF)
            arguments.write_words(request + 8, _bind_to_itself(domain, remote))
        case 1:
            number, cpu = arguments.words(request, 2)
            _first_cpu(cpu)
            arguments.write_words(request + 8, channels.bind_virtual(number))
        case 2:
            raise Refused(Errno.PERM, "a physical interrupt")
        case 3:
            channels.close(arguments.words(request, 1)[0])
        case 4:
            channels.send(arguments.words(request, 1)[0])
        case 5:
            _status(domain, request)
        case 6:
            own, remote = (arguments.words(request, 1)[0] >> shift & 0xFFFF for shift in (0, 16))
            check_self(own)
            arguments.write_words(request + 4, channels.allocate(Channel(State.UNBOUND, (remote, 0))))
        case 7:
            _first_cpu(arguments.words(request, 1)[0])
            arguments.write_words(request + 4, channels.allocate(Channel(State.IPI)))
        case 8:
            port, cpu = arguments.words(request, 2)
            channels.channel(port)
            _first_cpu(cpu)
        case 9:
            channels.unmask(arguments.words(request, 1)[0])
        case 10:
            check_self(arguments.words(request, 1)[0] & 0xFFFF)
            for port in list(channels.open):
                channels.close(port)
        case _:
            raise Refused(Errno.NOSYS, "an unknown command")
    return 0


def event_channel_op_compat(domain: XenDomain, request: int, _b: int, _c: int, _d: int, _e: int) -> int:
    """The older form: the command stands before the request."""
    command = domain.arguments.words(request, 1)[0]
    return event_channel_op(domain, command, request + 4, 0, 0, 0)


def _first_cpu(number: int) -> None:
    if number:
        raise Refused(Errno.NOENT, "a virtual CPU that does not exist")


def _bind_to_itself(domain: XenDomain, remote: int) -> int:
    """Connects a new port to an own unbound one."""
    channels = domain.channels
    other = channels.channel(remote)
    if other.state is not State.UNBOUND:
        raise Refused(Errno.INVAL, "an event channel that is not unbound")
    port = channels.allocate(Channel(State.INTERDOMAIN, (0x7FF0, remote), peer=remote))
    other.state, other.peer, other.remote = State.INTERDOMAIN, port, (0x7FF0, port)
    return port


def _status(domain: XenDomain, request: int) -> None:
    domid, port = domain.arguments.words(request, 2)
    check_self(domid & 0xFFFF)
    channel = domain.channels.open.get(port)
    if channel is None:
        domain.arguments.write_words(request + 8, State.CLOSED.value, 0)
        return
    first, second = channel.remote
    words = (first, second) if channel.state is State.INTERDOMAIN else (second, 0) if channel.state is State.VIRQ else (first, 0)
    domain.arguments.write_words(request + 8, channel.state.value, 0, *words)


# -- scheduling --------------------------------------------------------------------------------------------------------------------------


def sched_op(domain: XenDomain, command: int, request: int, _c: int, _d: int, _e: int) -> int:
    """yield 0, block 1, shutdown 2, poll 3, remote_shutdown 4, shutdown_code 5."""
    match command:
        case 2 | 5:
            _shut_down(domain.arguments.words(request, 1)[0])
        case 3:
            _poll(domain, request)
        case _:
            return sched_op_compat(domain, command, request, 0, 0, 0)
    return 0


def sched_op_compat(domain: XenDomain, command: int, reason: int, _c: int, _d: int, _e: int) -> int:
    """The older form: the reason of a shutdown is the argument's low byte."""
    match command:
        case 0:
            return 0
        case 1:
            domain.shared.masked = 0
            domain.polled = ()
            domain.block()
            return 0
        case 2:
            _shut_down(reason & 0xFF)
            return 0
        case _:
            raise Refused(Errno.NOSYS, "an unknown command")


def _shut_down(reason: int) -> None:
    why, text = _ENDS.get(reason, (End.DIED, f"the guest reports a crash (sched_op shutdown, reason {reason})"))
    raise Stopped(Stop(why, text))


def _poll(domain: XenDomain, request: int) -> None:
    """Waits for one of some channels, masked or not, or a time (0: none)."""
    ports, count, low, high = domain.arguments.words(request, 4)
    if count > _LONGEST_POLL:
        raise Refused(Errno.INVAL, "a poll of too many channels")
    polled = domain.arguments.words(ports, count)
    for port in polled:
        domain.channels.channel(port)
    domain.poll(polled, high << 32 | low)


def set_timer_op(domain: XenDomain, low: int, high: int, _c: int, _d: int, _e: int) -> int:
    """One timer interrupt, at a time in nanoseconds."""
    domain.set_timer(high << 32 | low)
    return 0
