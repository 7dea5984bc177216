"""A guest of a page or two for tests: paging on, a GDT, a TSS and an IDT with the handlers that a test gives, and user code.

Linear memory: the first 4 MiB are identical and the supervisor's; the user's pages follow (USER), and once more behind them
(ALIAS), writable through both. LOG is memory for what a test wants to know. All interrupts are masked.
"""

from collections.abc import Mapping

from tests.machine.flat import ENTRY, FLAT_CODE, FLAT_DATA, USER_CODE, USER_DATA, assemble, gate, pack, quads, system_segment

HANDLERS, USER_PAGES, LOG, DIRECTORY, TABLES, IDENTITY, USER_TABLE = 0x110000, 0x180000, 0x200000, 0x300000, 0x310000, 0x301000, 0x302000
USER, ALIAS, USER_COUNT = 0x400000, 0x420000, 16
STACK, USER_STACK = 0x170000, USER + 0x8000
ABSENT = 0x3F0000  # the 64 KiB from here on lack nothing but the present bit
_GDT, _IDT, _TSS, _POINTERS = TABLES, TABLES + 0x1000, TABLES + 0x2000, TABLES + 0x3000
TO_USER = f"push 0x23; push {USER_STACK}; push 0x202; push 0x1b; push {USER}; .byte 0xcf"
_START = f"""
    .byte 0x0f,0x01,0x15; .long {_POINTERS}
    .byte 0x0f,0x01,0x1d; .long {_POINTERS + 8}
    mov eax,0x10; mov ds,eax; mov es,eax; mov ss,eax; mov esp,{STACK}
    mov eax,0x28; ltr ax; mov al,0xff; out 0x21,al
    mov eax,{DIRECTORY}; mov cr3,eax; mov eax,cr0; or eax,0x80000000; mov cr0,eax
"""


def small_kernel(then: str, *, user: str = "l: jmp l", handlers: Mapping[int, str] | None = None) -> dict[int, bytes]:
    """The parts of a guest: `then` runs in the kernel after set-up (TO_USER enters `user` with DS flat for users), handlers by vector."""
    made = {vector: assemble(source, HANDLERS + 0x100 * vector) for vector, source in (handlers or {}).items()}
    idt = [gate(HANDLERS + 0x100 * vector, dpl=3 if vector >= 0x80 else 0) if vector in made else 0 for vector in range(256)]
    gdt = [0, FLAT_CODE, FLAT_DATA, USER_CODE, USER_DATA, system_segment(_TSS, 0x67, 9)]
    identity = [page << 12 | (2 if ABSENT <= page << 12 < ABSENT + 0x10000 else 3) for page in range(1024)]
    pages = [USER_PAGES + 0x1000 * n | 7 for n in range(USER_COUNT)]
    between = [0] * ((ALIAS - USER >> 12) - USER_COUNT)
    parts = {
        ENTRY: assemble(f"{_START}; {then}", ENTRY),
        USER_PAGES: assemble(f"mov eax,0x23; mov ds,eax; mov es,eax; {user}", USER),
        _GDT: quads(gdt),
        _IDT: quads(idt),
        _TSS: pack([0, STACK, 0x10, *([0] * 22), 0x68 << 16]),
        _POINTERS: pack([0x2F | (_GDT & 0xFFFF) << 16, _GDT >> 16, 0x7FF | (_IDT & 0xFFFF) << 16, _IDT >> 16]),
        DIRECTORY: pack([IDENTITY | 3, USER_TABLE | 7]),
        IDENTITY: pack(identity),
        USER_TABLE: pack([*pages, *between, *pages]),
    }
    return parts | {HANDLERS + 0x100 * vector: code for vector, code in made.items()}
