"""Guest mode: exits that were asked for and no others, nested paging, and a CPU that lacks nothing. Each seen by a guest of its own.

What the bare machine's guests see, they must see here: their tests (tests/machine/test_native.py) run once more in guest mode.
"""

from functools import partial

import pytest

from tests.machine import test_native
from tests.machine.flat import ENTRY, FINISH, assemble, finish, flat_vm, pack, quads, words
from tests.machine.small_kernel import DIRECTORY, IDENTITY, LOG, STACK, TO_USER, USER, USER_STACK, small_kernel
from tests.machine.test_errata import kicked
from tests.machine.test_native import (  # noqa: F401
    test_a_call_gate_to_the_kernel,
    test_a_call_gate_without_a_task_register,
    test_a_table_of_gates_in_memory_is_found_by_lidt,
    test_an_interrupt_comes_behind_the_shadow_of_sti,
    test_an_interrupt_in_virtual_8086_mode_returns_there,
    test_breakpoints_in_debug_registers_do_no_harm,
    test_code_written_by_its_own_mapping,
    test_code_written_by_the_delivery_of_an_interrupt,
    test_code_written_through_an_alias_without_the_right_to_execute,
    test_memory_that_is_not_there_is_open_bus,
    test_no_interrupt_comes_behind_the_end,
    test_pages_that_are_used_for_one_program_after_the_other,
    test_port_access_by_the_permission_map,
    test_port_access_without_permission,
    test_real_mode,
    test_reserved_bits_of_page_directory_pointers,
    test_the_vmm_s_own_memory_is_out_of_reach,
    test_virtual_8086_mode_traps,
    test_what_the_virtual_cpu_has_not_is_a_general_protection_fault,
)
from vmm.backends.hw import Hardware, HwOptions
from vmm.backends.hw.vmcs import EntryFailed, Field, Reason
from vmm.backends.native import NativeOptions
from vmm.exits import End
from vmm.vm import Vm

_OF_NATIVE = [name for name in dir() if name.startswith("test_") and name != "test_native"]


@pytest.fixture(autouse=True, params=("nested", "shadow"))
def mmu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The bare machine's tests get guest mode in its place, once with each kind of memory."""
    kind = str(request.param)
    monkeypatch.setattr(test_native, "NativeOptions", partial(HwOptions, mmu=kind))
    return kind


def run(parts: dict[int, bytes] | dict[int, str], exit_on: frozenset[tuple[str, int]] = frozenset(), memory_mib: int = 4) -> Vm:
    """The VM after its guest reported 0."""
    vm = flat_vm(parts, memory_mib=memory_mib, options=HwOptions(mmu="nested", exit_on=exit_on))
    assert finish(vm) == 0
    return vm


def test_the_bare_machines_tests_run_in_guest_mode() -> None:
    """The tests taken over run under hw: the options that they make are."""
    assert test_native.NativeOptions().backend == "hw"
    assert len(_OF_NATIVE) > 15


def test_a_task_switch_by_a_far_jump(mmu: str) -> None:
    """As on the bare machine under nested paging; under shadow paging it is the end of the run, with a reason."""
    if mmu == "nested":
        test_native.test_a_task_switch_by_a_far_jump()
    else:
        with pytest.raises(AssertionError, match="a hardware task switch under shadow paging: use --mmu nested"):
            test_native.test_a_task_switch_by_a_far_jump()


# -- exits ---------------------------------------------------------------------------------------------------------------------------

_ALL = (
    "mov eax,cr3; mov cr3,eax; mov eax,cr0; mov cr0,eax; mov eax,cr4; mov cr4,eax; invlpg [0x1000]; rdtsc; wbinvd; mov eax,dr0; mov dr0,eax;"
    f"sgdt [{LOG}]; mov ecx,0x1b; rdmsr; xor eax,eax; cpuid; in al,0x64; {FINISH}"
)
_COUNTED = {
    "cr0": ("control register", 2), "cr3": ("control register", 2), "cr4": ("control register", 2), "invlpg": ("invlpg", 1),
    "rdtsc": ("rdtsc", 1), "wbinvd": ("wbinvd", 1), "dr": ("mov dr", 2), "descriptor": ("gdtr idtr", 1),
    "msr:0x1b": ("msr 0x1b", 1), "io:0x64": ("port 0x64", 1), "cpuid": ("cpuid", 1),
}  # fmt: skip


