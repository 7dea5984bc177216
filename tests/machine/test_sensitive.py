"""Sensitive instructions that the CPU would treat otherwise than the guest's machine: each seen by a guest, under both rings and kinds of stub."""

import pytest

from tests.machine.flat import ENTRY, FINISH, FLAT_CODE, assemble, finish, flat_vm, words
from tests.machine.small_kernel import LOG, TO_USER, USER, USER_PAGES, small_kernel
from vmm.exits import End
from vmm.vm import Vm

RINGS = pytest.mark.parametrize("ring", (1, 3))
CONFIGURATIONS = pytest.mark.parametrize(("ring", "cached"), ((1, True), (3, True), (1, False), (3, False)))
_GDT, _IDT, _POINTERS = 0x310000, 0x311000, 0x313000
# A handler that logs [error code,] EIP and the least of CS, and goes on at EBP.
_FAULT = f"mov edi,[{LOG}]; add edi,12; mov [{LOG}],edi; mov eax,[esp]; mov [edi+{LOG}],eax; mov eax,[esp+4]; mov [edi+{LOG + 4}],eax; "
_FAULT += f"mov eax,[esp+8]; mov [edi+{LOG + 8}],eax; "
_GP = _FAULT + "add esp,4; mov [esp],ebp; .byte 0xcf"


def _run(parts: dict[int, bytes], ring: int, cached: bool = True) -> Vm:
    vm = flat_vm(parts, ring=ring, stubs_in_cache=cached)
    assert finish(vm) == 0
    return vm


@CONFIGURATIONS
@pytest.mark.parametrize("load", ("mov ds,eax", "push eax; pop fs", "mov [0x240000],eax; mov es,[0x240000]"), ids=("mov", "pop", "memory"))
def test_the_requested_privilege_level_of_a_load_counts(load: str, ring: int, cached: bool) -> None:
    """In the kernel RPL 1 to 3 of a DPL 0 segment is a #GP with the selector, also behind loads that were allowed; RPL 3 of DPL 3 is none."""
    selectors = (0x10, 0x10, 0x11, 0x12, 0x13, 0x10, 0x23, 0x23, 0x13, 0, 3, 0x22)
    body = "; ".join(f"mov ebp,n{n}+0; mov eax,{s}; {load}; n{n}: mov eax,0x10; mov ds,eax; mov esp,0x16f000" for n, s in enumerate(selectors))
    body = body.replace("mov ebp,n", ".byte 0xbd; .long n")
    vm = _run(small_kernel(f"{body}; {FINISH}", handlers={13: _GP}), ring, cached)
    count = words(vm, LOG, 1)[0] // 12
    assert [words(vm, LOG + 12 * n, 1)[0] for n in range(1, count + 1)] == [0x10, 0x10, 0x10, 0x10]


@CONFIGURATIONS
def test_a_load_is_checked_anew_when_its_descriptor_was_written(ring: int, cached: bool) -> None:
    """The same selector, loaded by the CPU before, is a #NP once the descriptor is not present."""
    body = f"mov eax,0x20; mov ds,eax; mov ds,eax; .byte 0xbd; .long n; and byte ptr [{_GDT + 0x25}],0x7f; mov ds,eax; mov ebp,0; n: {FINISH}"
    vm = _run(small_kernel(body, handlers={11: _GP}), ring, cached)
    assert words(vm, LOG, 1)[0] == 12
    assert words(vm, LOG + 12, 1)[0] == 0x20


@CONFIGURATIONS
def test_the_time_stamp_counter_can_be_denied_to_user_mode(ring: int, cached: bool) -> None:
    """CR4.TSD: RDTSC goes on in the kernel, and is a #GP(0) at its own EIP in user mode."""
    kernel = f"mov eax,cr4; or eax,4; mov cr4,eax; rdtsc; mov [{LOG + 0x100}],eax; rdtsc; sub eax,[{LOG + 0x100}]; mov [{LOG + 0x100}],eax; {TO_USER}"
    vm = _run(small_kernel(kernel, user="rdtsc; int 0x80", handlers={13: f"{_FAULT}; {FINISH}", 0x80: "mov al,1; out 0xf4,al"}), ring, cached)
    assert 0 < words(vm, LOG + 0x100, 1)[0] < 1 << 31
    assert words(vm, LOG + 12, 3) == [0, 0x400009, 0x1B]


