"""Long mode in guest mode: the switch there and back, delivery, system calls, MSRs, and pages. Each seen by a guest of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.assembly import assemble_long
from tests.machine.flat import ENTRY, FINISH, finish, flat_vm, quads
from tests.machine.long_kernel import (
    ALIAS,
    DIRECTORY,
    HIGH,
    IDENTITY,
    IST_STACK,
    KERNEL_CS,
    KERNEL_CS_32,
    LAPIC_PAGE,
    POINTERS,
    TO_USER,
    TOP,
    USER,
    USER_CS,
    USER_CS_32,
    USER_SS,
    USER_STACK,
    USER_TABLE,
    log,
    long_kernel,
    run_long,
)
from tests.machine.small_kernel import LOG, STACK, USER_PAGES, small_kernel
from tests.machine.small_kernel import TO_USER as SMALL_TO_USER
from tests.machine.test_errata import kicked
from tests.unit.boot.test_linux import bzimage
from tools.report import registers
from vmm.backends.hw import Hardware, HwOptions
from vmm.call_stack import backtrace
from vmm.exits import End, Exit, Sensitive, SoftwareInterrupt, Stop
from vmm.observation import observe
from vmm.vcpu import Vcpu
from vmm.vm import Vm, machine_for


class _Button:
    """A device that does something when it is written."""

    def __init__(self, pressed: Callable[[], None]) -> None:
        self.pressed = pressed

    def access(self, offset: int, size: int, value: int | None) -> int:
        if value is not None:
            self.pressed()
        return 0


_FRAME = f"mov rdi,{LOG}; mov ecx,6; mov rsi,rsp; l: lodsq; stosq; loop l; mov rax,cr2; stosq; mov [rdi],rsp; mov ax,ss; mov [rdi+8],rax; {FINISH}"
_REPORT_1 = "mov al,1; out 0xf4,al"


# -- modes ---------------------------------------------------------------------------------------------------------------------------


def test_there_and_back() -> None:
    """EFER.LMA follows CR0.PG; 64-bit registers keep their upper halves over 32-bit code; paging is left only out of compatibility mode."""
    back = f"""
        mov ecx,0xc0000080; rdmsr; mov [{LOG}],eax; mov r15,0x1122334455667788; mov rbx,r15
        push {KERNEL_CS_32}; lea rax,[rip+narrow]; push rax; .byte 0x48,0xcb
        narrow: .byte 0x0f,0x20,0xc0; .byte 0x25; .long 0x7fffffff; .byte 0x0f,0x22,0xc0
        .byte 0xb9; .long 0xc0000080; .byte 0x0f,0x32; .byte 0xa3; .long {LOG + 8}
        .byte 0x0d; .long 0; .byte 0x0f,0x20,0xc0; .byte 0x0d; .long 0x80000000; .byte 0x0f,0x22,0xc0
        .byte 0x0f,0x32; .byte 0xea; .long again; .short {KERNEL_CS}
        again: mov [{LOG + 16}],rbx; mov [{LOG + 24}],r15; .byte 0x0f,0x32; mov [{LOG + 32}],eax; {FINISH}
    """
    before, between, rbx, r15, after = log(run_long(long_kernel(back)), 5)
    assert (before, between, after) == (0xD01, 0x901, 0xD01)
    assert rbx == r15 == 0x1122334455667788


@pytest.mark.parametrize(
    ("act", "size"),
    (
        ("mov rax,cr4; and eax,~0x20; mov cr4,rax", 3),
        ("mov rax,cr0; and eax,0x7fffffff; mov cr0,rax", 3),
        ("mov rax,0x180010033; mov cr0,rax", 3),
        ("mov rax,cr4; bts rax,40; mov cr4,rax", 3),
        ("mov ecx,0xc0000080; mov eax,0x801; xor edx,edx; wrmsr", 2),
        ("mov ecx,0xc0000100; xor eax,eax; mov edx,0x8000; wrmsr", 2),
        ("mov ecx,0xc0000102; xor eax,eax; mov edx,0x10000; wrmsr", 2),
        ("mov ecx,0xc0000082; xor eax,eax; mov edx,0xffff0000; wrmsr", 2),
        ("mov ecx,0x176; xor eax,eax; mov edx,0x8000; wrmsr", 2),
        ("mov ecx,0xc0000103; rdmsr", 2),
        ("mov eax,0x10; mov cr8,rax", 4),
        ("mov rax,0x100000000; mov dr7,rax", 3),
        ("mov rax,0x800000000000; mov rax,[rax]", 3),
        ("mov rax,0x4000000000000000; mov [rax],eax", 2),
    ),
    ids=(
        "pae off", "paging off", "cr0 upper half", "cr4 upper half", "lme off", "fs base", "kernel gs base", "lstar", "sysenter eip", "tsc_aux",
        "cr8", "dr7 upper half", "read", "write",
    ),
)  # fmt: skip
def test_what_long_mode_refuses(act: str, size: int) -> None:
    """Reserved bits, addresses that are not canonical, and ways out of long mode that there are not: #GP(0) at the instruction."""
    handlers = {13: f"pop qword ptr [{LOG}]; mov rax,[rsp]; mov [{LOG + 8}],rax; {FINISH}; l: jmp l"}
    parts = long_kernel(act, handlers=handlers, stacks={13: 1})
    error, rip = log(run_long(parts), 2)
    assert error == 0
    assert rip + size == ENTRY + len(parts[ENTRY])


