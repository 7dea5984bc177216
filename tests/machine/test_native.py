"""The bare machine: what the VMM lends it, and that nothing else differs from a CPU that has all of it. Each seen by a guest of its own."""

import struct

import pytest

from tests.machine.flat import ENTRY, FINISH, LGDT, LIDT, assemble, finish, flat_vm, gate, pack, quads, system_segment, words
from tests.machine.small_kernel import IDENTITY, LOG, TO_USER, small_kernel
from vmm.backends.native import NativeOptions
from vmm.exits import End
from vmm.vm import Vm
from vmm.x86.descriptors import Segment

LAPIC_PAGE = 0x3E0000  # linear, mapped to the local APIC
_LOG_ERROR = f"pop dword ptr [{LOG}]; mov eax,[esp]; mov [{LOG + 4}],eax; {FINISH}"  # of an exception with an error code: it, then EIP


def _run(parts: dict[int, bytes], memory_mib: int = 4) -> Vm:
    vm = flat_vm(parts, memory_mib=memory_mib, options=NativeOptions())
    assert finish(vm) == 0
    return vm


def _with_lapic(parts: dict[int, bytes]) -> dict[int, bytes]:
    table = bytearray(parts[IDENTITY])
    table[LAPIC_PAGE >> 10 : (LAPIC_PAGE >> 10) + 4] = (0xFEE0001B).to_bytes(4, "little")
    return {**parts, IDENTITY: bytes(table)}


@pytest.mark.parametrize("spaces", (0, 1, 3))
def test_an_interrupt_comes_behind_the_shadow_of_sti(spaces: int) -> None:
    """A pending interrupt is taken behind the one instruction that follows STI, whatever stands before STI in the same block."""
    body = f"mov dword ptr [{LAPIC_PAGE + 0x300}],0x40081; {'nop;' * spaces} xor ecx,ecx; sti; inc ecx; inc ecx; l: jmp l"
    vm = _run(_with_lapic(small_kernel(body, handlers={0x81: f"mov [{LOG}],ecx; {FINISH}"})))
    assert words(vm, LOG, 1) == [1]


def test_an_interrupt_comes_at_once_when_it_is_asked_for() -> None:
    """With IF set, an interrupt that the guest sends itself in a loop of its own ends the loop: no timer has to help."""
    body = f"sti; l: mov dword ptr [{LAPIC_PAGE + 0x300}],0x40081; jmp l"
    assert _run(_with_lapic(small_kernel(body, handlers={0x81: FINISH}))).stats.engine["interrupt"] == 1


@pytest.mark.parametrize(
    ("act", "size"),
    (
        ("mov ecx,0x12345; rdmsr", 2),
        ("mov ecx,0x12345; wrmsr", 2),
        ("mov ecx,0xc0000080; mov eax,0x100; xor edx,edx; wrmsr", 2),
        ("mov ecx,0xc0000080; mov eax,0x1000; xor edx,edx; wrmsr", 2),
        ("xor ecx,ecx; rdpmc", 2),
        ("mov eax,cr4; or eax,0x40000; mov cr4,eax", 3),
        ("mov eax,cr4; or eax,0x2000; mov cr4,eax", 3),
        ("mov eax,0x80000000; mov cr0,eax", 3),
        ("mov eax,0x20000011; mov cr0,eax", 3),
    ),
    ids=("rdmsr", "wrmsr", "long mode", "svm", "rdpmc", "cr4", "vmx", "paging without protection", "nw without cd"),
)
def test_what_the_virtual_cpu_has_not_is_a_general_protection_fault(act: str, size: int) -> None:
    """MSRs, features and bits of control registers that CPUID does not offer raise #GP(0) at their instruction, as under every VMM."""
    code = assemble(f"xor edi,edi; {act}")
    vm = _run(small_kernel(f".byte 0xbd; .long act; act: xor edi,edi; {act}", handlers={13: _LOG_ERROR}))
    error, eip, at = words(vm, LOG, 2) + [vm.vcpu.register(5)]
    assert (error, eip) == (0, at + len(code) - size)


