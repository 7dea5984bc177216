"""Small loops under bt, against a bare Unicorn engine and against direct execution in user mode."""

from __future__ import annotations

from itertools import cycle

import pytest
import unicorn
from unicorn import x86_const as x86

from tests.bench.conftest import Keep
from tests.bench.timing import cpu_seconds, in_turns
from tests.machine.flat import ENTRY, FINISH, assemble, finish, flat_vm
from tests.machine.small_kernel import LOG, STACK, TO_USER, small_kernel

pytestmark = pytest.mark.bench

LOOPS = {
    # name: the loop's body, and how often it is to run
    "register": ("add eax,edx", 30_000_000),
    "load": ("mov eax,[esi]", 15_000_000),
    "store": ("mov [esi],eax", 4_000_000),
    "push": ("push eax; pop eax", 4_000_000),
}
CALLS = 3_000_000
CALL_LOOP = "mov ecx,{}; jmp l; f: ret; l: call f; dec ecx; jnz l"
SENSITIVE = "cli; sti; pushfd; popfd; pushfd; cli; popfd"
BARE_MEMORY = 16 << 20


def loop(body: str, count: int) -> str:
    """A loop with its registers set up."""
    return f"mov esp,{STACK}; mov esi,{LOG}; mov ecx,{count}; jmp l; l: {body}; dec ecx; jnz l"


def under_bt(source: str) -> float:
    """CPU seconds of a kernel's code under bt, translation included."""
    vm = flat_vm({ENTRY: f"{source}; {FINISH}"})
    return cpu_seconds(lambda: finish(vm, 60))


def on_bare_unicorn(source: str) -> float:
    """CPU seconds of the same code on a bare engine with all of its memory in one map that may be read, written and executed."""
    code = assemble(source)
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
    uc.mem_map(0, BARE_MEMORY, unicorn.UC_PROT_ALL)
    uc.mem_write(ENTRY, code)
    uc.reg_write(x86.UC_X86_REG_ESP, STACK)
    return cpu_seconds(lambda: uc.emu_start(ENTRY, ENTRY + len(code)))


@pytest.mark.parametrize("name", LOOPS)
def test_loop(name: str, keep: Keep) -> None:
    """The loop takes at most so many times what it takes on a bare engine."""
    body, count = LOOPS[name]
    source = loop(body, count)
    pair = in_turns(lambda: under_bt(source), lambda: on_bare_unicorn(source))
    keep(name, pair.ratio, f"{pair.ours / count * 1e9:.1f} ns against {pair.theirs / count * 1e9:.1f} ns a round")


def test_call_and_return(keep: Keep) -> None:
    """Call and return of a translated kernel, against the same code run directly in user mode under the same VMM.

    Each round has the code elsewhere: where two blocks fall on one place of the CPU's jump cache, either takes three times as long.
    """
    places = cycle(range(0, 80, 9))

    def code() -> str:
        return "nop; " * next(places) + CALL_LOOP.format(CALLS)

    def translated() -> float:
        vm = flat_vm(small_kernel(f"{code()}; {FINISH}"))
        return cpu_seconds(lambda: finish(vm, 60))

    def direct() -> float:
        vm = flat_vm(small_kernel(TO_USER, user=f"{code()}; int 0x80", handlers={0x80: FINISH}), memory_mib=8)
        return cpu_seconds(lambda: finish(vm, 60))

    pair = in_turns(translated, direct, rounds=9)
    keep("call", pair.ratio, f"{pair.ours / CALLS * 1e9:.1f} ns against {pair.theirs / CALLS * 1e9:.1f} ns a round")


def exits(rounds: int) -> int:
    """Architectural exits of so many rounds of SENSITIVE in a kernel with all interrupts masked."""
    vm = flat_vm(small_kernel(f"mov ecx,{rounds}; jmp l; l: {SENSITIVE}; dec ecx; jnz l; {FINISH}"))
    finish(vm, 60)
    return vm.stats.architectural.total()


def test_exits_of_sensitive_instructions(keep: Keep) -> None:
    """100,000 rounds take no exit more than 10 rounds."""
    few, many = exits(10), exits(100_010)
    keep("exits", many - few, f"{few} exits for 10 rounds, {many} for 100,010")