def test_cpuid_names_what_there_is() -> None:
    """LM, SYSCALL, NX, 1-GiB pages, LAHF in 64-bit code and CMPXCHG16B, and each of the last two runs; none of it under shadow paging."""
    ask = f"mov eax,0x80000001; cpuid; mov [{LOG}],edx; mov [{LOG + 8}],ecx; mov eax,1; cpuid; mov [{LOG + 16}],ecx"
    use = f"xor eax,eax; lahf; mov rsi,{LOG + 0x40}; xor eax,eax; xor edx,edx; mov rbx,7; mov rcx,8; lock cmpxchg16b [rsi]"
    vm = run_long(long_kernel(f"{ask}; {use}; {FINISH}"))
    edx, ecx, basic = log(vm, 3)
    assert edx == 1 << 29 | 1 << 26 | 1 << 20 | 1 << 11
    assert (ecx, basic >> 13 & 1) == (1, 1)
    assert log(vm, 10)[8:] == [7, 8]
    shadowed = flat_vm(long_kernel(FINISH), options=HwOptions(mmu="shadow"))
    assert shadowed.cpuid(0x80000001, 0)[3] == 1 << 20
    assert shadowed.run(5).why is End.DIED  # WRMSR refuses LME, and there is no IDT


def test_a_bzimage_that_unpacks_itself_is_entered_in_64_bit_code(tmp_path: Path) -> None:
    """At its 64-bit entry, with RSI at the zero page: what runs there is 64-bit code."""
    packed = bytes(0x200 - 64) + assemble_long(f"cmp dword ptr [rsi+0x202],{0x53726448}; setne al; out 0xf4,al; l: jmp l")
    file = tmp_path / "bzImage"
    file.write_bytes(bzimage(packed, xloadflags=1))
    vm = Vm(machine_for(8, HwOptions()), memory_mib=8, options=HwOptions())
    vm.load(str(file))
    assert finish(vm) == 0


# -- events --------------------------------------------------------------------------------------------------------------------------


def test_a_page_fault_in_the_kernel() -> None:
    """Error code, RIP, CS, RFLAGS, RSP and SS, whatever the level; the stack aligned first; all 64 bits of CR2."""
    vm = run_long(long_kernel("sub rsp,4; mov rax,0xffff8000003f0008; mov [rax],eax", handlers={14: _FRAME}))
    error, rip, cs, flags, rsp, ss, cr2, top, _ = log(vm, 9)
    assert (error, cs, rsp, ss, cr2) == (2, KERNEL_CS, STACK - 4, 0x10, HIGH + 0x3F0008)
    assert flags & 0x10202 == 0x10002  # RF, and IF clear
    assert top == (STACK - 4 & ~0xF) - 48
    assert vm.linear.read(rip, 2) == b"\x89\x00"


def test_a_fault_in_user_mode_comes_on_the_kernels_stack() -> None:
    """RSP0 of the TSS, and SS becomes null."""
    vm = run_long(long_kernel(TO_USER, user=f"mov [{TOP}],rax", handlers={14: _FRAME}))
    error, rip, cs, _, rsp, ss, cr2, top, inner_ss = log(vm, 9)
    assert (error, rip, cs, rsp, ss, cr2) == (7, USER, USER_CS, USER_STACK, USER_SS, TOP)
    assert (top, inner_ss & 0xFFFF) == (STACK - 48, 0)