def test_reserved_bits_of_page_directory_pointers() -> None:
    """With PAE a load of CR3 whose four pointers have reserved bits set is a #GP, and CR3 stays."""
    parts = small_kernel(
        "mov eax,cr0; and eax,0x7fffffff; mov cr0,eax; mov ecx,cr4; or ecx,0x20; mov cr4,ecx; mov ecx,0x320000; mov cr3,ecx;"
        "or eax,0x80000000; mov cr0,eax; mov ecx,0x330000; mov cr3,ecx",
        handlers={13: f"mov eax,cr3; mov [{LOG}],eax; {FINISH}"},
    )
    tables = {0x320000: quads([0x321001, 0, 0, 0]), 0x321000: quads([0x83, 0x200083]), 0x330000: quads([0x321001 | 2, 0, 0, 0])}
    vm = _run({**parts, **tables})
    assert words(vm, LOG, 1) == [0x320000]


def test_memory_that_is_not_there_is_open_bus() -> None:
    """Reads behind RAM give ones, writes go nowhere, and execution there ends the run with a reason."""
    source = "mov dword ptr [0x800000],7; mov eax,[0x800000]; "
    vm = _run({ENTRY: f"{source} mov [{LOG}],eax; movzx eax,word ptr [0xa0000000]; mov [{LOG + 4}],eax; {FINISH}"})
    assert words(vm, LOG, 2) == [0xFFFFFFFF, 0xFFFF]
    vm = flat_vm({ENTRY: "mov eax,0x800000; jmp eax"}, options=NativeOptions())
    stop = vm.run(5)
    assert (stop.why, stop.reason) == (End.DIED, "the guest executes at 0x800000, where there is no memory")


def test_the_vmm_s_own_memory_is_out_of_reach() -> None:
    """Behind the guest's RAM lies nothing, though the machine has frames there for itself."""
    vm = _run({ENTRY: f"mov esi,0x400000; mov edi,{LOG}; mov ecx,0x4000; cld; .byte 0xf3,0xa5; {FINISH}"})
    assert set(words(vm, LOG, 0x4000)) == {0xFFFFFFFF}


@pytest.mark.parametrize("access", ("in al,0x60", "out 0x80,al", "in eax,dx", "mov dx,0x3f8; insb", "mov dx,0x80; outsb"))
def test_port_access_without_permission(access: str) -> None:
    """Erratum 12: a user's IN, OUT, INS and OUTS are a #GP at their own EIP, and registers are as before."""
    user = f"mov esi,0x400000; mov edi,0x408000; mov eax,0x11223344; {access}; int 0x80"
    vm = _run(small_kernel(TO_USER, user=user, handlers={13: f"mov [{LOG + 8}],eax; mov [{LOG + 12}],edi; {_LOG_ERROR}"}))
    head = len(assemble(f"mov eax,0x23; mov ds,eax; mov es,eax; mov esi,0x400000; mov edi,0x408000; mov eax,0x11223344; {access}"))
    size = len(assemble(access.rpartition(";")[2]))
    assert words(vm, LOG, 4) == [0, 0x400000 + head - size, 0x11223344, 0x408000]


def test_port_access_by_the_permission_map() -> None:
    """The TSS's map allows port 80h, refuses 81h, and with IOPL 3 none is asked."""
    tss = pack([0, 0x170000, 0x10, *([0] * 22), 0x68 << 16]) + bytes([0xFF] * 16 + [0xFE] + [0xFF] * 16)
    parts = small_kernel(TO_USER, user="out 0x80,al; out 0x81,al; int 0x80", handlers={13: _LOG_ERROR, 0x80: FINISH})
    gdt = bytearray(parts[0x310000])
    gdt[0x28:0x2A] = (0x88).to_bytes(2, "little")
    vm = _run({**parts, 0x310000: bytes(gdt), 0x312000: tss})
    assert words(vm, LOG, 2) == [0, 0x400000 + len(assemble("mov eax,0x23; mov ds,eax; mov es,eax; out 0x80,al"))]
    vm = _run(small_kernel(TO_USER.replace("0x202", "0x3202"), user="in al,0x64; out 0x80,al; int 0x80", handlers={0x80: FINISH}))
    assert not vm.stats.injected[13]


