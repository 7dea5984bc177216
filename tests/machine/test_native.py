"""The bare machine: what the VMM lends it, and that nothing else differs from a CPU that has all of it. Each seen by a guest of its own."""

import pytest

from tests.machine.flat import ENTRY, FINISH, LIDT, assemble, finish, flat_vm, gate, pack, quads, words
from tests.machine.small_kernel import IDENTITY, LOG, TO_USER, small_kernel
from vmm.backends.native import NativeOptions
from vmm.exits import End
from vmm.vm import Vm

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
