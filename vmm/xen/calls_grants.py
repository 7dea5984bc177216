"""Hypercalls about grants: the guest's table of them, and the use of what is granted to it.

Knows the layouts of the requests (Xen's public headers, grant_table.h). A guest meets no other guest: what it may use is what it has granted to
itself; a back-end of the VMM's uses grants by `Grants.access`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from vmm.machine import FRAME
from vmm.mmu.frames import Errno, Kind, Refused
from vmm.x86.bits import Pte
from vmm.xen.batches import each
from vmm.xen.calls_memory import DOMID_SELF, OWN_ID, check_self
from vmm.xen.grants import Mapping

if TYPE_CHECKING:
    from vmm.xen.domain import XenDomain

_OK, _BAD_DOMAIN, _BAD_GRANT, _BAD_HANDLE, _BAD_ADDRESS, _NO_ROOM, _DENIED, _BAD_PAGE, _BAD_COPY = 0, -2, -3, -4, -5, -7, -8, -9, -10
_DEVICE, _HOST, _READ_ONLY, _APPLICATION, _IN_ENTRY = 1, 2, 4, 8, 16  # flags of a mapping
_FROM_GRANT, _TO_GRANT = 1, 2  # flags of a copy
_MAP: Final = struct.Struct("<QIIHhIQ")
_UNMAP: Final = struct.Struct("<QQIhxx")
_COPY: Final = struct.Struct("<IHHIHHHHhxx")
_STATUS: Final = struct.Struct("<h")
_MOST_MAPPINGS: Final = 1024


class _Failed(Exception):
    """One request of a list fails with a status; the others go on."""


def grant_table_op(domain: XenDomain, command: int, request: int, count: int, _d: int, _e: int) -> int:
    """map_grant_ref 0, unmap_grant_ref 1, setup_table 2, transfer 4, copy 5, query_size 6, set_version 8, get_version 10."""
    arguments = domain.arguments
    match command:
        case 0:
            return _all(domain, request, count, _MAP, 18, _map)
        case 1:
            return _all(domain, request, count, _UNMAP, 20, _unmap)
        case 2:
            _setup_table(domain, request, count)
        case 4:
            arguments.read(request, 16)
            raise Refused(Errno.PERM, "another domain's grant")
        case 5:
            return _all(domain, request, count, _COPY, 20, _copy)
        case 6:
            check_self(arguments.words(request, 1)[0] & 0xFFFF)
            arguments.write(request + 4, struct.pack("<IIh", len(domain.grants.frames_used), domain.grants.most, 0))
        case 8:
            if arguments.words(request, 1)[0] != 1:
                raise Refused(Errno.INVAL, "grant tables of version 2")
        case 10:
            check_self(arguments.words(request, 1)[0] & 0xFFFF)
            arguments.write_words(request + 4, 1)
        case _:
            raise Refused(Errno.NOSYS, "an unknown command")
    return 0


def _all(domain: XenDomain, requests: int, count: int, layout: struct.Struct, status_at: int, do: Callable[..., None]) -> int:
    """Does a list of requests; the status of each is written into it."""
    at = requests

    def one(*fields: int) -> None:
        nonlocal at
        try:
            do(domain, at, *fields)
            status = _OK
        except _Failed as failed:
            status = failed.args[0]
            domain.stats.refused["a grant operation that fails"] += 1
        domain.arguments.write(at + status_at, _STATUS.pack(status))
        at += layout.size

    return each(domain, requests, count, 0, layout, one, first=1)


def _setup_table(domain: XenDomain, request: int, count: int) -> None:
    if count != 1:
        raise Refused(Errno.INVAL, "not one grant table")
    domid, frames, _, frame_list = domain.arguments.words(request, 4)
    check_self(domid & 0xFFFF)
    mfns, status = domain.grants.table(frames)
    if mfns:
        domain.arguments.write(frame_list, struct.pack(f"<{len(mfns)}I", *mfns))
    domain.arguments.write(request + 8, _STATUS.pack(status))


def _own(domid: int) -> None:
    if domid not in (DOMID_SELF, OWN_ID):
        raise _Failed(_BAD_DOMAIN)


def _granted(domain: XenDomain, reference: int, write: bool) -> int:
    try:
        return domain.grants.frame(reference, OWN_ID, write)
    except Refused as refused:
        raise _Failed(_DENIED if refused.error == Errno.PERM else _BAD_GRANT) from None


def _map(domain: XenDomain, at: int, address: int, flags: int, reference: int, domid: int, _status: int, _handle: int, _bus: int) -> None:
    """Maps a granted frame at a linear address, or by the entry at a machine address."""
    grants, mmu = domain.grants, domain.mmu
    _own(domid)
    if not flags & _HOST or flags & _DEVICE:
        raise _Failed(_BAD_GRANT)
    if len(grants.mappings) >= _MOST_MAPPINGS:
        raise _Failed(_NO_ROOM)
    mfn = _granted(domain, reference, not flags & _READ_ONLY)
    entry = mfn << 12 | Pte.P | Pte.A | (0 if flags & _READ_ONLY else Pte.W | Pte.D) | (Pte.U if flags & _APPLICATION else 0)
    try:
        if flags & _IN_ENTRY:
            mmu.update(address, entry)
        else:
            mmu.update_mapping(address & 0xFFFFFFFF, entry)
    except Refused:
        raise _Failed(_BAD_ADDRESS) from None
    handle = grants.remember(Mapping(reference, mfn, address, bool(flags & _IN_ENTRY), not flags & _READ_ONLY))
    domain.arguments.write(at + 20, struct.pack("<IQ", handle, mfn << 12))


def _unmap(domain: XenDomain, _at: int, address: int, _bus: int, handle: int, _status: int) -> None:
    """Ends a mapping, by its handle; what was mapped there since by other means stays."""
    grants, mmu = domain.grants, domain.mmu
    mapping = grants.mappings.get(handle)
    if mapping is None:
        raise _Failed(_BAD_HANDLE)
    if address and address != mapping.address:
        raise _Failed(_BAD_ADDRESS)
    grants.forget(handle)
    at = mapping.address >> 3 if mapping.in_entry else mmu.leaf_entry(mapping.address & 0xFFFFFFFF)[0]
    if address and at >= 0 and mmu.quads[at] >> 12 & 0xFFFFFFF == mapping.mfn:
        try:
            mmu.update(8 * at, 0)
        except Refused:
            raise _Failed(_BAD_ADDRESS) from None
        domain.machine.flush_tlb()


def _copy(domain: XenDomain, _at: int, *fields: int) -> None:
    """Copies within a page each: frames of the guest's own, or granted ones."""
    source, from_domain, from_at, target, to_domain, to_at, size, flags, _ = fields
    if from_at + size > FRAME or to_at + size > FRAME:
        raise _Failed(_BAD_COPY)
    _own(from_domain)
    _own(to_domain)
    if flags & _FROM_GRANT:
        source = _granted(domain, source, False)
    if flags & _TO_GRANT:
        target = _granted(domain, target, True)
    frames, memory = domain.frames, domain.machine.memory
    try:
        frames.take(source)
        frames.drop(source)
        frames.take_type(target, Kind.WRITABLE)
        frames.drop_type(target)
    except Refused:
        raise _Failed(_BAD_PAGE) from None
    memory[target * FRAME + to_at : target * FRAME + to_at + size] = bytes(memory[source * FRAME + from_at : source * FRAME + from_at + size])
    domain.mmu.written(target)