def test_breakpoints_in_debug_registers_do_no_harm() -> None:
    """An enabled breakpoint never fires (a quirk), and does not stop the machine either."""
    body = f".byte 0xb8; .long here; mov dr0,eax; mov eax,0x303; mov dr7,eax; here: nop; mov eax,dr7; mov [{LOG}],eax; {FINISH}"
    assert words(_run(small_kernel(body)), LOG, 1) == [0x703]


# -- coherence (erratum 14) ----------------------------------------------------------------------------------------------------------

_ROUTINE = 0x240000


def test_code_written_by_its_own_mapping() -> None:
    """An immediate that is rewritten and executed 2,000 times counts each time, one to four bytes behind the store that changes it."""
    loop = "l: mov eax,esi; mov [edi],al; m: add ebx,0x11223344; dec esi; jnz l"
    code = f"mov esi,2000; xor ebx,ebx; .byte 0xbf; .long m+2; {loop}; mov [{LOG}],ebx; {FINISH}"
    expected = sum(0x11223300 | n & 0xFF for n in range(1, 2001)) & 0xFFFFFFFF
    assert words(_run(small_kernel(code)), LOG, 1) == [expected]


def test_code_written_through_an_alias_without_the_right_to_execute() -> None:
    """A just-in-time compiler with two mappings under PAE, one writable and not executable, one executable and not writable: 1,000 programs."""
    nx = 1 << 63
    leaves = [n << 12 | 3 for n in range(512)]
    leaves[0x180], leaves[0x181] = 0x160001, 0x160003 | nx
    tables = {0x120000: quads([0x121001, 0, 0, 0]), 0x121000: quads([0x122003]), 0x122000: quads(leaves)}
    gdt = {0x110000: quads([0, 0x00CF9B00_0000FFFF, 0x00CF9300_0000FFFF])}
    source = f"""
        mov ecx,0xc0000080; mov eax,0x800; xor edx,edx; wrmsr
        mov eax,cr4; or eax,0x20; mov cr4,eax; mov eax,0x120000; mov cr3,eax; mov eax,cr0; or eax,0x80010000; mov cr0,eax
        mov dword ptr [0x181000],0x000000b8; mov word ptr [0x181004],0xc300
        mov esi,1000; xor ebx,ebx
    l:  mov [0x181001],esi; mov eax,0x180000; call eax; add ebx,eax; dec esi; jnz l
        mov [{LOG - 0x100000}],ebx; {FINISH}
    """
    vm = _run({ENTRY: assemble(source), **tables, **gdt})
    assert words(vm, LOG - 0x100000, 1) == [500500]


def test_pages_that_are_used_for_one_program_after_the_other() -> None:
    """Two programs copied in turn over the same page, word by word, run as what they are each time."""
    first, second = assemble("inc ebx; ret", _ROUTINE), assemble("add ebx,0x10000; ret", _ROUTINE)
    source = f"""
        mov edx,500; xor ebx,ebx
    l:  mov esi,0x250000; test dl,1; jz c; mov esi,0x251000
    c:  mov edi,{_ROUTINE}; mov ecx,0x400; .byte 0xf3,0xa5; mov eax,{_ROUTINE}; call eax
        dec edx; jnz l; mov [{LOG}],ebx; {FINISH}
    """
    vm = _run({**small_kernel(source), 0x250000: first.ljust(4096, b"\x90"), 0x251000: second.ljust(4096, b"\x90")})
    assert words(vm, LOG, 1) == [250 << 16 | 250]


