"""A fault inside a stub shows the guest the state before its instruction, and the instruction completes once the page is there."""

from dataclasses import dataclass
from functools import cache

import pytest

from tests.machine.flat import FINISH, finish, flat_vm, pack, words
from tests.machine.small_kernel import ABSENT, IDENTITY, LOG, small_kernel
from vmm.exits import End

CASE, AFTER = 0x120000, 0x120040
GENERAL = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_SAVE = "; ".join(f"mov [{{0}}+{4 * n}],{register}" for n, register in enumerate(GENERAL))
_HANDLER = f"""
    {_SAVE.format(LOG)}; mov eax,[esp]; mov [{LOG + 32}],eax; mov eax,[esp+4]; mov [{LOG + 36}],eax; mov eax,[esp+12]; mov [{LOG + 40}],eax
    mov eax,cr2; mov [{LOG + 44}],eax; shr eax,10; and eax,0xfffffffc; or dword ptr [eax+{IDENTITY}],3; mov eax,cr2; invlpg [eax]
    inc dword ptr [{LOG + 48}]; mov eax,[{LOG}]; add esp,4; .byte 0xcf
"""
_DUMP = f"{_SAVE.format(LOG + 64)}; mov esp,0x170000; pushfd; pop eax; mov [{LOG + 96}],eax; {FINISH}"
_VALUES = {"eax": 0x10, "ecx": 2, "edx": 0x33333333, "ebx": ABSENT, "ebp": 0x44444444, "esi": 0x3E0000, "edi": ABSENT, "esp": 0x3E8000}
_FLAGS = 0x8D7


@dataclass(frozen=True)
class Case:
    """An instruction that touches an absent page. values: registers other than usual; memory: 32-bit words that stand at ABSENT."""

    code: str
    values: dict[str, int]
    write: bool = False
    at: int = ABSENT
    memory: tuple[int, ...] = (AFTER, 8, 0x8D7, 0)
    before: dict[str, int] | None = None  # what the fault finds otherwise than it was: a string instruction goes on where it was


READS = {
    "ret": Case("ret", {"esp": ABSENT}),
    "ret n": Case("ret 16", {"esp": ABSENT}),
    "ret across": Case("ret", {"esp": ABSENT - 2}, memory=(AFTER >> 16, 0)),
    "ret far": Case("retf", {"esp": ABSENT}),
    "ret far, selector": Case("retf", {"esp": ABSENT - 4}, memory=(8, 0)),
    "popf": Case("popfd", {"esp": ABSENT}, memory=(0x246,)),
    "popf, IOPL": Case("popfd", {"esp": ABSENT}, memory=(0x3246,)),
    "popf across": Case("popfd", {"esp": ABSENT - 3}, memory=(0, 0)),
    "iret": Case(".byte 0xcf", {"esp": ABSENT}),
    "iret, flags": Case(".byte 0xcf", {"esp": ABSENT - 8}, memory=(0xD7,)),
    "pop": Case("pop ecx", {"esp": ABSENT}),
    "pop ss": Case(".byte 0x17", {"esp": ABSENT}, memory=(0x10,)),
    "leave": Case("leave", {"ebp": ABSENT}),
    "call [ebx]": Case("call dword ptr [ebx]", {}),
    "call [ecx]": Case("call dword ptr [ecx]", {"ecx": ABSENT}),
    "call [edx+ecx*4]": Case("call dword ptr [edx+ecx*4]", {"edx": ABSENT - 8}),
    "call [ebx] across": Case("call dword ptr [ebx]", {"ebx": ABSENT - 1}, memory=(AFTER >> 8,)),
    "jmp [ebx]": Case("jmp dword ptr [ebx]", {}),
    "jmp [ecx]": Case("jmp dword ptr [ecx]", {"ecx": ABSENT}),
    "jmp [disp]": Case(f"jmp dword ptr [{ABSENT}]", {}),
    "jmp far []": Case(".byte 0xff,0x2b", {}),
    "call far []": Case(".byte 0xff,0x1b", {}),
    "lss": Case(".byte 0x0f,0xb2,0x23", {}, memory=(0x3E8000, 0x10)),
    "mov ss": Case(".byte 0x8e,0x13", {}, memory=(0x10,)),
    "lar": Case(".byte 0x0f,0x02,0x0b", {}, memory=(8,)),
    "verr": Case(".byte 0x0f,0x00,0x23", {}, memory=(8,)),
    "lmsw": Case(".byte 0x0f,0x01,0x33", {}, memory=(0x11,)),
    "arpl": Case(".byte 0x63,0x0b", {}),
    "copied": Case("add ecx,[ebx]", {}),
    "copied, cs:": Case(".byte 0x2e,0x8b,0x0b", {}),
}
WRITES = {
    "mov [],cs": Case(".byte 0x8c,0x0b", {}, write=True),
    "mov [eax],cs": Case(".byte 0x8c,0x08", {"eax": ABSENT}, write=True),
    "mov [ecx+eax],ss": Case(".byte 0x8c,0x14,0x01", {"ecx": ABSENT - 0x10}, write=True),
    "sgdt": Case(".byte 0x0f,0x01,0x03", {}, write=True),
    "sgdt [eax]": Case(".byte 0x0f,0x01,0x00", {"eax": ABSENT}, write=True),
    "sidt, base": Case(".byte 0x0f,0x01,0x0b", {"ebx": ABSENT - 2}, write=True),
    "sgdt across": Case(".byte 0x0f,0x01,0x03", {"ebx": ABSENT - 4}, write=True),
    "sldt": Case(".byte 0x0f,0x00,0x03", {}, write=True),
    "str": Case(".byte 0x0f,0x00,0x0b", {}, write=True),
    "smsw": Case(".byte 0x0f,0x01,0x23", {}, write=True),
    "smsw across": Case(".byte 0x0f,0x01,0x23", {"ebx": ABSENT - 1}, write=True),
    "copied write": Case("mov [ebx],ecx", {}, write=True),
    "rep movs": Case(".byte 0xf3,0xa5", {"ecx": 4, "edi": ABSENT - 8}, write=True, before={"ecx": 2, "edi": ABSENT, "esi": 0x3E0008}),
}
CASES = READS | WRITES
_CONFIGURATIONS = [(ring, cached) for ring in (1, 3) for cached in (True, False)]