def test_a_gates_own_stack() -> None:
    """A gate with an IST number has its stack from the TSS, from user mode and from the kernel alike."""
    vm = run_long(long_kernel("ud2", handlers={6: f"mov [{LOG}],rsp; mov rax,[rsp+24]; mov [{LOG + 8}],rax; {FINISH}"}, stacks={6: 1}))
    assert log(vm, 2) == [IST_STACK - 40, STACK]


@pytest.mark.parametrize(("vector", "expected"), ((0x80, None), (0x20, 0x20 << 3 | 2), (0x90, 0x90 << 3 | 2)), ids=("allowed", "refused", "absent"))
def test_int_from_user_mode(vector: int, expected: int | None) -> None:
    """INT n goes through a gate that the user may use and returns behind itself; otherwise #GP with the gate's number at the INT."""
    refused = f"pop qword ptr [{LOG}]; mov rax,[rsp]; mov [{LOG + 8}],rax; {FINISH}"
    handlers = {0x80: "inc rbx; iretq", 0x81: f"mov [{LOG}],rbx; {FINISH}", 0x20: "iretq", 13: refused}
    vm = run_long(long_kernel(TO_USER, user=f"mov ebx,7; int {vector}; int 0x81", handlers=handlers))
    assert log(vm, 2) == ([8, 0] if expected is None else [expected, USER + 5])


def test_interrupts_in_kernel_and_user_mode() -> None:
    """Interrupts that the guest sends itself: delivered by the CPU itself, in both modes, behind the shadow of STI."""
    send = f"mov dword ptr [{LAPIC_PAGE + 0x300}],0x40081"
    handler = f"mov dword ptr [{LAPIC_PAGE + 0xB0}],0; inc rbx; mov rax,[rsp+8]; mov [{LOG}+rbx*8],rax; iretq"
    kernel = f"xor ebx,ebx; xor ecx,ecx; {send}; sti; inc ecx; nop; mov [{LOG + 0x40}],rcx; cli; {send}; {TO_USER}"
    vm = run_long(long_kernel(kernel, user="m: cmp rbx,2; jne m; int 0x82", handlers={0x81: handler, 0x82: FINISH}))
    assert log(vm, 3)[1:] == [KERNEL_CS, USER_CS]
    assert vm.stats.injected[0x81] == 2


def test_an_interrupt_that_the_cpu_cannot_deliver() -> None:
    """Its gate is not there: a #GP with the gate's number, external and in the IDT."""
    kernel = f"mov dword ptr [{LAPIC_PAGE + 0x300}],0x40081; sti; nop; m: jmp m"
    vm = run_long(long_kernel(kernel, handlers={13: f"pop qword ptr [{LOG}]; {FINISH}"}))
    assert log(vm, 1) == [0x81 << 3 | 3]


@pytest.mark.parametrize("what", ("no gate", "32-bit code", "stack not canonical", "no TSS room"))
def test_what_kills_a_guest(what: str) -> None:
    """What goes wrong on the way to a handler is a double fault, with a stack of its own; where that has none either the guest is dead."""
    parts = long_kernel("ud2", handlers={8: f"pop qword ptr [{LOG}]; {FINISH}; l: jmp l", 6: "l: jmp l"}, stacks={8: 1})
    gate = bytearray(parts[0x311000])
    tss = bytearray(parts[0x312000])
    if what == "no gate":
        gate[16 * 6 : 16 * 7] = gate[16 * 13 : 16 * 14]
    elif what == "32-bit code":
        gate[16 * 6 + 2] = KERNEL_CS_32
    elif what == "stack not canonical":
        tss[0x24:0x2C] = (1 << 60).to_bytes(8, "little")
        gate[16 * 6 + 4] = 1
    else:
        gate[16 * 6 + 4] = 7
        parts[0x310000] = parts[0x310000][:48] + bytes((0x30,)) + parts[0x310000][49:]
    parts |= {0x311000: bytes(gate), 0x312000: bytes(tss)}
    stop = flat_vm(parts, options=HwOptions(mmu="nested")).run(10)
    if what == "stack not canonical":
        assert (stop.why, stop.reason.split(":")[0]) == (End.DIED, "triple fault")
    else:
        assert stop.why is End.REPORTED