def test_code_written_by_the_delivery_of_an_interrupt() -> None:
    """The return address that INT pushes over a routine is the routine from then on: what the VMM writes for the CPU drops compiled code too."""
    at = 0x0010C340  # as bytes in memory: inc eax; ret
    stub = assemble(f"mov esp,{_ROUTINE + 12}; int 0x80", at - 7)
    assert len(stub) == 7
    handler = f"mov esp,0x16f000; mov eax,0x100; mov ecx,{_ROUTINE}; call ecx; mov [{LOG}],eax; {FINISH}"
    body = f"mov eax,0x100; mov ecx,{_ROUTINE}; call ecx; mov [{LOG + 4}],eax; mov eax,{at - 7}; jmp eax"
    vm = _run({**small_kernel(body, handlers={0x80: handler}), _ROUTINE: assemble("dec eax; ret"), at - 7: stub})
    assert words(vm, LOG, 2) == [0x101, 0xFF]


def test_a_table_of_gates_in_memory_is_found_by_lidt() -> None:
    """Without paging and without a GDT of its own too: an exception goes through the IDT that LIDT names."""
    idt = quads([0] * 6 + [gate(0x130000)])
    source = f"{LIDT.format(0x120000)}; ud2"
    vm = _run({ENTRY: source, 0x120000: pack([0x37 | 0x1000 << 16, 0x12]), 0x121000: idt, 0x130000: f"pop dword ptr [{LOG}]; {FINISH}"})
    assert words(vm, LOG, 1) == [ENTRY + 7]


# -- what a long-mode host has not ---------------------------------------------------------------------------------------------------

_GDT, _POINTERS = 0x310000, 0x313000


def _with_descriptors(parts: dict[int, bytes], *more: int) -> dict[int, bytes]:
    """The parts with more descriptors in the GDT, from selector 30h on."""
    pointers = bytearray(parts[_POINTERS])
    pointers[:2] = (0x2F + 8 * len(more)).to_bytes(2, "little")
    return {**parts, _POINTERS: bytes(pointers), _GDT: parts[_GDT] + quads(more)}


def test_real_mode() -> None:
    """INT n and a divide error go through the table of far pointers at address 0; IRET comes back."""
    real = (
        "0f20c0 24fe 0f22c0 ea10800000 909090"  # PE off, then jmp 0:8010h
        "31c0 8ed0 8ed8 bc0070 cd40 31c9 f6f1"  # xor ax,ax; mov ss,ax; mov ds,ax; mov sp,7000h; int 40h; xor cx,cx; div cl
    )
    on_int = "89e5 8b4600 a30090 cf"  # mov bp,sp; mov ax,[bp]; mov [9000h],ax; iret
    on_error = "89e5 8b4600 a30290 8b4602 a30490 8b4604 a30690 b000 e6f4"
    vectors = {4 * 0x40: (0x8100).to_bytes(4, "little"), 0: (0x0800 << 16 | 0x120).to_bytes(4, "little")}
    parts = {0x8000: bytes.fromhex(real), 0x8100: bytes.fromhex(on_int), 0x8120: bytes.fromhex(on_error)}
    vm = _run({ENTRY: ".byte 0xea; .long 0x8000; .byte 0x18,0", **vectors, **parts})
    int_ip, error_ip, error_cs, flags = struct.unpack("<4H", vm.memory.read(0x9000, 8))
    assert (int_ip, error_ip, error_cs, flags & 0x300) == (0x801B, 0x801D, 0, 0)
    assert vm.vcpu.esp & 0xFFFF == 0x7000 - 6
    assert vm.vcpu.cs == Segment(0x800, 0x8000, vm.vcpu.cs.limit, vm.vcpu.cs.attributes)


_V86_LOG = f"mov ebx,0x10; mov ds,ebx; mov es,ebx; mov esi,esp; mov edi,{LOG}; mov ecx,10; cld; .byte 0xf3,0xa5; {FINISH}"


