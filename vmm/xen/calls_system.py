"""Hypercalls about the system as a whole: version, emergency console, I/O privilege.

Knows the layouts of the requests (Xen's public headers, version.h, physdev.h). The guest is unprivileged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.mmu.direct import VMM_START
from vmm.mmu.frames import Errno, Refused
from vmm.x86.bits import Flag

if TYPE_CHECKING:
    from vmm.xen.domain import XenDomain

_VERSION: Final = 4 << 16 | 17
_FEATURES: Final = 1 << 4 | 1 << 5  # PAE page directories above 4 GiB; updates that keep A and D
_MOST_TEXT: Final = 16384


def xen_version(domain: XenDomain, command: int, buffer: int, _c: int, _d: int, _e: int) -> int:
    """What the VMM is: the number by itself (which also lets pending events in), and texts."""
    arguments = domain.arguments
    match command:
        case 0:
            return _VERSION
        case 1:
            arguments.write(buffer, b".0".ljust(16, b"\0"))
        case 2:
            arguments.write(buffer, b"vmm".ljust(64, b"\0") + bytes(16 + 32 + 32))
        case 3:
            arguments.write(buffer, b"xen-3.0-x86_32p".ljust(1024, b"\0"))
        case 4:
            arguments.write(buffer, b"unavailable".ljust(64, b"\0"))
        case 5:
            arguments.write_words(buffer, VMM_START)
        case 6:
            index = arguments.words(buffer, 1)[0]
            arguments.write_words(buffer + 4, _FEATURES if index == 0 else 0)
        case 7:
            return 4096
        case 8:
            arguments.write(buffer, bytes(16))
        case _:
            raise Refused(Errno.NOSYS, "an unknown command")
    return 0


def console_io(domain: XenDomain, command: int, count: int, buffer: int, _d: int, _e: int) -> int:
    """The emergency console: write (0). Reads (1) find nothing: what is typed goes to the console ring."""
    if command == 1:
        return 0
    if command != 0:
        raise Refused(Errno.NOSYS, "an unknown command")
    count = min(count, _MOST_TEXT)
    domain.console(domain.arguments.read(buffer, count))
    return 0


def physdev_op(domain: XenDomain, command: int, request: int, _c: int, _d: int, _e: int) -> int:
    """set_iopl (6) and set_iobitmap (7); everything about physical devices is refused."""
    match command:
        case 6:
            iopl = domain.arguments.words(request, 1)[0]
            if iopl > 3:
                raise Refused(Errno.INVAL, "an IOPL above 3")
            domain.vm.vcpu.virtual_flags = domain.vm.vcpu.virtual_flags & ~Flag.IOPL | iopl << 12
        case 7:
            domain.arguments.words(request, 2)
        case _:
            raise Refused(Errno.PERM, "a physical device")
    return 0


def physdev_op_compat(domain: XenDomain, request: int, _b: int, _c: int, _d: int, _e: int) -> int:
    """The older form: the command stands before the request."""
    command = domain.arguments.words(request, 1)[0]
    return physdev_op(domain, command, request + 4, 0, 0, 0)