@CONFIGURATIONS
def test_sysenter_and_sysexit(ring: int, cached: bool) -> None:
    """User mode calls the kernel without a gate, which sees its own CS and SS, and returns to where EDX says with ESP from ECX."""
    msrs = "".join(f"mov ecx,{msr}; mov eax,{value}; xor edx,edx; wrmsr; " for msr, value in ((0x174, 8), (0x175, 0x16F000), (0x176, 0x1A0000)))
    entry = f"mov [{LOG}],esp; mov word ptr [{LOG + 4}],cs; mov word ptr [{LOG + 6}],ss; pushfd; pop dword ptr [{LOG + 8}]; .byte 0x0f,0x35"
    user = ".byte 0xb9; .long 0x407000; .byte 0xba; .long 0x400020; .byte 0x0f,0x34; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop"
    user += "; mov eax,esp; mov ebx,cs; mov ecx,ss; int 0x80"
    handler = f"mov [{LOG + 12}],eax; mov [{LOG + 16}],ebx; mov [{LOG + 20}],ecx; {FINISH}"
    parts = small_kernel(f"{msrs} {TO_USER}", user=user, handlers={0x80: handler})
    vm = _run(parts | {0x1A0000: assemble(entry, 0x1A0000)}, ring, cached)
    assert words(vm, LOG, 6) == [0x16F000, 0x10 << 16 | 8, 0x2, 0x407000, 0x1B, 0x23]


@RINGS
@pytest.mark.parametrize(
    ("code", "vector", "behind"),
    (
        ("0xf1", 1, 1),
        ("0x0f,0x05", 6, 0),
        ("0x0f,0x34", 13, 0),
        ("0xb0,0x7f,0x04,1,0xce", 4, 5),
        ("0x0f,0x35", 13, 0),
        ("0x0f,0x33", 13, 0),
    ),
    ids=("icebp", "syscall", "sysenter", "into", "sysexit", "rdpmc"),
)
def test_user_code_traps(code: str, vector: int, behind: int, ring: int) -> None:
    """ICEBP is a #DB behind it whatever its gate allows, INTO an #OF behind it; SYSCALL does not exist, the rest is not allowed or not set up."""
    log = "add esp,4; " if vector == 13 else ""
    handlers = {vector: f"{log} mov eax,[esp]; mov [{LOG}],eax; {FINISH}", 0x80: "mov al,1; out 0xf4,al"}
    parts = small_kernel(TO_USER, user=f".byte {code}; int 0x80", handlers=handlers)
    idt = bytearray(parts[_GDT + 0x1000])
    idt[8 * 4 + 5] |= 0x60  # into needs a gate of DPL 3
    vm = _run(parts | {_GDT + 0x1000: bytes(idt)}, ring)
    assert words(vm, LOG, 1)[0] == 0x400009 + behind


_RDTSCP, _RDRAND, _AESIMC, _MONITOR = "0x0f,0x01,0xf9", "0x0f,0xc7,0xf0", "0x66,0x0f,0x38,0xdb,0xc1", "0x0f,0x01,0xc8"


@pytest.mark.parametrize("code", (_RDTSCP, _RDRAND, _AESIMC, _MONITOR), ids=("rdtscp", "rdrand", "aesimc", "monitor"))
@RINGS
def test_what_cpuid_does_not_name_does_not_exist(code: str, ring: int) -> None:
    """Instructions that the physical CPU has and the virtual one does not are a #UD in the kernel and in directly executed user code."""
    again = f"cmp dword ptr [{LOG + 8}],1; je u; mov dword ptr [{LOG + 8}],1; {TO_USER}; u: mov eax,[esp]; mov [{LOG + 4}],eax; {FINISH}"
    handlers = {6: f"cmp dword ptr [{LOG + 8}],1; je v; mov eax,[esp]; mov [{LOG}],eax; v: {again}", 0x80: "mov al,1; out 0xf4,al"}
    vm = _run(small_kernel(f".byte 0xbd; .long a; a: .byte {code}; mov al,1; out 0xf4,al", user=f".byte {code}; int 0x80", handlers=handlers), ring)
    assert words(vm, LOG, 2) == [vm.vcpu.register(5), 0x400009]


def test_lzcnt_is_bsr_where_it_is_not_offered() -> None:
    """The REP prefix of LZCNT and TZCNT means nothing to a processor without them (SDM 2A "LZCNT")."""
    code = f"mov eax,0x100; .byte 0xf3,0x0f,0xbd,0xc8; mov [0x200000],ecx; xor eax,eax; mov edx,7; .byte 0xf3,0x0f,0xbc,0xd0; {FINISH}"
    vm = flat_vm({ENTRY: code})
    assert finish(vm) == 0
    assert words(vm, 0x200000, 1)[0] == 8
    assert vm.vcpu.register(2) == 7