@pytest.mark.parametrize("wanted", _COUNTED)
def test_an_exit_that_was_asked_for(wanted: str) -> None:
    """Each exit alone is taken as often as its instruction runs; without being asked for it is not, and the guest ends alike."""
    name, _, number = wanted.partition(":")
    reason, count = _COUNTED[wanted]
    asked = run({ENTRY: _ALL}, frozenset(((name, int(number or "0", 0)),))).stats.architectural
    plain = run({ENTRY: _ALL}).stats.architectural
    assert asked[reason] == count
    assert plain[reason] == (1 if wanted == "cpuid" else 0)
    assert set(plain) == {"nested page fault", "port", "rdmsr", "cpuid"}


def test_an_exception_that_was_asked_for_goes_on_to_the_guest() -> None:
    """A page fault and a #UD exit by the exception bitmap, with the VMCS saying which, and the guest's handlers see them as ever."""
    over = f"mov eax,cr2; mov [{LOG}],eax; add esp,4; add dword ptr [esp],2; .byte 0xcf"
    parts = small_kernel("mov eax,0x3f0008; mov eax,[eax]; ud2", handlers={14: over, 6: f"{FINISH}; l: jmp l"})
    vm = run(parts, frozenset((("exception", 14), ("exception", 6))))
    assert words(vm, LOG, 1) == [0x3F0008]
    assert vm.stats.architectural["exception"] == 2
    assert not vm.stats.engine["exception 14"]
    backend = vm.backend
    assert isinstance(backend, Hardware)
    assert backend.vmcs[Field.EXIT_INTERRUPTION_INFO] == 1 << 31 | 3 << 8 | 6


def test_an_exits_reason_and_qualification_are_the_manuals() -> None:
    """The last port access: reason 30, OUT of one byte to F4h."""
    backend = run({ENTRY: FINISH}).backend
    assert isinstance(backend, Hardware)
    assert backend.vmcs[Field.EXIT_REASON] == Reason.IO == 30
    assert backend.vmcs[Field.EXIT_QUALIFICATION] == 0xF4 << 16


def test_an_invalid_guest_state_is_reported() -> None:
    """A start that no CPU can be in fails VM entry by the manual's check."""
    vm = flat_vm({ENTRY: FINISH}, options=HwOptions(mmu="nested"))
    backend = vm.backend
    assert isinstance(backend, Hardware)
    assert vm.start is not None
    backend.vmcs[Field.GUEST_INTERRUPTIBILITY_STATE] = 4
    with pytest.raises(EntryFailed, match=r"27\.3\.1\.5: reserved bits must be 0: GUEST_INTERRUPTIBILITY_STATE is 0x4"):
        backend.start(vm.start)


def test_an_interrupt_that_the_cpu_cannot_deliver() -> None:
    """Its gate is not there: a #GP with the gate's number, external and in the IDT, at the instruction that was interrupted."""
    map_lapic = f"mov dword ptr [{IDENTITY + 0xF80}],0xfee0001b; mov eax,cr3; mov cr3,eax"
    log = f"pop dword ptr [{LOG}]; mov eax,[esp]; mov [{LOG + 4}],eax; {FINISH}; l: jmp l"
    body = f"{map_lapic}; mov dword ptr [0x3e0300],0x40081; sti; nop; m: jmp m"
    vm = run(small_kernel(body, handlers={13: log}))
    error, eip = words(vm, LOG, 2)
    assert error == 0x81 << 3 | 3
    assert vm.linear.read(eip, 2) == b"\xeb\xfe"
    assert vm.stats.injected[0x81] == vm.stats.injected[13] == 1


def test_an_interrupt_that_kills_the_guest(mmu: str) -> None:
    """No gate for it, nor for what comes of that: a triple fault ends the run, though the interrupt controllers still ask and IF is set."""
    map_lapic = f"mov dword ptr [{IDENTITY + 0xF80}],0xfee0001b; mov eax,cr3; mov cr3,eax"
    body = f"{map_lapic}; mov dword ptr [0x3e0300],0x40081; mov dword ptr [0x3e0300],0x40091; sti; m: jmp m"
    vm = flat_vm(small_kernel(body), options=HwOptions(mmu=mmu))
    stop = vm.run(10)
    assert (stop.why, stop.reason.split(":")[0]) == (End.DIED, "triple fault")


