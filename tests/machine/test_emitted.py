"""What the translator emits does what the instruction does: each form runs under bt and on a bare engine, and all state is compared."""

from functools import cache

import pytest

from tests.machine.bare import run_bare
from tests.machine.cases import BODIES, END, GENERAL, SLOT, SLOTS, Environment, program
from tests.machine.flat import ENTRY, assemble, finish, flat_vm

CONFIGURATIONS = [(ring, cached) for ring in (1, 3) for cached in (True, False)]
_NAMES = (*GENERAL, "eflags", *(f"unused {n}" for n in range(7)), *(f"memory+{4 * n}" for n in range(16)))


@cache
def expected(environment: Environment) -> bytes:
    """Memory from SLOTS to END after the environment's program on the bare engine."""
    return run_bare(program(environment, BODIES[environment]), ENTRY).memory[SLOTS:END]


@pytest.mark.parametrize("environment", BODIES, ids=lambda environment: environment.name)
@pytest.mark.parametrize(("ring", "cached"), CONFIGURATIONS, ids=lambda value: str(value))
def test_translated_code_does_what_the_instruction_does(environment: Environment, ring: int, cached: bool) -> None:
    """Registers, flags, memory, stack and descriptor tables after each body are those of a bare CPU."""
    bodies = BODIES[environment]
    vm = flat_vm(program(environment, bodies), ring=ring, stubs_in_cache=cached, timeless=True)
    finish(vm)
    memory, wanted = vm.memory.read(SLOTS, END - SLOTS), expected(environment)
    wrong = []
    for n, name in enumerate(bodies):
        here = slice(SLOT * n, SLOT * (n + 1))
        if memory[here] != wanted[here]:
            pairs = zip(_NAMES, memoryview(memory[here]).cast("I"), memoryview(wanted[here]).cast("I"), strict=True)
            wrong.append(f"{name}: " + ", ".join(f"{what} {got:#x} instead of {right:#x}" for what, got, right in pairs if got != right))
    assert not wrong, "\n".join(wrong)
    assert memory == wanted, "the stack or the descriptor tables differ"


@pytest.mark.parametrize("cached", (True, False))
@pytest.mark.parametrize("jump", (".byte 0xea; .long 0x140000; .short 8", "push 8; .byte 0x68; .long 0x140000; retf"), ids=("jmp far", "ret far"))
def test_a_far_jump_to_the_next_eip_in_another_segment(jump: str, cached: bool) -> None:
    """The same EIP under another CS base is other code, although the instruction ends just there."""
    base, behind = 0x30000, 0x140000
    before = assemble(jump, behind)
    start = behind - len(before)
    parts: dict[int, bytes | str] = dict(program(Environment("based", base, 0), {}, f"xor ebx,ebx; .byte 0x68; .long {behind}; ret"))
    seen_before = assemble(f"inc ebx; cmp ebx,1; jne w; .byte 0x68; .long {start}; ret; w: mov al,1; out 0xf4,al", behind)
    parts |= {start + base: before, behind + base: seen_before, behind: "mov al,0; out 0xf4,al"}
    assert finish(flat_vm(parts, stubs_in_cache=cached)) == 0
