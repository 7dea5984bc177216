"""The errata once more, on whole VMs: small guests that would go wrong on the CPU as it is."""

import os
import signal
import threading

import pytest

from guest_kernels import kernels
from tests.machine.flat import ENTRY, FINISH, MEMORY_MIB, assemble, finish, flat_vm, words
from tests.machine.small_kernel import ABSENT, ALIAS, IDENTITY, LOG, TO_USER, USER, USER_PAGES, small_kernel
from vmm.cpu_state import Cpu
from vmm.emulate import port_access
from vmm.exits import End
from vmm.machine import FRAME, Machine
from vmm.memory import MIXED
from vmm.mmu.host import NX
from vmm.vm import Vm, machine_for
from vmm.x86.bits import Pte

RINGS = pytest.mark.parametrize("ring", (1, 3))
MODES = pytest.mark.parametrize("translate_user", (False, True), ids=("direct", "translate"))
FRAME_BITS = 0x000FFFFFFFFFF000
_LOG_FAULT = f"push eax; push edi; mov edi,[{LOG}]; mov eax,[esp+8]; mov [edi],eax; mov eax,[esp+12]; mov [edi+4],eax; mov eax,cr2; mov [edi+8],eax"
_NEXT = f"add edi,12; mov [{LOG}],edi; pop edi; pop eax"
_MAP = f"push eax; mov eax,cr2; shr eax,10; and al,0xfc; or dword ptr [eax+{IDENTITY}],1; pop eax; add esp,4; .byte 0xcf"


def leaf_entries(vm: Vm) -> list[int]:
    """Every present lowest-level entry below 4 GiB under all roots: what the guest's code can reach."""
    quads, found = vm.machine.quads, []

    def present(entry: int) -> list[int]:
        start = (entry & FRAME_BITS) >> 3
        return [quads[at] for at in range(start, start + 512) if quads[at] & Pte.P]

    for root in vm.mmu.roots.values():
        for pointer in present(quads[root.cr3 >> 3]):
            for directory in present(pointer):
                found += present(directory)
    return found


def assert_w_xor_x(vm: Vm) -> None:
    """No frame is writable by one mapping and executable by any, but those of the state MIXED."""
    entries = leaf_entries(vm)
    writable = {entry & FRAME_BITS for entry in entries if entry & Pte.W}
    executable = {entry & FRAME_BITS for entry in entries if not entry & NX}
    mixed = {vm.memory.frames[gfn] << 12 for gfn in range(vm.memory.count) if vm.memory.state[gfn] & MIXED}
    assert not (writable & executable) - mixed
    assert executable, "nothing was executable: nothing was tested"


@RINGS
def test_1_faults_one_after_the_other(ring: int) -> None:
    """Three page faults of a guest's kernel arrive as #PF, each with its address and error code; the handler maps the page."""
    handler = f"{_LOG_FAULT}; {_NEXT}; {_MAP}"
    code = f"mov dword ptr [{LOG}],{LOG + 16}; mov ebx,{ABSENT}; mov [ebx],eax; mov ecx,[ebx+0x1000]; mov [ebx+0x2000],eax; {FINISH}"
    parts = small_kernel(code, handlers={14: handler})
    vm = flat_vm(parts, ring=ring)
    assert finish(vm) == 0
    assert words(vm, LOG, 1) == [LOG + 16 + 36]
    got = words(vm, LOG + 16, 9)
    assert (got[0::3], got[2::3]) == ([2, 0, 2], [ABSENT, ABSENT + 0x1000, ABSENT + 0x2000])
    assert got[4] - got[1] == 2


@MODES
@RINGS
def test_2_int_then_fault(ring: int, translate_user: bool) -> None:
    """INT n out of user mode, then a fault there: each return address is its own instruction's."""
    note = f"push eax; push edi; mov edi,[{LOG}]; mov eax,[esp+{{}}]; mov [edi],eax; add edi,4; mov [{LOG}],edi; pop edi; pop eax"
    handlers = {0x80: note.format(8) + "; .byte 0xcf", 0: note.format(8) + "; add dword ptr [esp],2; .byte 0xcf", 13: FINISH}
    start = f"mov dword ptr [{LOG}],{LOG + 4}; {TO_USER}"
    guest = small_kernel(start, user="xor ecx,ecx; int 0x80; div ecx; int 0x80; div ecx; hlt", handlers=handlers)
    vm = flat_vm(guest, ring=ring, translate_user=translate_user)
    assert finish(vm) == 0
    first = words(vm, LOG + 4, 1)[0]
    assert words(vm, LOG, 5) == [LOG + 20, first, first, first + 4, first + 4]