_SYSTEM_CALL = "push ecx; push edx; push ebp; mov ebp,esp; sysenter; int 0x80"
_USER = f"""
    mov esp,{USER_STACK}; mov esi,4000; again: mov ecx,0x1111; mov edx,0x2222; mov ebp,0x3333; mov eax,7; call enter
    cmp ebp,0x3333; jne bad; cmp ecx,0x1111; jne bad; cmp edx,0x2222; jne bad; cmp eax,8; jne bad; dec esi; jnz again; int 0x81
    bad: int 0x82; enter: {_SYSTEM_CALL}
"""


@pytest.mark.parametrize("options", (HwOptions(), NativeOptions()), ids=("hw", "native"))
def test_15_no_sysenter_goes_astray_under_stops(options: HwOptions | NativeOptions) -> None:
    """Erratum 15: four thousand system calls by SYSENTER, as a C library makes them, while a thread asks for stops: each returns to its place."""
    landing = USER + len(assemble("mov eax,0x23; mov ds,eax; mov es,eax;" + _USER, USER))
    kernel = f"inc eax; mov ecx,ebp; mov ebp,[ebp]; mov edx,{landing}; sti; sysexit"
    registers = f"mov eax,8; mov ecx,0x174; wrmsr; mov eax,{STACK - 0x1000}; inc ecx; wrmsr; mov eax,0x150000; inc ecx; wrmsr"
    handlers = {0x80: "inc eax; .byte 0xcf", 0x81: FINISH, 0x82: "mov al,1; out 0xf4,al"}
    parts = small_kernel(f"xor edx,edx; {registers}; {TO_USER}", user=f"{_USER}; pop ebp; pop edx; pop ecx; ret", handlers=handlers)
    vm = flat_vm({**parts, 0x150000: assemble(kernel, 0x150000)}, options=options)
    with kicked(vm.machine):
        assert finish(vm) == 0


# -- nested paging -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "directory",
    (0xFEE00000, 0xFFFFF000, 0x10000000, 0x7FFFF000, ENTRY, 0x400000 - 0x1000, DIRECTORY),
    ids=("local apic", "end of 4 GiB", "no memory", "nobody", "code", "end of RAM", "itself"),
)
@pytest.mark.parametrize("cr4", (0, 0x10, 0x20), ids=("32-bit", "pse", "pae"))
def test_4_page_tables_anywhere_do_no_harm(directory: int, cr4: int) -> None:
    """Erratum 4: whatever a guest uses as page tables, it is the guest that dies (or runs on); nested entries are never NX."""
    source = f"mov eax,{cr4}; mov cr4,eax; mov eax,{directory}; mov cr3,eax; mov eax,cr0; or eax,0x80000000; mov cr0,eax; l: jmp l"
    vm = flat_vm({**small_kernel(source), IDENTITY: pack([DIRECTORY | 3] * 1024)}, options=HwOptions(mmu="nested"))
    assert vm.run(0.2).why in (End.DIED, End.TIMEOUT)
    backend = vm.backend
    assert isinstance(backend, Hardware)
    top = backend.nested.root >> 3
    tables = [entry for entry in vm.machine.quads[top : top + 512] if entry]
    while tables:
        assert not any(entry >> 63 for entry in tables)
        below = [entry for entry in tables if not entry & 0x80 and entry < 1 << 39]
        tables = [
            entry
            for table in below
            if (table & 0xFFFFFFFFFF000) >> 12 in backend.nested.frames
            for entry in vm.machine.quads[(table & 0xFFFFFFFFFF000) >> 3 : ((table & 0xFFFFFFFFFF000) >> 3) + 512]
            if entry
        ]


def test_written_pages_are_told_from_others() -> None:
    """Between two rounds of watching, exactly the pages that were written are found; a page that was read only is not."""
    source = f"mov [0x200000],eax; mov eax,[0x201000]; mov [0x202000],eax; mov [0x300000],eax; {FINISH}; l: jmp l"
    vm = flat_vm({ENTRY: source}, options=HwOptions(mmu="nested"))
    backend = vm.backend
    assert isinstance(backend, Hardware)
    assert backend.nested.watch_writes() == set()
    assert finish(vm) == 0
    assert backend.nested.watch_writes() == {0x200, 0x202, 0x300}