def test_single_steps() -> None:
    """TF: a #DB behind each instruction of user code."""
    user = "pushfq; or qword ptr [rsp],0x100; popfq; nop; mov rax,rbx; nop; int 0x81"
    handler = f"inc rcx; mov rax,[rsp]; mov [{LOG}+rcx*8],rax; iretq"
    vm = run_long(long_kernel(f"xor ecx,ecx; {TO_USER}", user=user, handlers={1: handler, 0x81: FINISH}))
    starts = [USER + len(assemble_long(user.split("; nop; mov")[0], USER)) + n for n in (1, 4, 5)]
    assert log(vm, 4)[1:] == starts


# -- system calls --------------------------------------------------------------------------------------------------------------------

_LSTAR = 0x150000
_SYSCALL_MSRS = f"mov ecx,0xc0000082; mov eax,{_LSTAR}; xor edx,edx; wrmsr; mov ecx,0xc0000084; mov eax,0x200; wrmsr"


@pytest.mark.parametrize("prefixed", (False, True))
def test_15_no_syscall_goes_astray_under_stops(prefixed: bool) -> None:
    """Four thousand system calls while a thread asks for stops: RCX and R11 hold RIP and RFLAGS, and SYSRET goes back with IF set again."""
    call = ".byte 0x48,0x0f,0x05" if prefixed else "syscall"
    user = f"""
        mov r12d,4000; again: mov eax,7; {call}; behind: lea rdx,[rip+behind]; cmp rcx,rdx; jne bad; cmp eax,8; jne bad
        pushfq; pop rdx; bt edx,9; jnc bad; bt r11,9; jnc bad; dec r12; jnz again; int 0x81; bad: int 0x82
    """
    kernel = assemble_long("inc eax; pushfq; pop rdx; bt edx,9; jc bad; .byte 0x48,0x0f,0x07; bad: mov al,2; out 0xf4,al", _LSTAR)
    parts = long_kernel(f"{_SYSCALL_MSRS}; {TO_USER}", user=user, handlers={0x81: FINISH, 0x82: _REPORT_1})
    vm = flat_vm({**parts, _LSTAR: kernel}, options=HwOptions())
    with kicked(vm.machine):
        stop = vm.run(30)
    assert (stop.why, stop.value) == (End.REPORTED, 0)
    assert vm.stats.engine["syscall"] == 4000


def test_an_observer_sees_each_syscall() -> None:
    """The short way of SYSCALL is not taken while somebody watches, and is again when nobody does."""
    parts = long_kernel(f"{_SYSCALL_MSRS}; {TO_USER}", user="mov r12d,10; l: syscall; dec r12d; jnz l; int 0x81", handlers={0x81: FINISH})
    vm = flat_vm({**parts, _LSTAR: b"\x48\x0f\x07"}, options=HwOptions())
    seen: list[int] = []

    def watch(exit_: Exit, vcpu: Vcpu) -> None:
        if isinstance(exit_, Sensitive) and exit_.row.name == "syscall":
            seen.append(vcpu.register(12))
            if len(seen) == 7:
                end()

    end = observe(vm, watch)
    assert vm.run(30).why is End.REPORTED
    assert (seen, vm.stats.engine["syscall"]) == ([10, 9, 8, 7, 6, 5, 4], 10)


def test_a_syscall_that_there_is_not() -> None:
    """Without EFER.SCE, and in 32-bit code of a CPU that calls itself Intel's, SYSCALL is undefined."""
    off = "mov ecx,0xc0000080; rdmsr; and eax,~1; wrmsr"
    narrow = f"push {USER_SS}; push {USER_STACK}; push 0x202; push {USER_CS_32}; push {USER}; iretq"
    for kernel in (f"{off}; {TO_USER}", narrow):
        vm = run_long(long_kernel(kernel, user="syscall; l: jmp l", handlers={6: f"mov rax,[rsp]; mov [{LOG}],rax; {FINISH}"}))
        assert log(vm, 1) == [USER]


