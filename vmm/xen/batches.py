"""Lists of requests in a guest's memory, done one by one, and hypercalls that are given up half-way to go on later.

A guest may ask for hours of work in one hypercall, and nothing else happens meanwhile. So one that has taken its time is made to look as if it had
not begun: its arguments name what is left, and the guest asks again. Knows no hypercall.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from vmm.mmu.frames import Errno, Refused

if TYPE_CHECKING:
    from vmm.xen.domain import XenDomain

_MOST: Final = 65536  # requests that one call looks at
_CHUNK: Final = 256
_WORK: Final = 20_000  # page-table entries looked at, or as much: 5 ms. Time itself would make no two runs alike
_REQUEST: Final = 8  # what a request is, beside the entries that it concerns
PREEMPTED: Final = 1 << 31  # in a count: this is what was left of a longer list


class Preempted(Exception):
    """The hypercall goes on with other arguments, by number, when the guest runs again."""

    def __init__(self, arguments: Mapping[int, int]) -> None:
        super().__init__(arguments)
        self.arguments = arguments


def limit(domain: XenDomain) -> int:
    """When a hypercall that begins now has done its share of work: a value of `XenDomain.spent`."""
    return domain.spent + _WORK


def overdue(domain: XenDomain, end: int) -> bool:
    """Whether it has. Asked behind each request."""
    domain.work += _REQUEST
    return domain.spent > end


def each(
    domain: XenDomain,
    requests: int,
    count: int,
    done: int,
    layout: struct.Struct,
    do: Callable[..., None],
    quick: Callable[[bytes], int] | None = None,
    *,
    first: int = 0,
) -> int:
    """Does requests up to the first that is refused; how many were done is written to `done` if that is not 0. Raises Preempted, with what is left.

    quick: does as many of some requests as it can, and says how many; the next one is then for `do`. first: which argument of the hypercall the
    list's address is; the count is the next.
    """
    arguments, finished, result, end = domain.arguments, 0, 0, limit(domain)
    before = arguments.words(done, 1)[0] if done and count & PREEMPTED else 0
    count &= ~PREEMPTED
    if count > _MOST:
        count, result = _MOST, -Errno.TOOBIG
    try:
        while finished < count:
            part = min(_CHUNK, count - finished)
            data = arguments.read(requests + finished * layout.size, part * layout.size)
            while data:
                skipped = quick(data) if quick else 0
                finished += skipped
                if skipped * layout.size < len(data):
                    do(*layout.unpack_from(data, skipped * layout.size))
                    finished += 1
                    skipped += 1
                data = data[skipped * layout.size :]
                if finished < count and not result and overdue(domain, end):
                    if done:
                        arguments.write_word(done, before + finished)
                    raise Preempted({first: requests + finished * layout.size, first + 1: count - finished | PREEMPTED})
    except Refused as refused:
        domain.stats.refused[refused.why] += 1
        result = -refused.error
    if done:
        arguments.write_word(done, before + finished)
    return result