@CONFIGURATIONS
def test_translated_users_reach_ports_that_they_may(ring: int, cached: bool) -> None:
    """With IOPL 3: IN and OUT of both kinds and three sizes; REP INS into an absent page faults between iterations."""
    user = f"""
        mov al,0x5a; out 0x71,al; mov edx,0x3ff; mov al,0xa5; out dx,al; xor eax,eax; in al,dx; mov ebx,eax; in al,0x21; mov bh,al
        mov dx,0x80; .byte 0x66,0xef; .byte 0xef; mov dx,0xe4; .byte 0xed; mov esi,eax
        mov dx,0x3ff; mov edi,{USER + 0x10 * 0x1000 - 2:#x}; mov ecx,5; std; cld; rep insb; int 0x80
    """
    fault = f"mov [{LOG}],ecx; mov [{LOG + 4}],edi; mov [{LOG + 8}],ebx; mov [{LOG + 12}],esi; "
    fault += f"mov eax,cr2; mov [{LOG + 16}],eax; pop eax; mov [{LOG + 20}],eax; "
    kernel = TO_USER.replace("0x202", "0x3202")
    parts = small_kernel(kernel, user=user, handlers={14: fault + FINISH, 0x80: "mov al,1; out 0xf4,al", 13: "mov al,2; out 0xf4,al"})
    vm = flat_vm(parts, ring=ring, stubs_in_cache=cached, translate_user=True)
    assert finish(vm) == 0
    end = USER + 0x10000
    assert words(vm, LOG, 6) == [3, end, 0xFFA5, 0xFFFFFFFF, end, 6]
    assert vm.memory.read(USER_PAGES + 0xFFFE, 2) == b"\xa5\xa5"


_RETURN = "push {flags}; push 8; .byte 0x68; .long n{n}; .byte 0xcf; n{n}: "


@CONFIGURATIONS
def test_returns_within_the_kernel(ring: int, cached: bool) -> None:
    """IRET to the same level loads EIP and all flags of its frame, IF among them, and releases the frame; only the first needs the VMM."""
    images = (0x202, 0x2, 0xED7, 0x246, 0xC02, 0x2, 0x202) * 3
    body = "".join(
        _RETURN.format(flags=flags, n=n) + f"pushfd; pop eax; cli; cld; mov [{LOG + 8 * n}],eax; mov [{LOG + 8 * n + 4}],esp; "
        for n, flags in enumerate(images)
    )
    vm = _run(small_kernel(body + FINISH), ring, cached)
    assert words(vm, LOG, 2 * len(images)) == [word for flags in images for word in (flags, 0x170000)]
    if ring == 1 and cached:
        assert vm.stats.callouts["iret"] == 1


@CONFIGURATIONS
@pytest.mark.parametrize(("attributes", "vector"), ((0x1B, 11), (0xFB, 13), (0x93, 13)), ids=("absent", "ring 3", "data"))
def test_a_return_checks_a_descriptor_that_was_written(attributes: int, vector: int, ring: int, cached: bool) -> None:
    """An IRET to the CS that is loaded already is refused once its descriptor, written since, does not allow it."""
    log = f"pop eax; mov [{LOG}],eax; mov byte ptr [{_GDT + 13}],0x9b; mov al,{vector}; out 0xf4,al"
    body = "".join(_RETURN.format(flags=2, n=n) for n in range(3)) + f"mov byte ptr [{_GDT + 13}],{attributes}; " + _RETURN.format(flags=2, n=3)
    parts = small_kernel(body + FINISH, handlers={vector: log})
    parts[_GDT] += FLAT_CODE.to_bytes(8, "little")  # the handler's gate names a code segment of its own, selector 30h
    gates, pointers = (bytearray(parts[at]) for at in (_IDT, _POINTERS))
    gates[8 * vector + 2], pointers[0] = 0x30, 0x37
    parts |= {_IDT: bytes(gates), _POINTERS: bytes(pointers)}
    vm = flat_vm(parts, ring=ring, stubs_in_cache=cached)
    assert finish(vm) == vector
    assert words(vm, LOG, 1) == [8]


@CONFIGURATIONS
def test_a_return_out_of_a_nested_task_is_noticed(ring: int, cached: bool) -> None:
    """With NT set an IRET is not what it was before: hardware task switches are not supported, and the run ends with that."""
    body = "".join(_RETURN.format(flags=2, n=n) for n in range(3)) + "push 0x4002; popfd; " + _RETURN.format(flags=2, n=3) + FINISH
    stop = flat_vm(small_kernel(body), ring=ring, stubs_in_cache=cached).run(20)
    assert stop.why is End.UNSUPPORTED
    assert "nested task" in stop.reason
