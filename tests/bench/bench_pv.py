"""What a paravirtual guest asks of the VMM, against empty callbacks of the CPU; its system calls and page-table work, against bt's."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import count

import pytest

from tests.bench.bench_translate import callback_seconds
from tests.bench.conftest import Keep
from tests.bench.timing import cpu_seconds, in_turns
from tests.machine import flat
from tests.machine.pv import BASE, CODE, DATA, FINISH, HANDLERS, IRET, STACK, TABLE, USER, call, describe, domain_of, map_page, page_of, pv_vm, traps
from tests.machine.small_kernel import TO_USER, small_kernel
from tests.machine.small_kernel import USER as flat_user
from vmm.vm import Vm

pytestmark = pytest.mark.bench

CALLS, UPDATES, PINS, BATCH = 20_000, 20_000, 400, 256
_WINDOW = BASE + 0x180000  # mapped, and of no use
_LABELS = count()


def loop(rounds: int, body: str) -> str:
    """Rounds of some code; EBP counts."""
    label = f"again{next(_LABELS)}"
    return f"mov ebp,{rounds}; jmp {label}; {label}: {body}; dec ebp; jnz {label}"


def seconds(vm: Vm) -> float:
    """CPU seconds of a guest's run to its power off."""
    stops = []
    taken = cpu_seconds(lambda: stops.append(vm.run(60)))
    assert stops[0].reason == "power off by the guest (sched_op)" and not vm.stats.refused, describe(vm, stops[0])
    return taken


def guest(body: str, rounds: int) -> Vm:
    """A domain that runs `body` so many times."""
    return pv_vm({CODE: f"{loop(rounds, body)}; {FINISH}"})


def null_hypercall() -> float:
    return seconds(guest(call(17, 0), CALLS)) / CALLS