@pytest.mark.parametrize("wide", (True, False))
def test_sysenter_and_sysexit(wide: bool) -> None:
    """From 64-bit and from 32-bit code into the 64-bit kernel, and back to either."""
    enter = f"mov ecx,0x174; mov eax,{KERNEL_CS}; xor edx,edx; wrmsr; mov ecx,0x175; mov eax,{STACK}; wrmsr; mov ecx,0x176; mov eax,{_LSTAR}; wrmsr"
    # SYSEXIT wants the user's segments 16 to 40 behind SYSENTER_CS: 32-bit code at 18h, stack at 20h, 64-bit code at 28h, stack at 30h
    to = f"push {USER_SS}; push {USER_STACK}; push 0x202; push {USER_CS if wide else USER_CS_32}; push {USER}; iretq"
    user = "sysenter; nop; nop; int 0x81"
    parts = long_kernel(f"{enter}; {to}", user=user, handlers={0x81: f"mov rax,[rsp+8]; mov [{LOG}],rax; mov [{LOG + 8}],rsp; {FINISH}"})
    kernel = assemble_long(f"mov rcx,{USER_STACK}; mov rdx,{USER + 3}; {'.byte 0x48;' if wide else ''} .byte 0x0f,0x35", _LSTAR)
    vm = run_long({**parts, _LSTAR: kernel})
    assert log(vm, 2) == [USER_CS if wide else USER_CS_32, STACK - 40]


def test_what_this_cpu_takes_otherwise() -> None:
    """A push to an address that is not canonical is #GP(0) where hardware has #SS(0), and SYSRET to one faults there, in user mode."""
    handler = f"pop qword ptr [{LOG}]; mov rax,[rsp]; mov [{LOG + 8}],rax; mov rax,[rsp+8]; mov [{LOG + 16}],rax; {FINISH}; l: jmp l"
    parts = long_kernel(f"mov rax,{1 << 60}; mov rsp,rax; push rax", handlers={13: handler, 12: _REPORT_1}, stacks={12: 1, 13: 1})
    assert log(run_long(parts), 3) == [0, ENTRY + len(parts[ENTRY]) - 1, KERNEL_CS]
    sysret = f"mov rcx,{1 << 60}; mov r11d,2; .byte 0x48,0x0f,0x07"
    assert log(run_long(long_kernel(sysret, handlers={13: handler}, stacks={13: 1})), 3) == [0, 1 << 60, USER_CS]


def test_segment_bases() -> None:
    """FS and GS have the bases of their MSRs, SWAPGS exchanges that of GS, and RDMSR shows what the CPU uses."""
    write = "mov ecx,{0}; mov rax,{1}; mov rdx,rax; shr rdx,32; wrmsr"
    bases = {0xC0000100: HIGH + LOG, 0xC0000101: LOG + 8, 0xC0000102: HIGH + LOG + 16}
    acts = "; ".join(write.format(number, value) for number, value in bases.items())
    use = "mov qword ptr fs:[0],1; mov qword ptr gs:[0],2; swapgs; mov qword ptr gs:[0],3"
    read = f"mov ecx,0xc0000101; rdmsr; mov [{LOG + 24}],eax; mov [{LOG + 28}],edx; inc ecx; rdmsr; mov [{LOG + 32}],eax; mov [{LOG + 36}],edx"
    vm = run_long(long_kernel(f"{acts}; {use}; {read}; {FINISH}"))
    assert log(vm, 5) == [1, 2, 3, HIGH + LOG + 16, LOG + 8]


def test_the_task_priority_is_cr8() -> None:
    """MOV to CR8 is what the local APIC's register shows, and an interrupt below it waits."""
    kernel = (
        f"mov eax,9; mov cr8,rax; mov ebx,[{LAPIC_PAGE + 0x80}]; mov [{LOG}],rbx; mov dword ptr [{LAPIC_PAGE + 0x300}],0x40081; sti; nop; nop;"
        f"mov rbx,cr8; mov [{LOG + 8}],rbx; xor eax,eax; mov cr8,rax; nop; l: jmp l"
    )
    assert log(run_long(long_kernel(kernel, handlers={0x81: FINISH})), 2) == [0x90, 9]