def guest(case: Case, *, fault: bool, read_only: bool = False) -> dict[int, bytes | str]:
    """A kernel that loads the case's registers and flags and runs its instruction at CASE; without `fault` the pages are there."""
    values = _VALUES | case.values
    load = "; ".join(f"mov {register},{value:#x}" for register, value in values.items())
    write_protect = "mov eax,cr0; or eax,0x10000; mov cr0,eax"
    parts: dict[int, bytes | str] = dict(small_kernel(f"{write_protect}; push {_FLAGS:#x}; popfd; {load}; jmp {CASE:#x}", handlers={14: _HANDLER}))
    parts |= {CASE: f"{case.code}; jmp {AFTER:#x}", AFTER: _DUMP, ABSENT - 16: pack((0, 0, AFTER, 8 if len(case.memory) == 1 else AFTER))}
    if values["esp"] == ABSENT - 2:
        parts[ABSENT - 16] = pack((0, 0, 0, (AFTER & 0xFFFF) << 16))
    if case.values.get("ebx") == ABSENT - 1 and not case.write:
        parts[ABSENT - 16] = pack((0, 0, 0, (AFTER & 0xFF) << 24))
    rights = 3 if not fault else 1 if read_only else 2
    parts |= {ABSENT: pack(case.memory), IDENTITY + (ABSENT >> 10): pack(ABSENT + 0x1000 * n | rights for n in range(16))}
    return parts


@cache
def without_fault(name: str) -> tuple[list[int], bytes, bytes]:
    """What the same guest leaves when the pages are there: registers and flags, the 16 bytes before ABSENT and those from there."""
    vm = flat_vm(guest(CASES[name], fault=False))
    finish(vm)
    assert words(vm, LOG, 13) == [0] * 13
    return words(vm, LOG + 64, 9), vm.memory.read(ABSENT - 16, 16), vm.memory.read(ABSENT, 16)


@pytest.mark.parametrize(("ring", "cached"), _CONFIGURATIONS, ids=lambda value: str(value))
@pytest.mark.parametrize(
    ("name", "read_only"),
    [pytest.param(name, False, id=f"{name}, absent") for name in CASES] + [pytest.param(name, True, id=f"{name}, read-only") for name in WRITES],
)
def test_a_fault_is_precise_and_the_instruction_completes(name: str, read_only: bool, ring: int, cached: bool) -> None:
    """Registers, flags, EIP, error code and CR2 in the handler, and afterwards the same end as with the page there from the start."""
    case = CASES[name]
    vm = flat_vm(guest(case, fault=True, read_only=read_only), ring=ring, stubs_in_cache=cached)
    finish(vm)
    log = words(vm, LOG, 13)
    at_fault = dict(zip(GENERAL, log, strict=False))
    expected = _VALUES | case.values | (case.before or {})
    assert at_fault | {"esp": at_fault["esp"] + 16} == expected
    assert log[9] == CASE
    assert log[10] & ~0x10000 == _FLAGS
    assert (log[8], log[11], log[12]) == (2 * case.write | read_only, case.at, 1)
    registers, below, behind = without_fault(name)
    assert words(vm, LOG + 64, 9) == registers
    assert vm.memory.read(ABSENT, 16) == behind
    if expected["esp"] < ABSENT - 0x1000:  # otherwise the fault left its frame there
        assert vm.memory.read(ABSENT - 16, 16) == below



