"""The known deviations of docs/QUIRKS.md, each shown. A test that fails here means that an entry can leave the list."""

import pytest

from tests.machine.flat import ENTRY, FINISH, FLAT_CODE, FLAT_DATA, LGDT, USER_CODE, USER_DATA, finish, flat_vm, words
from tests.machine.small_kernel import IDENTITY, LOG, TO_USER, small_kernel
from vmm.backends import Options
from vmm.backends.bt import BtOptions
from vmm.backends.hw import HwOptions
from vmm.backends.native import NativeOptions
from vmm.exits import End

_GDT, _POINTER = 0x24000, 0x25000


def _gdt(*descriptors: int) -> dict[int, bytes]:
    """A GDT with a null and these descriptors, and the operand of an LGDT for it."""
    table = b"".join(descriptor.to_bytes(8, "little") for descriptor in (0, *descriptors))
    return {_GDT: table, _POINTER: (len(table) - 1).to_bytes(2, "little") + _GDT.to_bytes(4, "little")}


@pytest.mark.parametrize(
    ("selector", "access"),
    [
        pytest.param(0x18, "mov ebx, dword ptr fs:[0x1000]", id="limit"),
        pytest.param(0x20, "mov dword ptr fs:[0x1004], 0x600d; mov ebx, [0x1004]", id="read-only"),
        pytest.param(0, "mov ebx, dword ptr fs:[0x1000]", id="null"),
    ],
)
def test_segments_are_not_checked_on_data_accesses(selector: int, access: str) -> None:
    """Quirk 1: beyond a limit of 16 bytes, into a read-only segment, through a null selector; with no IDT a #GP would end the run."""
    small, read_only = 0x0040_9200_0000_000F, 0x00CF_9100_0000_FFFF
    vm = flat_vm(
        {
            0x100000: f"""
            {LGDT.format(hex(_POINTER))}
            mov dword ptr [0x1000], 0x600d
            mov ax, {selector}
            mov fs, ax
            {access}
            cmp ebx, 0x600d
            jne 0x100800
            {FINISH}
            """,
            0x100800: "mov al, 1; out 0xf4, al",
            **_gdt(FLAT_CODE, FLAT_DATA, small, read_only),
        }
    )
    assert finish(vm) == 0


@pytest.mark.parametrize("options", (BtOptions(), NativeOptions(), HwOptions(mmu="nested"), HwOptions(mmu="shadow")), ids=lambda how: how.backend)
def test_non_maskable_interrupts_exist_in_guest_mode_only(options: Options) -> None:
    """A guest sends itself one, by its local APIC, with interrupts off. In guest mode its handler runs at once; elsewhere the message gets lost."""
    to_itself = f"mov dword ptr [{IDENTITY + 0xF80}],0xfee0001b; mov eax,cr3; mov cr3,eax; xor ecx,ecx; mov dword ptr [0x3e0300],0x400; jmp n; n: nop"
    vm = flat_vm(small_kernel(f"{to_itself}; mov [{LOG}],ecx; {FINISH}; l: jmp l", handlers={2: "inc ecx; .byte 0xcf"}), options=options)
    assert finish(vm) == 0
    assert words(vm, LOG, 1) == [int(isinstance(options, HwOptions))]


@pytest.mark.parametrize("options", (BtOptions(), NativeOptions(), HwOptions(mmu="nested")), ids=lambda how: how.backend)
def test_the_a20_gate_counts_under_nested_paging_only(options: Options) -> None:
    """It reads back as it was set; that addresses wrap at 1 MiB is to be seen under nested paging alone."""
    look = f"mov byte ptr [0x500],1; mov byte ptr [0x100500],2; mov al,0; out 0x92,al; in al,0x92; mov ah,[0x100500]; mov [{LOG}],ax; {FINISH}"
    vm = flat_vm({ENTRY: "mov eax,0x20000; jmp eax", 0x20000: look}, options=options)
    assert finish(vm) == 0
    assert tuple(vm.memory.read(LOG, 2)) == (0, 1 if isinstance(options, HwOptions) else 2)


def test_x87_exceptions_wait_for_wait() -> None:
    """A division by zero that is not masked: FLD1 runs, WAIT raises #MF."""
    kernel = f"""
        mov eax,cr0; or eax,0x22; mov cr0,eax; fninit; push 0x37b; fldcw [esp]; fld1; fldz; .byte 0xde,0xf9
        fld1; fnstsw ax; movzx eax,ax; mov [{LOG}],eax; wait; ud2
    """
    vm = flat_vm(small_kernel(kernel, handlers={16: f"mov dword ptr [{LOG + 4}],16; {FINISH}"}))
    assert finish(vm) == 0
    status, vector = words(vm, LOG, 2)
    assert (status & 0x84, vector) == (0x84, 16), "summary and zero-divide flags"


