"""THE table of hypercalls: numbers, names and routines, and the one way in.

A routine takes the domain and five words, and returns the result or raises `Refused`. A number that is not here is answered with -ENOSYS and counted.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.mmu.frames import Errno, Refused
from vmm.xen import calls_cpu, calls_events, calls_grants, calls_memory, calls_system
from vmm.xen.batches import Preempted, limit, overdue

if TYPE_CHECKING:
    from vmm.xen.domain import XenDomain

_CALL = struct.Struct("<8I")
_MOST_CALLS = 65536
_NEVER_LISTED = frozenset((13, 23))  # a list in a list; IRET, which has no result

Routine = Callable[["XenDomain", int, int, int, int, int], int]


@dataclass(frozen=True, slots=True)
class Hypercall:
    """One row."""

    name: str
    routine: Routine


def call(domain: XenDomain, number: int, a: int, b: int, c: int, d: int, e: int) -> int:
    """Does one hypercall; a negative result is an error of the ABI. Raises Preempted, with the arguments to go on with."""
    found = HYPERCALLS.get(number)
    if found is None:
        domain.stats.hypercalls[f"{number} (not offered)"] += 1
        return -Errno.NOSYS
    domain.stats.hypercalls[found.name] += 1
    try:
        return found.routine(domain, a, b, c, d, e)
    except Refused as refused:
        domain.stats.refused[refused.why] += 1
        return -refused.error


def _multicall(domain: XenDomain, entries: int, count: int, _c: int, _d: int, _e: int) -> int:
    """A list of {number, result, six arguments}; each result is written back."""
    if count > _MOST_CALLS:
        raise Refused(Errno.TOOBIG, "too many calls in a multicall")
    arguments, end = domain.arguments, limit(domain)
    for n in range(count):
        at = entries + 32 * n
        number, _, a, b, c, d, e, _ = _CALL.unpack(arguments.view(at, 32))
        try:
            result = -Errno.INVAL if number in _NEVER_LISTED else call(domain, number, a, b, c, d, e)
        except Preempted as preempted:
            for argument, value in preempted.arguments.items():
                arguments.write_word(at + 8 + 4 * argument, value)
            raise Preempted({0: at, 1: count - n}) from None
        arguments.write_word(at + 4, result)
        if overdue(domain, end) and n + 1 < count:
            raise Preempted({0: at + 32, 1: count - n - 1})
    return 0


HYPERCALLS: dict[int, Hypercall] = {
    0: Hypercall("set_trap_table", calls_cpu.set_trap_table),
    1: Hypercall("mmu_update", calls_memory.mmu_update),
    2: Hypercall("set_gdt", calls_cpu.set_gdt),
    3: Hypercall("stack_switch", calls_cpu.stack_switch),
    4: Hypercall("set_callbacks", calls_cpu.set_callbacks),
    5: Hypercall("fpu_taskswitch", calls_cpu.fpu_taskswitch),
    6: Hypercall("sched_op_compat", calls_events.sched_op_compat),
    8: Hypercall("set_debugreg", calls_cpu.set_debugreg),
    9: Hypercall("get_debugreg", calls_cpu.get_debugreg),
    10: Hypercall("update_descriptor", calls_memory.update_descriptor),
    12: Hypercall("memory_op", calls_memory.memory_op),
    13: Hypercall("multicall", _multicall),
    14: Hypercall("update_va_mapping", calls_memory.update_va_mapping),
    15: Hypercall("set_timer_op", calls_events.set_timer_op),
    16: Hypercall("event_channel_op_compat", calls_events.event_channel_op_compat),
    17: Hypercall("xen_version", calls_system.xen_version),
    18: Hypercall("console_io", calls_system.console_io),
    19: Hypercall("physdev_op_compat", calls_system.physdev_op_compat),
    20: Hypercall("grant_table_op", calls_grants.grant_table_op),
    21: Hypercall("vm_assist", calls_cpu.vm_assist),
    22: Hypercall("update_va_mapping_otherdomain", calls_memory.update_va_mapping_otherdomain),
    23: Hypercall("iret", calls_cpu.iret),
    24: Hypercall("vcpu_op", calls_cpu.vcpu_op),
    26: Hypercall("mmuext_op", calls_memory.mmuext_op),
    28: Hypercall("nmi_op", calls_cpu.nmi_op),
    29: Hypercall("sched_op", calls_events.sched_op),
    30: Hypercall("callback_op", calls_cpu.callback_op),
    32: Hypercall("event_channel_op", calls_events.event_channel_op),
    33: Hypercall("physdev_op", calls_system.physdev_op),
}
