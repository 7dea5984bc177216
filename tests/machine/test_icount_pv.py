"""--icount under paravirtualization: the count is what the rule says, and events come where the count says, run after run. Counted by hand."""

from __future__ import annotations

import struct

import pytest

from guest_kernels import kernels, missing_line
from tests.machine.pv import (
    BASE,
    CODE,
    DATA,
    FINISH,
    HANDLERS,
    INFO,
    IRET,
    LOG,
    STACK,
    TABLE,
    USER,
    call,
    domain_of,
    log,
    map_page,
    page_of,
    run,
    traps,
)
from tests.machine.test_pv_guest import leaf_table
from vmm.backends.pv import PvOptions
from vmm.console import Recorder
from vmm.icount import DATE, NANOSECONDS
from vmm.vm import Vm, machine_for

_VECTORS = (0, 6, 13, 14)
_WINDOW = BASE + 0x180000
CASES: dict[str, tuple[str, int]] = {
    "nothing": ("nop; nop", 2),
    "hypercall": (call(17, 0), 3),
    "not offered": (call(31, 0), 3),
    "int": ("int 0x30", 1 + 2),
    "int that may not be": ("int 0x55", 3),
    "undefined": (".byte 0x0f,0x0b", 2),
    "divide error": ("xor ecx,ecx; .byte 0xf7,0xf1", 1 + 2),
    "refused": ("hlt; nop; nop", 3 + 1),
    "emulated": ("clts; mov eax,cr0; rdtsc; mov ecx,0x1b; rdmsr", 5),
    "cpuid": ("xor eax,eax; cpuid; .byte 0x0f,0x0b,0x78,0x65,0x6e,0x0f,0xa2", 3),
    "page fault": ("mov al,[eax]; nop", 3 + 1),
    "rep": (f"mov edi,{DATA}; mov ecx,5; .byte 0xf3,0xaa", 2 + 5 + 1),
    "a mapping": (map_page(_WINDOW, page_of(DATA), 0x63), 10),
}


def _skip(size: int, *, code: bool) -> str:
    """A handler of two instructions that goes on behind a faulting instruction of so many bytes, or three with an error code."""
    return f"{'add esp,4; ' if code else ''}add dword ptr [esp],{size}; {IRET}"


def _parts(body: str, **more: str) -> dict[int, str | bytes]:
    code = f"{call(0, TABLE)}; xor eax,eax; rdtsc; mov ebp,eax; {body}; rdtsc; sub eax,ebp; mov [{LOG + 64}],eax; {FINISH}"
    handlers = {vector: _skip(2, code=vector >= 13) for vector in _VECTORS} | {0x30: f"nop; {IRET}"}
    return {CODE: code, TABLE: traps(*_VECTORS, 0x30)} | {HANDLERS + 0x100 * vector: text for vector, text in handlers.items()}


@pytest.mark.parametrize("name", CASES)
def test_counted_by_hand(name: str) -> None:
    """Between two RDTSC lie so many instructions: those of handlers too, a fault none, a hypercall one."""
    body, expected = CASES[name]
    vm = run(_parts(body), icount=True)
    assert log(vm, 17)[16] == NANOSECONDS * (2 + expected)


@pytest.mark.parametrize(("value", "expected"), ((0, 1), (0x7FFFFF03, 3)), ids=("done", "refused"))
def test_a_store_into_a_page_table(value: int, expected: int) -> None:
    """One that is done is one instruction, however often it was begun; one that is refused is a page fault, and none."""
    parts = _parts(f"mov dword ptr [{leaf_table() + 8 * 0x30}],{value}")
    parts[HANDLERS + 0x100 * 14] = _skip(10, code=True)
    vm = run(parts, icount=True)
    assert log(vm, 17)[16] == NANOSECONDS * (2 + expected)
    assert vm.stats.architectural["page-table store"] == 1


def test_user_mode_and_a_refused_port() -> None:
    """A system call and IRET count one each; a port access that is not allowed counts none, nor what ran before it was taken back."""
    pages = f"{map_page(USER, page_of(USER), 0x67)}; {map_page(USER + 0x1000, page_of(USER) + 1, 0x67)}"
    enter = f"push 0xe033; push {USER + 0x1800}; push 0x202; push 0xe02b; push {USER}; {IRET}"
    vm = run({
        CODE: f"{call(0, TABLE)}; {call(3, 0xE021, STACK)}; {pages}; {enter}",
        TABLE: traps(13, 0x30, 0x31),
        USER: "rdtsc; mov ebp,eax; int 0x30; nop; in al,0x60; nop; nop; rdtsc; sub eax,ebp; int 0x31",
        HANDLERS + 0xD00: f"add esp,4; add dword ptr [esp],2; {IRET}",
        HANDLERS + 0x3000: f"nop; {IRET}",
        HANDLERS + 0x3100: f"mov [{LOG + 64}],eax; {FINISH}",
    }, icount=True)  # fmt: skip
    assert log(vm, 17)[16] == NANOSECONDS * (2 + 3 + 1 + 3 + 2)


@pytest.mark.parametrize("after", (40, 41, 42, 1001, 250_000))
def test_the_timer_comes_at_its_instruction(after: int) -> None:
    """An event `after` instructions behind an RDTSC enters its handler there, to the instruction, in every run."""
    unmask = f"mov eax,[{INFO}]; mov eax,[eax+36]; or eax,0x63; mov ebx,{DATA + 0x1000}; mov ecx,eax; mov edx,0; mov esi,2; mov eax,14; int 0x82"
    bind = f"{call(32, 1, TABLE)}; {call(4, 0xE019, HANDLERS, 0xE019, 0)}; {call(24, 7, 0, 0)}; mov byte ptr [{DATA + 0x1001}],0"
    arm = f"rdtsc; add eax,{NANOSECONDS * after}; adc edx,0; mov ebx,eax; mov ecx,edx; mov eax,15; int 0x82"
    loop = "xor ebp,ebp; .byte 0xbf; .long l; l: inc ebp; jmp l"
    seen = []
    for _ in range(2):
        handler = f"mov [{LOG + 64}],ebp; pop dword ptr [{LOG + 68}]; sub [{LOG + 68}],edi; {FINISH}"
        vm = run({CODE: f"{unmask}; {bind}; {arm}; {loop}", TABLE: bytes(12), HANDLERS: handler}, icount=True)
        seen.append((log(vm, 18)[16:], vm.backend.retired()))
    assert seen[0] == seen[1]
    in_loop = after - 9  # RDTSC and what stands in front of the loop
    assert seen[0][0] == [-(-in_loop // 2), in_loop % 2]


@pytest.mark.parametrize("name", ("rings-pv", "faults-pv", "pv_batch"))
def test_bundled_kernels_run_the_same_twice(name: str) -> None:
    """Console, instructions, hypercalls and events of two runs; the date is the count's."""
    guest = kernels("xen")[name]
    seen = []
    for _ in range(2):
        console = Recorder()
        vm = Vm(machine_for(guest.memory_mib, PvOptions()), memory_mib=guest.memory_mib, options=PvOptions(), console=console, icount=True)
        vm.load(str(guest.file), append=guest.command_line)
        vm.run(guest.timeout_s)
        assert missing_line(console.text, guest.console) is None, console.text
        seen.append((console.text, vm.backend.retired(), vm.stats.hypercalls, vm.stats.injected, domain_of(vm).channels.raised))
    assert seen[0] == seen[1]
    assert struct.unpack_from("<I", domain_of(vm).shared.bytes, 4 * 577)[0] == DATE