def _to_v86(iopl: int) -> str:
    values = (0x55, 0x44, 0x33, 0x22, 0x900, 0x100, 0x20002 | iopl << 12, 0x800, 0)  # GS FS DS ES SS ESP EFLAGS CS EIP
    return "mov eax,cr0; and eax,0x7fffffff; mov cr0,eax; " + "; ".join(f"push {value}" for value in values) + "; .byte 0xcf"


@pytest.mark.parametrize(
    ("iopl", "code", "eip"),
    ((0, "90 fa", 1), (0, "90 cd81", 1), (3, "fa fb 9090 e680", 4), (3, "f4", 0), (0, "cf", 0)),
    ids=("cli", "int", "out", "hlt", "iret"),
)
def test_virtual_8086_mode_traps(iopl: int, code: str, eip: int) -> None:
    """Sensitive instructions by IOPL, ports by the map whatever IOPL says, HLT always: #GP(0) with all segment registers on the kernel's stack."""
    vm = _run({**small_kernel(_to_v86(iopl), handlers={13: _V86_LOG}), 0x8000: bytes.fromhex(code)})
    assert words(vm, LOG, 3) == [0, eip, 0x800]
    assert words(vm, LOG + 12, 1)[0] & 0x23002 == 0x20002 | iopl << 12
    assert words(vm, LOG + 16, 6) == [0x100, 0x900, 0x22, 0x33, 0x44, 0x55]
    assert vm.vcpu.cpl == 0


def test_an_interrupt_in_virtual_8086_mode_returns_there() -> None:
    """With IOPL 3, INT n goes to the kernel with null data segments, and IRET restores every one of them."""
    code = bytes.fromhex("cd81 8cd8 8ec0 cc")  # int 81h; mov ax,ds; mov es,ax; int3
    on_int = f"mov eax,ds; mov ss:[{LOG + 64}],eax; mov eax,gs; mov ss:[{LOG + 68}],eax; .byte 0xcf"
    parts = small_kernel(_to_v86(3), handlers={0x81: on_int, 3: f"sub esp,4; {_V86_LOG}"})
    idt = bytearray(parts[0x311000])
    idt[3 * 8 + 5] |= 0x60  # INT3 is for users
    vm = _run({**parts, 0x311000: bytes(idt), 0x8000: code})
    assert words(vm, LOG + 64, 2) == [0, 0]
    assert words(vm, LOG + 4, 2) == [7, 0x800]
    assert words(vm, LOG + 24, 4) == [0x33, 0x33, 0x44, 0x55]


def test_a_call_gate_to_the_kernel() -> None:
    """Through a gate of two parameters from ring 3: the stack of the TSS, the parameters, and back by RETF."""
    found = ("[esp+8]", "[esp+4]", "cs")
    entry = assemble("; ".join(f"mov eax,{what}; mov ss:[{LOG + 4 * n}],eax" for n, what in enumerate(found)) + "; .byte 0xca,8,0")
    call_gate = 0x150000 & 0xFFFF | 8 << 16 | (0xEC02 << 32) | (0x15 << 48)
    user = "push 0x1234; push 0x5678; .byte 0x9a; .long 0; .byte 0x33,0; mov ecx,esp; int 0x80"
    parts = small_kernel(TO_USER, user=user, handlers={0x80: f"mov ss:[{LOG + 12}],ecx; {FINISH}"})
    vm = _run({**_with_descriptors(parts, call_gate), 0x150000: entry})
    assert words(vm, LOG, 4) == [0x5678, 0x1B, 8, 0x408000]


