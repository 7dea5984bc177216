"""Hypercalls that ask for a lot of work: they are given up half-way and asked for again, and a guest cannot tell, nor hold the machine up."""

from __future__ import annotations

import struct
from itertools import count

import pytest

from tests.machine.pv import BASE, CODE, DATA, FINISH, LOG, call, describe, domain_of, log, pv_vm
from vmm.exits import End
from vmm.vm import Vm
from vmm.xen import batches

_LIST, _REQUESTS = BASE + 0x200000, BASE + 0x240000
_WINDOW = BASE + 0x180000
_FLUSH = struct.pack("<3I", 6, 0, 0)


def _multicall(entries: list[tuple[int, ...]]) -> bytes:
    return b"".join(struct.pack("<8I", number, 0xDEAD, *arguments, *(0,) * (6 - len(arguments))) for number, *arguments in entries)


def _updates(vm: Vm, number: int) -> bytes:
    """Requests that map pages of the guest's in an order of their own at _WINDOW, read-only: none of them has a short way."""
    at, _ = domain_of(vm).mmu.leaf_entry(_WINDOW)
    return b"".join(struct.pack("<2Q", 8 * (at + n), vm.memory.frames[1024 + 7 * n] << 12 | 0x21) for n in range(number))


@pytest.mark.parametrize("every", (1, 3, None))
def test_a_guest_cannot_tell(every: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates, requests about tables and a multicall of both give the same results and the same tables, however often they are given up."""
    asked = count(1)
    monkeypatch.setattr(batches, "overdue", lambda domain, end: every is not None and next(asked) % every == 0)
    monkeypatch.setattr("vmm.xen.hypercalls.overdue", batches.overdue)
    calls = [(1, _REQUESTS, 40, LOG + 32, 0x7FF0), *[(17, 0)] * 40, (99,), (26, _REQUESTS + 0x1000, 5, LOG + 36, 0x7FF0), (23,), (13, 0, 0)]
    code = f"{call(1, _REQUESTS, 40, LOG + 16, 0x7FF0, log_at=0)}; {call(26, _REQUESTS + 0x1000, 5, LOG + 20, 0x7FF0, log_at=1)}"
    refused = call(1, _REQUESTS, 41, LOG + 24, 0x7FF0, log_at=2)
    vm = pv_vm({CODE: f"{code}; {refused}; {call(13, _LIST, len(calls), log_at=3)}; {FINISH}"})
    mmu = domain_of(vm).mmu
    mmu.write(_REQUESTS, _updates(vm, 40) + struct.pack("<2Q", 0, 0))
    mmu.write(_REQUESTS + 0x1000, 5 * _FLUSH)
    mmu.write(_LIST, _multicall(calls))
    stop = vm.run(20)
    assert stop.why is End.SHUTDOWN, describe(vm, stop)
    assert (vm.stats.hypercalls["multicall"] > 2) == (every is not None), "the nested one is another"
    at, _ = mmu.leaf_entry(_WINDOW)
    assert [mmu.quads[at + n] & 0xFFFFFFFFF01F for n in range(40)] == [vm.memory.frames[1024 + 7 * n] << 12 | 1 for n in range(40)]
    assert log(vm, 10) == [0, 0, -1 & 0xFFFFFFFF, 0, 40, 5, 40, 0, 40, 5]
    results = struct.unpack_from(f"<{8 * len(calls)}I", mmu.read(_LIST, 32 * len(calls)))[1::8]
    version = 4 << 16 | 17
    assert results == (0, *[version] * 40, -38 & 0xFFFFFFFF, 0, -22 & 0xFFFFFFFF, -22 & 0xFFFFFFFF)


def test_a_long_call_ends_with_the_time() -> None:
    """A multicall of calls with 20,000 flushes each is hours of work: time, and what else the machine has to do, goes on."""
    vm = pv_vm({CODE: call(13, _LIST, 8192)})
    mmu = domain_of(vm).mmu
    mmu.write(_LIST, _multicall([(26, _REQUESTS, 20000, 0, 0x7FF0)] * 8192))
    mmu.write(_REQUESTS, _FLUSH * 20000)
    mmu.write(DATA, bytes(8))
    stop = vm.run(1)
    assert stop.why is End.TIMEOUT, describe(vm, stop)
    assert vm.stats.hypercalls["multicall"] > 1