_REWRITE = """
    mov ebx,{code}; mov edi,{alias}; mov byte ptr [ebx],0xb8; mov byte ptr [ebx+5],0xc3; mov esi,{times}
    l: mov [edi+1],esi; call ebx; cmp eax,esi; jne wrong; dec esi; jnz l; mov al,0; jmp end
    wrong: mov al,1
    end: int 0x80
"""


@MODES
@RINGS
@pytest.mark.parametrize(("code", "alias"), ((USER + 0x4000, ALIAS + 0x4000), (USER + 0x4000, USER + 0x4000), (ALIAS + 0x4000, USER + 0x4000)))
def test_6_and_14_rewritten_user_code_runs_anew(code: int, alias: int, ring: int, translate_user: bool) -> None:
    """User code that the user writes through this or another mapping 2,000 times is the new code each time it runs."""
    user = _REWRITE.format(code=code, alias=alias, times=2000)
    vm = flat_vm(small_kernel(TO_USER, user=user, handlers={0x80: "out 0xf4,al"}), ring=ring, translate_user=translate_user)
    assert finish(vm) == 0
    assert_w_xor_x(vm)


@MODES
@RINGS
def test_6_user_code_rewritten_by_the_kernel_runs_anew(ring: int, translate_user: bool) -> None:
    """The kernel writes 2,000 times through its own mapping what the user then runs."""
    page = USER_PAGES + 0x4000
    kernel = f"push edi; mov edi,{page}; mov [edi+1],esi; pop edi; .byte 0xcf"
    user = _REWRITE.format(code=USER + 0x4000, alias=USER + 0x5000, times=2000).replace("call ebx", "int 0x81; call ebx")
    vm = flat_vm(small_kernel(TO_USER, user=user, handlers={0x80: "out 0xf4,al", 0x81: kernel}), ring=ring, translate_user=translate_user)
    assert finish(vm) == 0
    assert_w_xor_x(vm)


@RINGS
@pytest.mark.parametrize("alias", (USER_PAGES + 0x4000, ALIAS + 0x4000))
def test_6_rewritten_kernel_code_runs_anew(alias: int, ring: int) -> None:
    """The kernel's own code, written through this or another mapping 200 times: each costs a translation."""
    code = _REWRITE.format(code=USER_PAGES + 0x4000, alias=alias, times=200).replace("int 0x80", "out 0xf4,al")
    vm = flat_vm(small_kernel(code), ring=ring)
    assert finish(vm) == 0
    assert_w_xor_x(vm)


@MODES
@RINGS
def test_5_no_page_is_writable_and_executable(ring: int, translate_user: bool) -> None:
    """After user code, kernel code and data on the same pages, W and X exclude each other over all mappings, the window's included."""
    kernel = f"mov byte ptr [{USER_PAGES + 0x5000}],0xc3; mov eax,{USER_PAGES + 0x5000}; call eax; {TO_USER}"
    user = f"mov byte ptr [{ALIAS + 0x4000}],0xc3; mov eax,{USER + 0x4000}; call eax; mov [{USER + 0x4008}],eax; call eax; int 0x80"
    vm = flat_vm(small_kernel(kernel, user=user, handlers={0x80: FINISH}), ring=ring, translate_user=translate_user)
    finish(vm)
    assert_w_xor_x(vm)


@RINGS
def test_8_a_guest_may_run_at_address_0(ring: int) -> None:
    """Paging off, code at 0: a jump there is a jump like any other, again and again."""
    code = "mov esp,0x80000; mov esi,3; l: xor ebx,ebx; call ebx; dec esi; jnz l; mov al,0; cmp eax,0x100; out 0xf4,al"
    vm = flat_vm({ENTRY: code, 0: "nop; ret"}, ring=ring)
    assert finish(vm) == 0


def test_9_ctrl_c_comes_out_of_run() -> None:
    """A signal while the guest runs surfaces as KeyboardInterrupt."""
    vm = flat_vm({ENTRY: "l: in al,0x80; jmp l"})
    count = 0
    port = vm.machine.on_port

    def interrupted(number: int, size: int, value: int | None) -> int:
        nonlocal count
        count += 1
        if count == 100:
            os.kill(os.getpid(), signal.SIGINT)
        return port(number, size, value)

    vm.machine.on_port = interrupted
    with pytest.raises(KeyboardInterrupt):
        vm.run(10)