def test_a_task_switch_by_a_far_jump() -> None:
    """JMP to a TSS loads all of the new task's state and saves the old one's."""
    new = [0] * 26
    new[7], new[8], new[9], new[10], new[14] = 0x300000, 0x150000, 2, 0x1111, 0x16E000  # CR3 EIP EFLAGS EAX ESP
    new[18:24] = [0x10, 8, 0x10, 0x10, 0x10, 0x10]
    body = "mov eax,0x2222; .byte 0xea; .long 0; .byte 0x30,0"
    task = f"mov [{LOG}],eax; mov eax,esp; mov [{LOG + 4}],eax; xor ecx,ecx; .byte 0x0f,0x00,0xc9; mov [{LOG + 8}],ecx; {FINISH}"
    parts = _with_descriptors(small_kernel(body), system_segment(0x320000, 0x67, 9))
    vm = _run({**parts, 0x320000: pack(new), 0x150000: assemble(task, 0x150000)})
    assert words(vm, LOG, 3) == [0x1111, 0x16E000, 0x30]
    assert words(vm, 0x312000 + 0x28, 1) == [0x2222]


@pytest.mark.parametrize("load", ("nop", "xor eax,eax; ltr ax"))
def test_a_call_gate_without_a_task_register(load: str) -> None:
    """Erratum 11: with no TSS, or after LTR of a null selector (a #GP), a call gate to an inner stack is a #TS and not the end of the process."""
    call_gate = 0x150000 & 0xFFFF | 8 << 16 | (0xEC00 << 32) | (0x15 << 48)
    idt = quads([0] * 10 + [gate(0x132000), 0, 0, gate(0x131000)])
    gdt = quads([0, 0x00CF9B00_0000FFFF, 0x00CF9300_0000FFFF, 0x00CFFB00_0000FFFF, 0x00CFF300_0000FFFF, call_gate])
    user = ".byte 0x9a; .long 0; .byte 0x2b,0"
    to_user = "push 0x23; push 0x160000; push 2; push 0x1b; push 0x140000; .byte 0xcf"
    source = f"{LGDT.format(0x120000)}; {LIDT.format(0x120008)}; .byte 0xbd; .long on; {load}; on: {to_user}"
    parts = {0x120000: pack([0x2F | 0x1000 << 16, 0x12, 0x6F | 0x2000 << 16, 0x12]), 0x121000: gdt, 0x122000: idt, 0x140000: user}
    vm = flat_vm({ENTRY: source, **parts, 0x131000: "add esp,4; mov [esp],ebp; .byte 0xcf", 0x132000: FINISH}, options=NativeOptions())
    stop = vm.run(5)
    assert (stop.why, "triple fault" in stop.reason) == (End.DIED, True)  # with no stack for ring 0 nothing can be delivered
    assert vm.stats.engine["exception 10"] == 1


def test_pae_tables_as_this_cpu_reads_them() -> None:
    """The quirk: a page-directory pointer that appears in memory counts at once, and an entry may lead beyond 64 GiB, where there is nothing."""
    low = [n << 12 | 3 for n in range(512)]
    low[0x1F0] = 1 << 39 | 3
    tables = {0x120000: quads([0x121001, 0, 0, 0]), 0x121000: quads([0x122003]), 0x122000: quads(low)}
    source = f"""
        mov eax,cr4; or eax,0x20; mov cr4,eax; mov eax,0x120000; mov cr3,eax; mov eax,cr0; or eax,0x80000000; mov cr0,eax
        mov eax,[0x1f0000]; mov [0x123000],eax; mov dword ptr [0x120008],0x121001; mov eax,[0x40122000]; mov [0x123004],eax; {FINISH}
    """
    vm = _run({ENTRY: source, **tables})
    assert words(vm, 0x123000, 2) == [0xFFFFFFFF, low[0]]


def test_no_interrupt_comes_behind_the_end() -> None:
    """A guest that ends its run while an interrupt waits stays where it ended: the interrupt is not taken any more."""
    body = f"sti; nop; mov dword ptr [{LAPIC_PAGE + 0x300}],0x40081; {FINISH}; l: jmp l"
    vm = _run(_with_lapic(small_kernel(body, handlers={0x81: "l: jmp l"})))
    assert vm.board.interrupts.asserted
    assert not vm.stats.injected[0x81]
