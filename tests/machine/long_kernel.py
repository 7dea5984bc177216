"""A guest in long mode for tests: from protected mode through the switch to 64-bit code, with tables for users and the handlers that a test gives.

Linear memory: the first 4 MiB are identical and the supervisor's, and once more from HIGH on; the user's pages follow (USER), and once more
behind them (ALIAS), writable through both, and not executable there. LOG is memory for what a test wants to know. All interrupts are masked.
"""

from collections.abc import Mapping

from tests.assembly import assemble_long
from tests.machine.flat import ENTRY, FLAT_CODE, FLAT_DATA, USER_CODE, USER_DATA, assemble, finish, flat_vm, pack, quads
from tests.machine.small_kernel import ABSENT, HANDLERS, LOG, STACK, USER_PAGES
from vmm.backends.hw import HwOptions
from vmm.vm import Vm

HIGH = 0xFFFF_8000_0000_0000
TOP, POINTERS, DIRECTORY, IDENTITY, USER_TABLE = 0x300000, 0x301000, 0x302000, 0x303000, 0x305000
USER, ALIAS, USER_COUNT = 0x400000, 0x420000, 16
USER_STACK, IST_STACK = USER + 0x8000, 0x178000
LAPIC_PAGE = 0x3E0000  # linear, the local APIC's
LONG_CODE, LONG_USER_CODE = 0x00AF9B00_0000FFFF, 0x00AFFB00_0000FFFF
GDT, IDT, TSS, _POINTERS = 0x310000, 0x311000, 0x312000, 0x313000
KERNEL_CS, KERNEL_SS, USER_CS_32, USER_SS, USER_CS, _TSS_SELECTOR, KERNEL_CS_32 = 0x08, 0x10, 0x1B, 0x23, 0x2B, 0x30, 0x40
NX = 1 << 63
TO_USER = f"push {USER_SS}; push {USER_STACK}; push 0x202; push {USER_CS}; push {USER}; iretq"
_LONG = ENTRY + 0x100
_SWITCH = f"""
    .byte 0x0f,0x01,0x15; .long {_POINTERS}; mov al,0xff; out 0x21,al
    mov eax,cr4; or eax,0x20; mov cr4,eax; mov eax,{TOP}; mov cr3,eax
    mov ecx,0xc0000080; mov eax,0x901; xor edx,edx; wrmsr
    mov eax,cr0; or eax,0x80010000; mov cr0,eax
    .byte 0xea; .long {_LONG}; .short {KERNEL_CS}
"""
_START = f"""
    mov eax,{KERNEL_SS}; mov ds,eax; mov es,eax; mov ss,eax; mov rsp,{STACK}
    lidt [{_POINTERS + 16}]; mov eax,{_TSS_SELECTOR}; ltr ax
    mov ecx,0xc0000081; xor eax,eax; mov edx,{USER_CS_32 << 16 | KERNEL_CS}; wrmsr
"""


def long_gate(offset: int, *, dpl: int = 0, stack: int = 0, selector: int = KERNEL_CS) -> bytes:
    """A 64-bit interrupt gate."""
    return quads([offset & 0xFFFF | selector << 16 | stack << 32 | (0x8E00 | dpl << 13) << 32 | (offset >> 16 & 0xFFFF) << 48, offset >> 32])


def long_kernel(
    then: str, *, user: str = "l: jmp l", handlers: Mapping[int, str] | None = None, stacks: Mapping[int, int] | None = None
) -> dict[int, bytes]:
    """The parts of a guest: `then` runs in the kernel after set-up (TO_USER enters `user`), handlers by vector; stacks: the IST numbers of some."""
    made = {vector: assemble_long(source, HANDLERS + 0x100 * vector) for vector, source in (handlers or {}).items()}
    gates = [
        long_gate(HANDLERS + 0x100 * vector, dpl=3 if vector >= 0x80 else 0, stack=(stacks or {}).get(vector, 0)) if vector in made else bytes(16)
        for vector in range(256)
    ]
    tss = 0x67 | (TSS & 0xFFFFFF) << 16 | 0x89 << 40
    gdt = [0, LONG_CODE, FLAT_DATA, USER_CODE, USER_DATA, LONG_USER_CODE, tss, 0, FLAT_CODE]
    identity = [page << 12 | (2 if ABSENT <= page << 12 < ABSENT + 0x10000 else 3) for page in range(1024)]
    identity[LAPIC_PAGE >> 12] = 0xFEE0001B
    pages = [USER_PAGES + 0x1000 * n | 7 for n in range(USER_COUNT)]
    between = [0] * ((ALIAS - USER >> 12) - USER_COUNT)
    top = [0] * 512
    top[0] = top[256] = POINTERS | 7
    parts = {
        ENTRY: assemble(_SWITCH, ENTRY).ljust(_LONG - ENTRY, b"\x90") + assemble_long(f"{_START}; {then}", _LONG),
        USER_PAGES: assemble_long(user, USER),
        GDT: quads(gdt),
        IDT: b"".join(gates),
        TSS: pack([0, STACK, 0, 0, 0, 0, 0, 0, 0, IST_STACK, *([0] * 15), 0x68 << 16]),
        _POINTERS: pack([len(gdt) * 8 - 1 | (GDT & 0xFFFF) << 16, GDT >> 16, 0, 0, 0xFFF | (IDT & 0xFFFF) << 16, IDT >> 16, 0]),
        TOP: quads(top),
        POINTERS: quads([DIRECTORY | 7]),
        DIRECTORY: quads([IDENTITY | 3, IDENTITY + 0x1000 | 3, USER_TABLE | 7]),
        IDENTITY: quads(identity),
        USER_TABLE: quads([*pages, *between, *(page | NX for page in pages)]),
    }
    return parts | {HANDLERS + 0x100 * vector: code for vector, code in made.items()}


def run_long(parts: dict[int, bytes], exit_on: frozenset[tuple[str, int]] = frozenset()) -> Vm:
    """The VM after its guest reported 0."""
    vm = flat_vm(parts, options=HwOptions(mmu="nested", exit_on=exit_on))
    assert finish(vm) == 0
    return vm


def log(vm: Vm, count: int) -> list[int]:
    """`count` 64-bit words from LOG."""
    return [int.from_bytes(vm.memory.read(LOG + 8 * n, 8), "little") for n in range(count)]