def updates(batch: int) -> float:
    """Seconds of one update of a leaf entry, in batches: each changes which frame is mapped."""
    rounds = UPDATES // batch
    vm = guest(call(1, DATA, batch, 0, 0x7FF0), rounds)
    mmu = domain_of(vm).mmu
    at, _ = mmu.leaf_entry(_WINDOW)
    frames = [mmu.translate(BASE + 0x80000 + 0x1000 * n) >> 12 for n in range(2)]
    requests = (struct.pack("<2Q", (at + n % 100) * 8, frames[n // 100 & 1] << 12 | 0x63) for n in range(batch))
    mmu.write(DATA, b"".join(requests))
    return seconds(vm) / (rounds * batch)


def pin() -> float:
    """Seconds of a validated pin of a full leaf table with its unpin, beyond what a hypercall with another request takes."""
    return mmu_requests(2) - mmu_requests(1)


def mmu_requests(requests: int) -> float:
    """Seconds of a hypercall about page tables: of pin and unpin for 2, of a flush of caches, which is nothing, for 1."""
    vm = guest(call(26, TABLE if requests == 1 else TABLE + 12, requests, 0, 0x7FF0), PINS)
    mmu = domain_of(vm).mmu
    frame = mmu.translate(_WINDOW) >> 12
    chunk = next(members for members in domain_of(vm).frames.members[::-1] if frame not in members)
    for n, mfn in enumerate(chunk):
        vm.machine.quads[frame * 512 + n] = mfn << 12 | 0x63
    mmu.update(mmu.leaf_entry(_WINDOW)[0] * 8, frame << 12 | 0x61)
    mmu.write(TABLE, struct.pack("<9I", 12, 0, 0, 0, frame, 0, 4, frame, 0))
    return seconds(vm) / PINS


@pytest.mark.parametrize(("row", "measure"), [
    ("pv-null", null_hypercall),
    ("pv-update", lambda: updates(1)),
    ("pv-batch", lambda: updates(BATCH)),
    ("pv-pin", pin),
])  # fmt: skip
def test_hypercall(row: str, measure: object, keep: Keep) -> None:
    """Each costs at most so many empty callbacks."""
    assert callable(measure)
    pair = in_turns(measure, callback_seconds)
    keep(row, pair.ratio, f"{pair.ours * 1e6:.2f} µs, {pair.theirs * 1e6:.2f} µs a callback")


# -- against bt ------------------------------------------------------------------------------------------------------------------------

ROUNDS, PAGES = 4_000, 8  # system calls; pages that each fourth of them maps elsewhere


def under_pv() -> float:
    """System calls of user code whose handler remaps some pages in one batch, now and then."""
    remap = f"test ecx,3; jnz skip; {call(1, DATA, PAGES, 0, 0x7FF0)}; skip: nop"
    handler = f"pushad; {remap}; popad; {IRET}"
    user_pages = f"{map_page(USER, page_of(USER), 0x67)}; {map_page(USER + 0x1000, page_of(USER) + 1, 0x67)}"
    enter = f"push 0xe033; push {USER + 0x1800}; push 0x202; push 0xe02b; push {USER}; {IRET}"
    parts: Mapping[int, str | bytes] = {
        CODE: f"{call(0, TABLE)}; {call(3, 0xE021, STACK)}; {user_pages}; {enter}",
        TABLE: traps(0x30, 0x31),
        USER: f"mov ecx,{ROUNDS}; jmp again; again: int 0x30; dec ecx; jnz again; int 0x31",
        HANDLERS + 0x100 * 0x30: handler,
        HANDLERS + 0x100 * 0x31: FINISH,
    }
    vm = pv_vm(parts)
    mmu = domain_of(vm).mmu
    at, _ = mmu.leaf_entry(_WINDOW)
    frame = mmu.translate(BASE + 0x80000) >> 12
    mmu.write(DATA, b"".join(struct.pack("<2Q", (at + n) * 8, frame << 12 | 0x63) for n in range(PAGES)))
    return seconds(vm) / ROUNDS


def under_bt() -> float:
    """The same by stores into the page table, and INVLPG."""
    entries = "; ".join(f"mov dword ptr [{0x301E00 + 4 * n}],0x380003; invlpg [{0x380000 + 0x1000 * n}]" for n in range(PAGES))
    handler = f"pushad; test ecx,3; jnz skip; {entries}; skip: nop; popad; {IRET}"
    user = f"mov ecx,{ROUNDS}; jmp again; again: int 0x80; dec ecx; jnz again; int 0x81"
    vm = flat.flat_vm(small_kernel(TO_USER, user=user, handlers={0x80: handler, 0x81: flat.FINISH}), memory_mib=8)
    return cpu_seconds(lambda: flat.finish(vm, 60)) / ROUNDS


def test_system_calls_and_updates(keep: Keep) -> None:
    """System calls, and page-table updates in a batch, against the same under binary translation."""
    pair = in_turns(under_pv, under_bt)
    keep("pv-rings", pair.ratio, f"{pair.ours * 1e6:.1f} µs against {pair.theirs * 1e6:.1f} µs a system call with {PAGES // 4} updates")


USER_ROUNDS = 4_000_000


def user_code(page: int) -> str:
    """Loads and stores of user code, on a page of its own."""
    return f"mov esi,{page}; mov ecx,{USER_ROUNDS}; jmp again; again: mov eax,[esi]; mov [esi+4],eax; dec ecx; jnz again"


def user_under_pv() -> float:
    """Seconds of them under direct paging."""
    user_pages = f"{map_page(USER, page_of(USER), 0x67)}; {map_page(USER + 0x1000, page_of(USER) + 1, 0x67)}"
    enter = f"push 0xe033; push {USER + 0x1800}; push 0x202; push 0xe02b; push {USER}; {IRET}"
    vm = pv_vm({
        CODE: f"{call(0, TABLE)}; {call(3, 0xE021, STACK)}; {user_pages}; {enter}",
        TABLE: traps(0x31),
        USER: f"{user_code(USER + 0x1000)}; int 0x31",
        HANDLERS + 0x100 * 0x31: FINISH,
    })  # fmt: skip
    return seconds(vm)


def user_under_bt() -> float:
    """Seconds of them under shadow paging, executed directly."""
    vm = flat.flat_vm(small_kernel(TO_USER, user=f"{user_code(flat_user + 0x2000)}; int 0x80", handlers={0x80: flat.FINISH}), memory_mib=8)
    return cpu_seconds(lambda: flat.finish(vm, 60))


def test_user_code(keep: Keep) -> None:
    """User code under the guest's own tables is as fast as direct execution under shadow tables."""
    pair = in_turns(user_under_pv, user_under_bt)
    keep("pv-user", pair.ratio, f"{pair.ours / USER_ROUNDS * 1e9:.1f} ns against {pair.theirs / USER_ROUNDS * 1e9:.1f} ns a round")
