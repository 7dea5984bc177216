"""Hypercalls about memory: page tables, descriptors, reservations.

Knows the layouts of the requests (Xen's public headers, xen.h and memory.h). What is allowed is decided by the frames' types.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from vmm.faults import GuestPageFault
from vmm.machine import FRAME
from vmm.mmu.frames import FOREIGN, Errno, Kind, Refused
from vmm.xen.batches import each

if TYPE_CHECKING:
    from vmm.xen.domain import XenDomain

DOMID_SELF: Final = 0x7FF0
OWN_ID: Final = 1
_MOST: Final = 65536  # pages that one call deals with
_PAGE: Final = 8  # work for a page, in page-table entries
_UPDATE: Final = struct.Struct("<2Q")
_EXTENDED: Final = struct.Struct("<3I")
_FLUSH: Final = 3  # bits of update_va_mapping's flags that ask for any flush


def check_self(domid: int) -> None:
    """Raises Refused unless the caller speaks of itself: it has no rights over others."""
    if domid & 0xFFFF not in (DOMID_SELF, OWN_ID) or domid >> 16 not in (0, DOMID_SELF + 1, OWN_ID + 1):
        raise Refused(Errno.PERM, "another domain's memory")


def mmu_update(domain: XenDomain, requests: int, count: int, done: int, domid: int, _e: int) -> int:
    """{address | command, value} each: 0 writes a page-table entry, 1 an entry of the machine-to-physical table, 2 as 0 with A and D kept."""
    if domid != DOMID_SELF:
        check_self(domid)
    if count == 1 and domain.mmu.update_leaf(*domain.arguments.request(requests)):  # the most frequent by far
        if done:
            domain.arguments.write_word(done, 1)
        return 0
    return each(domain, requests, count, done, _UPDATE, lambda address, value: _update(domain, address, value), domain.mmu.update_leaves)


def _update(domain: XenDomain, address: int, value: int) -> None:
    command = address & 3
    if not command:
        domain.mmu.update(address, value)
    elif command == 2:
        domain.mmu.update(address & ~7, value, keep_marks=True)
    elif command == 1:
        mfn = address >> 12
        if mfn >= domain.frames.count or not domain.frames.owned[mfn]:
            raise Refused(Errno.PERM, FOREIGN)
        domain.m2p[mfn] = value & 0xFFFFFFFF
    else:
        raise Refused(Errno.NOSYS, "an unknown command")


def update_va_mapping(domain: XenDomain, gva: int, low: int, high: int, flags: int, _e: int) -> int:
    """Writes the entry that maps an address."""
    domain.mmu.update_mapping(gva, high << 32 | low)
    if flags & _FLUSH:
        domain.machine.flush_tlb()
    return 0


def update_va_mapping_otherdomain(domain: XenDomain, gva: int, low: int, high: int, flags: int, domid: int) -> int:
    """The same for a frame of another domain: there is none."""
    check_self(domid)
    return update_va_mapping(domain, gva, low, high, flags, 0)


def mmuext_op(domain: XenDomain, requests: int, count: int, done: int, domid: int, _e: int) -> int:
    """{command, argument, argument} each: pins, the base pointer, flushes, the LDT."""
    check_self(domid)
    mmu = domain.mmu

    def do(command: int, first: int, second: int) -> None:
        match command:
            case 0 | 1 | 2:
                mmu.pin(first, (Kind.LEAF, Kind.DIRECTORY, Kind.TOP)[command])
            case 4:
                mmu.unpin(first)
            case 5:
                mmu.use(first)
            case 6 | 7 | 8 | 9 | 10 | 11:
                domain.machine.flush_tlb()
            case 12:
                pass  # caches are coherent
            case 13:
                domain.descriptors.set_ldt(first, second)
            case 16:
                _writable(domain, first)
                domain.machine.clear(first)
                mmu.written(first)
            case 17:
                _writable(domain, first)
                domain.frames.take(second)
                domain.frames.drop(second)
                memory = domain.machine.memory
                memory[first * FRAME : (first + 1) * FRAME] = memory[second * FRAME : (second + 1) * FRAME]
                mmu.written(first)
            case _:
                raise Refused(Errno.NOSYS, "an unknown command")

    return each(domain, requests, count, done, _EXTENDED, do)


def _writable(domain: XenDomain, mfn: int) -> None:
    """Raises Refused unless the VMM may write a frame for the guest."""
    domain.frames.take_type(mfn, Kind.WRITABLE)
    domain.frames.drop_type(mfn)


def update_descriptor(domain: XenDomain, address: int, address_high: int, low: int, high: int, _e: int) -> int:
    """Writes one descriptor at a machine address."""
    domain.descriptors.update(address_high << 32 | address, high << 32 | low)
    return 0


# -- memory_op -------------------------------------------------------------------------------------------------------------------------


def memory_op(domain: XenDomain, command: int, request: int, _c: int, _d: int, _e: int) -> int:
    """Reservations, and what the memory is like."""
    command &= 63  # the rest is where a preempted call goes on
    if command in (0, 1, 6):
        return _reservation(domain, command, request)
    match command:
        case 2:
            return domain.frames.count - 1
        case 3 | 4:
            check_self(domain.arguments.words(request, 1)[0])
            return _pages(domain) if command == 3 else domain.memory.count
        case 9:
            return _memory_map(domain, request)
        case 11:
            return _exchange(domain, request)
        case 12:
            domain.arguments.write_words(request, 0xF580_0000, 0xF680_0000, domain.frames.count - 1)
            return 0
        case _:
            raise Refused(Errno.NOSYS, "an unknown command")


def _pages(domain: XenDomain) -> int:
    return domain.memory.count - len(domain.frames.free) - len(domain.frames.given_up)


def _reservation(domain: XenDomain, command: int, request: int) -> int:
    """increase (0), decrease (1), populate (6): a list of frames or pages; the result is how many were dealt with."""
    arguments, frames = domain.arguments, domain.frames
    extents, count, order, _, domid = arguments.words(request, 5)
    check_self(domid & 0xFFFF)
    if order:
        raise Refused(Errno.PERM, "memory in larger pieces than pages")
    domain.work += _PAGE * min(count, _MOST)
    for n in range(min(count, _MOST)):
        try:
            if command == 1:
                _give_up(domain, arguments.words(extents + 4 * n, 1)[0])
                continue
            pfn = arguments.words(extents + 4 * n, 1)[0] if command == 6 else None
            mfn = frames.grow()
            if mfn is None:
                return n
            if pfn is not None:
                domain.m2p[mfn] = pfn
            if extents:
                arguments.write_words(extents + 4 * n, mfn)
        except Refused as refused:
            domain.stats.refused[refused.why] += 1
            return n
    return min(count, _MOST)


def _give_up(domain: XenDomain, mfn: int) -> None:
    if mfn in domain.frames.pinned:
        domain.mmu.unpin(mfn)
    domain.frames.give_up(mfn)
    domain.m2p[mfn] = 0xFFFFFFFF


def _exchange(domain: XenDomain, request: int) -> int:
    """Frames that nothing refers to for as many other ones; the list of the pages that these are to be becomes a list of them."""
    arguments, frames = domain.arguments, domain.frames
    given, count, order, _, domid, wanted, new_count, new_order, _, new_domid, done = arguments.words(request, 11)
    check_self(domid & 0xFFFF)
    check_self(new_domid & 0xFFFF)
    if order or new_order:
        raise Refused(Errno.PERM, "memory in larger pieces than pages")
    if count != new_count or done > count:
        raise Refused(Errno.INVAL, "an exchange of unlike amounts of memory")
    domain.work += _PAGE * min(count, _MOST)
    for n in range(done, min(count, _MOST)):
        (mfn,), (page,) = arguments.words(given + 4 * n, 1), arguments.words(wanted + 4 * n, 1)
        frames.give_up_unused(mfn)
        domain.m2p[mfn] = 0xFFFFFFFF
        new = frames.grow()
        assert new is not None
        domain.machine.clear(new)
        domain.mmu.written(new)
        domain.m2p[new] = page
        arguments.write_words(wanted + 4 * n, new)
        arguments.write_words(request + 40, n + 1)
    return 0


def _memory_map(domain: XenDomain, request: int) -> int:
    """The memory map of a domain: all of it is RAM."""
    arguments = domain.arguments
    room, buffer = arguments.words(request, 2)
    if not room:
        raise Refused(Errno.INVAL, "no room for a memory map")
    arguments.write(buffer, struct.pack("<QQI", 0, domain.memory.size, 1))
    arguments.write_words(request, 1)
    return 0


def page_of(domain: XenDomain, gva: int) -> int:
    """The machine address behind a linear address that the guest may write. Raises Refused."""
    try:
        return domain.mmu.translate(gva, True)
    except GuestPageFault:
        raise Refused(Errno.FAULT, "a wild address") from None