def test_a_snapshot_between_system_calls_goes_on_where_it_was_taken() -> None:
    """Into another VM: R8 to R15, the bases that SWAPGS exchanges, STAR and LSTAR are all there, and the count of calls goes on to its end."""
    user = """
        mov r12d,3000; mov r15,0x1122334455667788; again: mov eax,r12d; syscall; lea edx,[r12+1]; cmp eax,edx; jne bad
        cmp r12d,1000; jne on; int 0x83; on: mov r14,0x1122334455667788; cmp r14,r15; jne bad; dec r12; jnz again; int 0x81; bad: int 0x82
    """
    count = f"swapgs; inc dword ptr gs:[{LOG}]; swapgs; inc eax; .byte 0x48,0x0f,0x07"
    base = f"mov ecx,0xc0000102; xor eax,eax; mov edx,{HIGH >> 32}; wrmsr"
    handlers = {0x81: f"{FINISH}; l: jmp l", 0x82: f"{_REPORT_1}; l: jmp l", 0x83: "iretq"}
    parts = long_kernel(f"{base}; {_SYSCALL_MSRS}; {TO_USER}", user=user, handlers=handlers)
    first = flat_vm({**parts, _LSTAR: assemble_long(count, _LSTAR)}, options=HwOptions(), timeless=True)
    observe(first, lambda exit_, vcpu: first.stop(Stop(End.QUIT, "enough")) if exit_ == SoftwareInterrupt(0x83, vcpu.eip + 2) else None)
    assert first.run(20).why is End.QUIT
    taken = first.snapshot()
    assert log(first, 1) == [2001]
    second = Vm(machine_for(4, HwOptions()), memory_mib=4, options=HwOptions(), time_source=lambda: 0)
    second.restore(taken)
    assert finish(second) == 0
    assert (log(second, 1), second.stats.engine["syscall"]) == ([3000], 999)


def test_a_report_of_64_bit_registers() -> None:
    """All sixteen in full, and a back-trace by 64-bit frame pointers."""
    kernel = f"mov r15,0x1122334455667788; xor ebp,ebp; call f; {FINISH}; f: push rbp; mov rbp,rsp; call g; ret; g: push rbp; mov rbp,rsp; cli; hlt"
    parts = long_kernel(kernel)
    vm = flat_vm(parts, options=HwOptions())
    assert vm.run(5).why is End.DIED
    shown = registers(vm)
    assert "R15=1122334455667788" in shown
    assert f"RIP={vm.vcpu.eip:08x}" in shown
    assert [vm.linear.read(frame.eip - 5, 1) for frame in backtrace(vm).frames[1:]] == [b"\xe8", b"\xe8"]


# -- memory --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "index", "bit", "error"),
    ((TOP, 256, 7, 9), (TOP, 256, 45, 9), (POINTERS, 0, 50, 9), (IDENTITY, 0x200, 40, 9), (IDENTITY, 0x200, 52, None), (IDENTITY, 0x200, 63, None)),
    ids=("ps in the top table", "top", "pointer", "page", "ignored", "nx"),
)
def test_reserved_bits(table: int, index: int, bit: int, error: int | None) -> None:
    """A reserved bit in an entry on the way to LOG is a page fault that says so; ignored bits are, and NX is no matter for data."""
    parts = long_kernel(f"mov rax,{HIGH + LOG}; mov rbx,[rax]; {FINISH}; l: jmp l", handlers={14: "pop rax; out 0xf4,al; l: jmp l"})
    entries = bytearray(parts[table])
    at = 8 * index
    entries[at : at + 8] = (int.from_bytes(entries[at : at + 8], "little") | 1 << bit).to_bytes(8, "little")
    if table == POINTERS:  # the code's own way leads through the same table: a second one for the upper half
        top = bytearray(parts[TOP])
        top[256 * 8 : 257 * 8] = (0x306007).to_bytes(8, "little")
        parts |= {TOP: bytes(top), 0x306000: bytes(entries)}
    else:
        parts[table] = bytes(entries)
    stop = flat_vm(parts, options=HwOptions(mmu="nested")).run(10)
    assert (stop.why, stop.value) == (End.REPORTED, error or 0)