def test_9_ctrl_c_in_a_guest_without_exits() -> None:
    """The same while no handler is ever called: the ticker gives the signal its chance."""
    vm = flat_vm({ENTRY: "l: jmp l"})
    alarm = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    alarm.start()
    with pytest.raises(KeyboardInterrupt):
        vm.run(10)
    alarm.join()


def test_11_ltr_never_reaches_the_cpu() -> None:
    """A guest's busy TSS stands in its own GDT alone: the physical TR is never of that type."""
    vm = flat_vm(small_kernel(f"str eax; mov [{LOG}],eax; {FINISH}"))
    assert finish(vm) == 0
    assert words(vm, LOG, 1)[0] & 0xFFFF == 0x28
    assert vm.machine.state[Cpu.TR + Cpu.ATTRIBUTES] & 0xF00 != 0xB00


@MODES
@RINGS
@pytest.mark.parametrize(
    ("access", "left"),
    [(access, 0x55555555) for access in ("in al,0x71", "in eax,0x71", "out 0xf4,al", "out dx,eax", "in ax,dx", ".byte 0x6e", ".byte 0xf3,0x6f")]
    + [(".byte 0x6c", 0x55555500), (".byte 0xf3,0x6d", 0)],
)
def test_12_user_port_access_is_a_general_protection_fault(access: str, left: int, ring: int, translate_user: bool) -> None:
    """#GP(0) at the instruction, no register changed, and no device asked. Memory: but for INS's first element, which this CPU zeroes first."""
    handler = f"""
        mov [{LOG}],eax; mov [{LOG + 4}],ecx; mov [{LOG + 8}],edi; mov [{LOG + 12}],esi; mov eax,[esp]; mov [{LOG + 16}],eax
        mov eax,[esp+4]; mov [{LOG + 20}],eax; mov eax,[{USER + 0x5000}]; mov [{LOG + 24}],eax; {FINISH}
    """
    user = f"""
        mov eax,0x12345678; mov edx,0x71; mov ecx,3; mov edi,{USER + 0x5000}; mov esi,{USER + 0x5100}; mov dword ptr [edi],0x55555555
        {access}; mov eax,1; mov dword ptr [edi],0x66666666; l: jmp l
    """
    vm = flat_vm(small_kernel(TO_USER, user=user, handlers={13: handler}), ring=ring, translate_user=translate_user)
    asked: list[int] = []
    bus_port = vm.board.bus.port

    def port(number: int, size: int, value: int | None) -> int:
        asked.append(number)
        return bus_port(number, size, value)

    object.__setattr__(vm.board.bus, "port", port)
    assert finish(vm) == 0
    eip = words(vm, LOG + 20, 1)[0]
    assert vm.memory.read(USER_PAGES + eip - USER, 4).startswith(assemble(access))
    assert words(vm, LOG, 7) == [0x12345678, 3, USER + 0x5000, USER + 0x5100, 0, eip, 0x55555555 if translate_user else left]
    assert asked == [0x21, 0xF4], "only the kernel's own accesses"


@RINGS
def test_13_memory_that_is_not_there_is_open_bus(ring: int) -> None:
    """Reads beyond RAM give all ones, writes do nothing; the run goes on."""
    beyond = (MEMORY_MIB << 20) + 0x5000
    code = f"""
        mov ebx,{beyond}; mov eax,[ebx]; mov [{LOG}],eax; mov dword ptr [ebx],5; movzx eax,byte ptr [ebx+1]; mov [{LOG + 4}],eax
        mov eax,[0xfffffffc]; mov [{LOG + 8}],eax; add dword ptr [ebx],1; mov ax,[ebx+2]; mov [{LOG + 12}],eax; push dword ptr [ebx]; pop eax
        mov [{LOG + 16}],eax; {FINISH}
    """
    vm = flat_vm({ENTRY: "mov esp,0x80000;" + code}, ring=ring)
    assert finish(vm) == 0
    assert words(vm, LOG, 5) == [0xFFFFFFFF, 0xFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF]


@RINGS
def test_13_code_that_is_not_there_ends_the_run(ring: int) -> None:
    """A jump out of RAM is a clean stop that names the address."""
    vm = flat_vm({ENTRY: f"mov eax,{MEMORY_MIB << 20:#x}; jmp eax"}, ring=ring)
    stop = vm.run(10)
    assert stop.why is End.DIED and f"{MEMORY_MIB << 20:#x}" in stop.reason