@pytest.mark.parametrize("writes_too", (False, True))
def test_accessed_pages_are_told_from_others(writes_too: bool) -> None:
    """Code, what was read, what was written and page tables that were walked; watching writes at the same time tells those apart."""
    tables = {0x320000: pack([0x321003, 0x322003]), 0x321000: pack(gfn << 12 | 3 for gfn in range(0x400)), 0x322000: pack([0x200003])}
    on = "mov eax,0x320000; mov cr3,eax; mov eax,cr0; bts eax,31; mov cr0,eax"
    source = f"{on}; mov eax,[0x201000]; mov [0x203000],eax; mov eax,[0x400000]; rep movsb; mov [0x205000],eax; push eax; {FINISH}; l: jmp l"
    vm = flat_vm({ENTRY: f"mov esp,0x30a000; xor ecx,ecx; {source}", **tables}, options=HwOptions(mmu="nested"))
    backend = vm.backend
    assert isinstance(backend, Hardware)
    assert backend.nested.watch_accesses() == set()
    if writes_too:
        assert backend.nested.watch_writes() == set()
    assert finish(vm) == 0
    walked = {0x320, 0x321, 0x322}
    if writes_too:
        written = backend.nested.watch_writes()
        assert {0x203, 0x205, 0x309} <= written <= {0x203, 0x205, 0x309} | walked
    assert backend.nested.watch_accesses() == {ENTRY >> 12, 0x200, 0x201, 0x203, 0x205, 0x309} | walked
    backend.nested.end_watches()
    assert backend.nested.touched is None is backend.nested.dirty


def test_a_device_page_that_is_polled_is_lent_until_it_is_written() -> None:
    """Two thousand reads of the local APIC's task priority around a write of it: the reads see the write, and few of them exit."""
    map_lapic = f"mov dword ptr [{IDENTITY + 0xF80}],0xfee0001b; mov eax,cr3; mov cr3,eax"
    poll = "mov ecx,1000; {0}: mov eax,[0x3e0080]; add ebx,eax; dec ecx; jnz {0}"
    source = f"xor ebx,ebx; {map_lapic}; {poll.format('a')}; mov dword ptr [0x3e0080],0x10; {poll.format('b')}; mov [{LOG}],ebx; {FINISH}"
    vm = run(small_kernel(source))
    assert words(vm, LOG, 1) == [1000 * 0x10]
    assert 100 < vm.stats.architectural["device memory"] < 200