def test_pages_of_a_gibibyte_and_accessed_bits() -> None:
    """A page of 1 GiB in the second table is used as it stands; A and D are set where they belong."""
    top = 0x306000
    kernel = f"mov rax,{(1 << 39) + LOG}; mov qword ptr [rax],5; mov rax,[{top}]; mov [{LOG + 8}],rax; {FINISH}"
    parts = long_kernel(kernel)
    entries = bytearray(parts[TOP])
    entries[8:16] = (top | 3).to_bytes(8, "little")
    vm = run_long({**parts, TOP: bytes(entries), top: quads([0x83])})
    value, entry = log(vm, 2)
    assert (value, entry) == (5, 0xE3)
    assert vm.paging.walk((1 << 39) + LOG).gpa == LOG


def test_what_the_vmm_leaves_in_the_tlb_is_out_of_reach() -> None:
    """The VMM drops the code of a page that is written by a linear address of its own: no guest reads a frame of the host there."""
    frames = flat_vm({ENTRY: FINISH}, options=HwOptions(mmu="nested")).memory.frames  # the next machine's are the same
    probe = f"mov edi,{ENTRY + 0xFF0}; mov rax,{1 << 62 | frames[ENTRY >> 12] << 12}; mov [rdi],cl; mov rbx,[rax]; mov al,2; out 0xf4,al; l: jmp l"
    vm = run_long(long_kernel(probe, handlers={13: f"{FINISH}; l: jmp l"}))
    assert vm.stats.injected[13] == 1
    assert vm.memory.frames == frames


def test_device_memory_eight_bytes_wide() -> None:
    """A 64-bit load from the local APIC's page arrives as accesses that it takes."""
    vm = run_long(long_kernel(f"mov rax,[{LAPIC_PAGE + 0x30}]; mov [{LOG}],rax; {FINISH}"))
    assert log(vm, 1)[0] & 0xFF == vm.board.interrupts.lapic.access(0x30, 4, None) & 0xFF


def test_port_access_without_permission() -> None:
    """Erratum 12 in 64-bit code: #GP(0) at the instruction, with all registers as before."""
    handler = f"pop qword ptr [{LOG}]; mov rbx,[rsp]; mov [{LOG + 8}],rbx; mov [{LOG + 16}],rax; {FINISH}"
    vm = run_long(long_kernel(TO_USER, user="mov rax,0x1122334455667788; in al,0x64; l: jmp l", handlers={13: handler}))
    assert log(vm, 3) == [0, USER + 10, 0x1122334455667788]


_JIT = f"""
    mov r12d,300; xor r13,r13
    again: mov [{ALIAS + 0x3001}],r12d; mov eax,{USER + 0x3000}; call rax; add r13,rax; dec r12; jnz again; mov rax,r13; int 0x81
"""