@RINGS
def test_13_a_page_table_that_is_not_there_reads_ones(ring: int) -> None:
    """CR3 beyond RAM: what the walk reads is open bus, and whatever follows ends with a reason."""
    vm = flat_vm(small_kernel(f"mov eax,{MEMORY_MIB << 20:#x}; mov cr3,eax; nop; {FINISH}"), ring=ring)
    stop = vm.run(10)
    assert stop.why in (End.DIED, End.REPORTED) and stop.reason


def test_17_a_port_storm_with_if_clear_does_not_stop_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer interrupt waits, IF is 0, and 20,000 port accesses cost no more entries into the engine than the ticker's; STI takes it."""
    entries = 0
    run = Machine.run

    def counted(self: Machine) -> None:
        nonlocal entries
        entries += 1
        run(self)

    monkeypatch.setattr(Machine, "run", counted)
    pic = "mov al,0x11; out 0x20,al; mov al,0x90; out 0x21,al; mov al,4; out 0x21,al; mov al,1; out 0x21,al; mov al,0xfe; out 0x21,al"
    pit = "mov al,0x34; out 0x43,al; mov al,0x40; out 0x40,al; mov al,2; out 0x40,al"
    storm = f"mov ecx,20000; l: in al,0x61; loop l; mov dword ptr [{LOG}],1; sti; w: jmp w"
    done = f"mov eax,[{LOG}]; dec eax; out 0xf4,al"
    vm = flat_vm(small_kernel(f"cli; {pic}; {pit}; {storm}", handlers={0x90: done}))
    assert finish(vm) == 0
    assert entries < 50 + 1000 * vm.stats.seconds


def test_frames_of_a_guest_lie_scattered() -> None:
    """Nothing may work because a guest-physical address is a host-physical one."""
    vm = flat_vm({ENTRY: FINISH})
    assert sum(gfn == hfn for gfn, hfn in enumerate(vm.memory.frames)) < 4
    assert FRAME * vm.memory.count == MEMORY_MIB << 20


def test_3_a_guest_is_pre_empted_without_precise_kicks_too() -> None:
    """The fall-back where the exit-check flag is not found: runs end after so many instructions, and the timer gets its turn."""
    guest = kernels()["rings"]
    machine = machine_for(guest.memory_mib)
    machine.precise_kicks = False
    vm = Vm(machine, memory_mib=guest.memory_mib)
    vm.load(str(guest.file))
    assert finish(vm, 60) == 0


@MODES
@RINGS
def test_12_an_interrupt_while_a_port_access_is_aborted(ring: int, translate_user: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer's line rises inside each of 500 aborted accesses: each still is one #GP, with the flags before it, and each interrupt arrives."""
    pic = "mov al,0x11; out 0x20,al; mov al,0x90; out 0x21,al; mov al,4; out 0x21,al; mov al,1; out 0x21,al; mov al,0xfe; out 0x21,al"
    user = "mov ecx,500; l: xor eax,eax; cmp eax,1; in al,0x71; jnc w; jns w; dec ecx; jnz l; int 0x80; w: ud2"
    handlers = {
        6: "mov al,1; out 0xf4,al",
        13: f"inc dword ptr [{LOG}]; add esp,4; add dword ptr [esp],2; .byte 0xcf",
        0x80: f"mov [{LOG + 8}],ecx; {FINISH}",
        0x90: f"push eax; inc dword ptr [{LOG + 4}]; mov al,0x20; out 0x20,al; pop eax; .byte 0xcf",
        0x97: ".byte 0xcf",
    }
    vm = flat_vm(small_kernel(f"{pic}; {TO_USER}", user=user, handlers=handlers), ring=ring, translate_user=translate_user)
    where = port_access if translate_user else vm.backend.direct  # translated code has its port accesses emulated
    allowed, line = where.port_allowed, vm.board.interrupts.line(0)

    def port_allowed(*access: object) -> bool:
        answer: bool = allowed(*access)
        line(False)
        line(True)
        return answer

    monkeypatch.setattr(where, "port_allowed", port_allowed)
    assert finish(vm, 30) == 0
    faults, interrupts, left = words(vm, LOG, 3)
    assert (faults, left) == (500, 0)
    assert interrupts >= 500