def test_code_that_is_written_and_run_in_turn_becomes_mixed() -> None:
    """Under PAE with NX on, a loop that rewrites an instruction of its own page: right each time, and it goes on."""
    tables = {0x320000: quads([0x321001, 0, 0, 0]), 0x321000: quads([0x83, 0x200083])}
    on = "mov eax,0x20; mov cr4,eax; mov eax,0x320000; mov cr3,eax; mov ecx,0xc0000080; mov eax,0x800; xor edx,edx; wrmsr"
    on += "; mov eax,cr0; bts eax,31; mov cr0,eax"
    loop = f"mov esi,200; xor ebx,ebx; .byte 0xbf; .long m+1; l: mov [edi],esi; m: mov eax,0; add ebx,eax; dec esi; jnz l; mov [{LOG}],ebx; {FINISH}"
    vm = run({ENTRY: f"{on}; {loop}", **tables})
    assert words(vm, LOG, 1) == [200 * 201 // 2]
    backend = vm.backend
    assert isinstance(backend, Hardware)
    assert backend.coherence.mixed.keys() == {ENTRY >> 12}


def test_a_guest_that_touches_addresses_all_over_the_place() -> None:
    """Under PAE a guest reaches 64 GiB: there are not tables enough for every region at once, and nothing comes of it."""
    tables = {0x320000: quads([0x321001, 0, 0, 0]), 0x321000: quads([0x83, 0x200083, 0x322003]), 0x322000: quads([0])}
    source = (
        "mov eax,0x20; mov cr4,eax; mov eax,0x320000; mov cr3,eax; mov eax,cr0; or eax,0x80000000; mov cr0,eax;"
        "mov ecx,2; l: mov eax,ecx; shl eax,21; or eax,3; mov [0x322000],eax; mov eax,ecx; shr eax,11; mov [0x322004],eax;"
        f"invlpg [0x400000]; mov eax,[0x400000]; inc ecx; cmp ecx,0x4000; jb l; {FINISH}"
    )
    vm = run({ENTRY: source, **tables})
    assert vm.stats.architectural["nested page fault"] > 0x3000


def test_user_mode_system_calls_and_interrupts_off() -> None:
    """A guest's own system call is an engine assist, and no exit of the architecture."""
    vm = run(small_kernel(TO_USER, user="int 0x80", handlers={0x80: FINISH}))
    assert vm.stats.engine == {"int": 1, "control register": 1, "ldtr tr": 1}


def test_an_instruction_that_exits_again_and_again_is_looked_at_anew_when_it_changed() -> None:
    """CPUID of two bytes and of three at one address: rewritten in place, on another page that a table entry leads to, in other tables."""
    site, other, directory = 0x180000, 0x1A0000, 0x304000
    twice = f"mov edi,2; again%d: mov ecx,{site}; xor eax,eax; call ecx; dec edi; jnz again%d"
    source = "xor esi,esi; " + "; ".join(
        (
            twice % (0, 0),
            f"mov dword ptr [{site}],0xc3a20ff3",  # rep cpuid; ret
            twice % (1, 1),
            f"mov eax,{other | 3}; mov [{IDENTITY + 4 * (site >> 12)}],eax; invlpg [{site}]",
            twice % (2, 2),
            f"mov eax,{directory}; mov cr3,eax",
            twice % (3, 3),
            f"mov [{LOG}],esi",
            FINISH,
        )
    )
    parts = small_kernel(source) | {site: b"\x0f\xa2\x46\xc3", other: b"\x0f\xa2\x46\xc3"}  # cpuid; inc esi; ret
    identity = bytearray(parts[IDENTITY])
    parts[directory] = pack([0x305000 | 3])
    parts[0x305000] = bytes(identity[: 4 * (site >> 12)]) + pack([0x1B0000 | 3]) + bytes(identity[4 * (site >> 12) + 4 :])
    parts[0x1B0000] = b"\xf3\x0f\xa2\xc3"
    vm = run(parts)
    assert words(vm, LOG, 1) == [4]
    assert vm.stats.architectural["cpuid"] == 8


_A20_SEEN = (0x11, 0x33, 0x55, 0x22, 0x44)


def test_the_a20_gate() -> None:
    """While it is closed, by port 92h or the 8042, every odd MiB is the even one below it, for devices and code too; then it is what it was."""
    wrap = f"""
        mov byte ptr [0x500],0x11; mov byte ptr [0x100500],0x22; mov byte ptr [0x300500],0x44
        in al,0x92; and al,0xfd; out 0x92,al
        mov al,[0x100500]; mov [{LOG}],al
        mov byte ptr [0x300500],0x33; mov al,[0x200500]; mov [{LOG + 1}],al
        mov al,0xd1; out 0x64,al; mov al,0xdf; out 0x60,al
        mov al,0xd1; out 0x64,al; mov al,0xdd; out 0x60,al
        mov byte ptr [0x30600],0x55; mov al,[0x130600]; mov [{LOG + 2}],al
        mov eax,0x120800; call eax
        mov eax,[0xfee00030]; mov ebx,[0xfef00030]; cmp eax,ebx; jne bad
        mov al,0xd1; out 0x64,al; mov al,0xdf; out 0x60,al
        mov al,[0x100500]; mov [{LOG + 3}],al; mov al,[0x300500]; mov [{LOG + 4}],al
        {FINISH}; l: jmp l; bad: mov al,1; out 0xf4,al
    """
    parts = {ENTRY: "mov esp,0x8000; mov eax,0x20000; jmp eax", 0x20000: wrap, 0x20800: "ret", 0x120800: "mov al,2; out 0xf4,al"}
    vm = flat_vm(parts, options=HwOptions())
    assert finish(vm) == 0
    assert tuple(vm.memory.read(LOG, 5)) == _A20_SEEN