@pytest.mark.parametrize("code", ("add [ebx],ecx", "inc dword ptr [ebx]", "xchg [ebx],ecx", "bts dword ptr [ebx],ecx"))
def test_a_read_modify_write_of_an_absent_page_faults_as_a_read(code: str) -> None:
    """A quirk of the CPU: the error code says "read" where hardware says "write". What is present and read-only faults as a write."""
    vm = flat_vm(guest(Case(code, {}), fault=True))
    finish(vm)
    assert words(vm, LOG + 32, 5)[0::4] == [0, 1]
    vm = flat_vm(guest(Case(code, {}), fault=True, read_only=True))
    finish(vm)
    assert words(vm, LOG + 32, 5)[0::4] == [3, 1]


@pytest.mark.parametrize(("ring", "cached"), _CONFIGURATIONS, ids=lambda value: str(value))
@pytest.mark.parametrize(
    "code",
    ("pushfd", ".byte 0x0e", ".byte 0x16", f"call {AFTER:#x}", "call eax", "call [esi]", "push ecx", "int 0x80", "pushad", ".byte 0xff,0x1e"),
)
def test_without_a_stack_the_run_ends_at_the_instruction(code: str, ring: int, cached: bool) -> None:
    """The stack page itself is absent, so the fault cannot be delivered: a triple fault, with the registers before the instruction."""
    case = Case(code, {"esp": ABSENT + 4, "eax": AFTER, "ecx": 0x22222222})
    parts = guest(case, fault=True)
    parts[0x3E0000] = pack((AFTER, 8))
    vm = flat_vm(parts, ring=ring, stubs_in_cache=cached)
    stop = vm.run(10)
    assert stop.why is End.DIED and "triple fault" in stop.reason
    assert dict(zip(GENERAL, (vm.vcpu.register(n) for n in range(8)), strict=True)) == _VALUES | case.values
    assert (vm.vcpu.eip, vm.vcpu.flags() & ~0x10000) == (CASE, _FLAGS)


_STORM = f"""
    mov al,0x11; out 0x20,al; mov al,0x90; out 0x21,al; mov al,4; out 0x21,al; mov al,1; out 0x21,al; mov al,0xfe; out 0x21,al
    mov al,0x34; out 0x43,al; mov al,0xa0; out 0x40,al; mov al,1; out 0x40,al
    mov ecx,200000; xor edx,edx; xor ebx,ebx; xor ebp,ebp; sti
    l: pushfd; popfd; push {AFTER:#x}; call [esp]; add esp,4; cli; inc ebx; pushfd; sti; popfd; sti; mov esi,cs; add ebp,esi; dec ecx; jnz l
    mov [{LOG}],ebx; mov [{LOG + 4}],edx; mov [{LOG + 8}],ebp; mov [{LOG + 12}],esp; cli; {FINISH}
"""


@pytest.mark.parametrize(("ring", "cached"), [(1, True), (3, True)], ids=lambda value: str(value))
def test_interrupts_come_between_instructions(ring: int, cached: bool) -> None:
    """A fast timer while stubs run: every interrupt finds the guest's own EIP and IF set, and nothing is lost, doubled or spilled."""
    handler = f"""
        push eax; inc dword ptr [{LOG + 16}]; mov eax,[esp+12]; and eax,0x200; jz w; mov eax,[esp+4]; and eax,0xfff00000; cmp eax,0x100000; jne w
        mov al,0x20; out 0x20,al; pop eax; .byte 0xcf
        w: mov al,1; out 0xf4,al
    """
    spurious = f"inc dword ptr [{LOG + 20}]; .byte 0xcf"
    parts: dict[int, bytes | str] = dict(small_kernel(_STORM, handlers={0x90: handler, 0x97: spurious}))
    vm = flat_vm(parts | {AFTER: "inc edx; ret"}, ring=ring, stubs_in_cache=cached)
    assert finish(vm) == 0
    ebx, edx, ebp, esp, interrupts = words(vm, LOG, 5)
    assert (ebx, edx, ebp, esp) == (200000, 200000, 8 * 200000, 0x170000)
    assert interrupts > 5, "no interrupt came: nothing was tested"