def test_14_code_written_through_an_alias() -> None:
    """Code written through a mapping that is not executable, and called through another that is not writable: never stale."""
    parts = long_kernel(f"mov byte ptr [{USER_PAGES + 0x3000}],0xb8; mov byte ptr [{USER_PAGES + 0x3005}],0xc3; {TO_USER}", user=_JIT,
                        handlers={0x81: f"mov [{LOG}],rax; {FINISH}"})  # fmt: skip
    table = bytearray(parts[USER_TABLE])
    table[24:32] = (USER_PAGES + 0x3000 | 5).to_bytes(8, "little")
    assert log(run_long({**parts, USER_TABLE: bytes(table)}), 1) == [300 * 301 // 2]


def test_14_a_page_that_is_data_and_code_in_turn() -> None:
    """NX toggled by the kernel at each system call, as a just-in-time compiler has it: what is executed is what was written last."""
    toggle = f"btc qword ptr [{USER_TABLE + 24}],63; invlpg [{USER + 0x3000}]; iretq"
    user = f"""
        mov r12d,100; xor r13,r13
        again: int 0x80; mov byte ptr [{USER + 0x3000}],0xb8; mov [{USER + 0x3001}],r12d; mov byte ptr [{USER + 0x3005}],0xc3
        int 0x80; mov eax,{USER + 0x3000}; call rax; add r13,rax; dec r12; jnz again; mov rax,r13; int 0x81
    """
    vm = run_long(long_kernel(TO_USER, user=user, handlers={0x80: toggle, 0x81: f"mov [{LOG}],rax; {FINISH}"}))
    assert log(vm, 1) == [100 * 101 // 2]


def test_a_page_without_the_right_to_execute() -> None:
    """A fetch there is a page fault whose error code says so."""
    vm = run_long(long_kernel(TO_USER, user=f"mov eax,{ALIAS}; jmp rax", handlers={14: _FRAME}))
    assert (log(vm, 2), log(vm, 7)[6]) == ([0x15, ALIAS], ALIAS)


@pytest.mark.parametrize("top", (0xFEE00000, 0xFFFFF000, 0x10000000, 0x7FFFF000, ENTRY, 0x3FF000, TOP, 1 << 38, (1 << 40) - 0x1000))
def test_4_page_tables_anywhere_do_no_harm(top: int) -> None:
    """Erratum 4: whatever a guest uses as page tables, it is the guest that dies (or runs on)."""
    parts = long_kernel(f"mov rax,{top}; mov cr3,rax; l: jmp l")
    parts[TOP] = quads([TOP | 7] * 512)
    parts[0x306000] = parts[DIRECTORY]
    assert flat_vm(parts, options=HwOptions(mmu="nested")).run(0.2).why in (End.DIED, End.TIMEOUT)


def test_what_does_not_exit() -> None:
    """A guest that reads and writes its registers takes no exit for it but those that it must."""
    vm = run_long(long_kernel(f"mov rax,cr3; mov cr3,rax; mov rax,cr0; mov rax,cr4; sgdt [{LOG}]; swapgs; swapgs; pushfq; popfq; {FINISH}"))
    backend = vm.backend
    assert isinstance(backend, Hardware)
    assert set(vm.stats.architectural) == {"nested page fault", "port", "wrmsr"}
    assert vm.stats.engine == {"control register": 2, "ldtr tr": 1}


# -- non-maskable interrupts -----------------------------------------------------------------------------------------------------------


def _with_button(parts: dict[int, bytes], mmu: str = "nested") -> Vm:
    vm = flat_vm(parts, options=HwOptions(mmu=mmu))
    assert isinstance(vm.backend, Hardware)
    vm.board.bus.attach_ports(0x99, 1, _Button(vm.board.interrupts.raise_nmi))
    assert finish(vm) == 0
    return vm


def test_a_non_maskable_interrupt() -> None:
    """Taken with IF clear, at the end of the block that asked for it, on the gate's own stack; another one waits until IRET has ended the first."""
    first = "cmp rcx,1; jne second; out 0x99,al; mov edx,7; second: iretq"  # the second comes where the first returns to
    handler = f"inc ecx; mov rax,[rsp]; mov [{LOG}+rcx*8],rax; mov [{LOG + 0x40}+rcx*8],rdx; mov [{LOG + 0x80}],rsp; {first}"
    kernel = f"xor ecx,ecx; xor edx,edx; cli; out 0x99,al; jmp n; n: nop; mov [{LOG}],rcx; {FINISH}; l: jmp l"
    vm = _with_button(long_kernel(kernel, handlers={2: handler}, stacks={2: 1}))
    count, at_first, at_second = log(vm, 3)
    assert (count, at_first, vm.linear.read(at_first - 4, 5)) == (2, at_second, b"\xe6\x99\xeb\x00\x90")
    assert log(vm, 11)[9:] == [0, 7]
    assert log(vm, 17)[16] == IST_STACK - 40
    assert vm.stats.architectural["nmi"] == vm.stats.injected[2] == 2


@pytest.mark.parametrize("mmu", ("nested", "shadow"))
def test_a_non_maskable_interrupt_in_32_bit_code(mmu: str) -> None:
    """From user mode with interrupts off, into the kernel and back; what cannot be delivered is a #GP with its gate's number."""
    parts = small_kernel(SMALL_TO_USER, user="mov ecx,5; out 0x99,al; inc ecx; int 0x80", handlers={2: "add ecx,10; .byte 0xcf", 0x80: FINISH})
    parts = {at: part.replace(b"\x68\x02\x02\0\0", b"\x68\x02\x30\0\0") for at, part in parts.items()}  # IOPL 3, and IF clear
    vm = _with_button(parts, mmu)
    assert vm.vcpu.register(1) == 16
    absent = small_kernel("out 0x99,al; l: jmp l", handlers={13: f"pop dword ptr [{LOG}]; {FINISH}"})
    assert log(_with_button(absent, mmu), 1)[0] & 0xFFFFFFFF == 2 << 3 | 3