def test_watchpoints_never_fire() -> None:
    """Quirk 2: a write watchpoint on an address that is written; with no IDT its #DB would end the run."""
    vm = flat_vm(
        {
            0x100000: f"""
            mov eax, 0x3000
            mov dr0, eax
            mov eax, 0xd0001
            mov dr7, eax
            mov dword ptr [0x3000], 1
            mov ebx, dr0
            cmp ebx, 0x3000
            jne 0x100800
            {FINISH}
            """,
            0x100800: "mov al, 1; out 0xf4, al",
        }
    )
    assert finish(vm) == 0


def _user(code: str) -> dict[int, str | bytes]:
    """A kernel that enters user mode, with one directory of large user pages (with paging off all memory is the supervisor's). Its TSS allows
    access to the port that ends the run."""
    tss = 0x22000
    descriptor = 0x0000_8900_0000_0067 | (tss & 0xFFFFFF) << 16
    return {
        0x100000: f"""
        {LGDT.format(hex(_POINTER))}
        mov ax, 0x28
        ltr ax
        mov eax, cr4
        or eax, 0x10
        mov cr4, eax
        mov dword ptr [0x10000], 0x87
        mov eax, 0x10000
        mov cr3, eax
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        mov esp, 0x80000
        push 0x23
        push 0x90000
        push 0x202
        push 0x1b
        push 0x101000
        iretd
        """,
        0x101000: code,
        **_gdt(FLAT_CODE, FLAT_DATA, USER_CODE, USER_DATA, descriptor),
    }


@pytest.mark.parametrize("ring", [1, 3])
def test_user_code_sees_the_machine(ring: int) -> None:
    """Quirk 3: SGDT in user code does not show the guest's own table when it runs directly; translated it does."""
    guest = _user(f"sgdt [0x3000]; mov eax, [0x3002]; cmp eax, {_GDT:#x}; sete al; out 0xf4, al")
    assert finish(flat_vm(guest, ring=ring, timeless=True)) == 0
    assert finish(flat_vm(guest, ring=ring, translate_user=True, timeless=True)) == 1


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("push 0x23; push 0x20002; push 0; push 0; iretd", "virtual-8086"),
        ("push 0x4002; popfd; push 2; push 8; push 0x100000; iretd", "task"),
    ],
)
def test_what_is_not_supported_ends_with_its_name(code: str, name: str) -> None:
    """Quirk 5."""
    vm = flat_vm({0x100000: f"mov esp, 0x80000; {code}; {FINISH}"})
    stop = vm.run(10)
    assert stop.why is End.UNSUPPORTED
    assert name in stop.reason


@pytest.mark.parametrize(("translated", "vector"), ((False, 0x80), (True, 6)), ids=("direct", "translate"))
def test_a_lock_prefix_in_user_code(translated: bool, vector: int) -> None:
    """Quirk 16: LOCK MOV between registers is done in directly run user code; in translated code it is the #UD that it should be."""
    handlers = {6: "mov al,6; out 0xf4,al", 0x80: "mov al,0x80; out 0xf4,al"}
    vm = flat_vm(small_kernel(TO_USER, user=".byte 0xf0,0x89,0xc3; int 0x80", handlers=handlers), translate_user=translated)
    assert finish(vm) == vector


def test_the_window_can_be_read() -> None:
    """Quirk 7: with paging on and nothing mapped there, a read of the window's first word raises no #PF (with no IDT it would end the run)."""
    vm = flat_vm(
        {
            0x100000: """
            mov eax, cr4
            or eax, 0x10
            mov cr4, eax
            mov dword ptr [0x10000], 0x87
            mov eax, 0x10000
            mov cr3, eax
            mov eax, cr0
            or eax, 0x80000000
            mov cr0, eax
            mov eax, dword ptr [0xe8000030]
            mov ebx, cr0
            sub eax, ebx
            out 0xf4, al
            """
        }
    )
    assert finish(vm) == 0


@pytest.mark.parametrize(("options", "offered"), ((BtOptions(), 0), (BtOptions(translate_user=True), 1), (HwOptions(), 1)))
def test_where_users_run_directly_there_is_no_sysenter(options: Options, offered: int) -> None:
    """Quirk 24: CPUID does not name it there."""
    vm = flat_vm({0x100000: "mov eax, 1; cpuid; shr edx, 11; and edx, 1; mov al, dl; out 0xf4, al"}, options=options)
    assert finish(vm) == offered
