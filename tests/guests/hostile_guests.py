"""Guests that run wild, written on purpose: flat code of a few instructions each, every one a way to break a VMM.

Knows assembly, descriptors and page tables. Knows nothing of how a guest is run. Where the translation cache lies is known
to the guests here as it would be to an attacker.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping
from functools import cache

from tests.machine.flat import (
    ENTRY,
    FINISH,
    FLAT_CODE,
    FLAT_DATA,
    LGDT,
    LIDT,
    assemble,
    code_with_base,
    data_with_base,
    gate,
    pack,
    quads,
    system_segment,
)
from tests.machine.small_kernel import DIRECTORY, IDENTITY, LOG, STACK, TABLES, TO_USER, USER, USER_PAGES, USER_TABLE, small_kernel

MEMORY_MIB = 8
MEMORY = MEMORY_MIB << 20
Parts = Mapping[int, str | bytes]

WINDOW, WINDOW_CODE = 0xE8000000, 0xE8400000  # where the translation cache lies by default
LAPIC, IO_APIC, VGA = 0xFEE00000, 0xFEC00000, 0xB8000
IRET, RETF, HANG = ".byte 0xcf", ".byte 0xcb", "hang: jmp hang"
ESP = f"mov esp,{STACK}"
FAR_JUMP = ".byte 0xea; .long {}; .short {}"
PAGING_ON = "mov cr3,eax; mov eax,cr0; or eax,0x80000000; mov cr0,eax"
BIG_PAGES = "mov eax,cr4; or eax,0x10; mov cr4,eax"
TOUCHY = """cli; sti; pushfd; popfd; cli; call f; jmp g; f: ret
    g: mov eax,cr0; mov eax,cs; pushfd; push cs; .byte 0x68; .long h; .byte 0xcf; h: mov eax,cr3"""
"""A little of all that is emulated in the cache."""


def _gdt(*descriptors: int, at: int = 0x120000) -> dict[int, bytes]:
    """A descriptor table at `at`, and at 110000h the operand that loads it."""
    return {0x110000: struct.pack("<HI", 8 * len(descriptors) + 7, at), at: quads((0, *descriptors))}


def _idt(*gates: int) -> dict[int, bytes]:
    """An interrupt table, and at 110008h the operand that loads it."""
    return {0x110008: struct.pack("<HI", 8 * len(gates) - 1, 0x121000), 0x121000: quads(gates)}


_LOAD_GDT, _LOAD_IDT = LGDT.format(0x110000), LIDT.format(0x110008)


def _identity(entry: Callable[[int], int] = lambda region: region << 22 | 0x83) -> bytes:
    """A page directory of 4 MiB pages."""
    return pack(entry(region) for region in range(1024))


def _jumps() -> dict[str, Parts]:
    nowhere = {
        "nowhere": 0xF0000000,
        "behind-ram": MEMORY,
        "zero": 0,
        "vga": VGA,
        "lapic": LAPIC,
        "io-apic": IO_APIC,
        "rom": 0xF0000,
        "top": 0xFFFFFFFF,
    }
    nowhere |= {"window": WINDOW, "cache": WINDOW_CODE, "inside-cache": WINDOW_CODE + 37, "doorbell": WINDOW + 0x1000}
    guests: dict[str, Parts] = {f"jump-{name}": {ENTRY: f"mov eax,{at}; jmp eax"} for name, at in nowhere.items()}
    guests |= {f"call-{name}": {ENTRY: f"{ESP}; mov eax,{at}; call eax"} for name, at in nowhere.items()}
    guests |= {f"return-{name}": {ENTRY: f"{ESP}; push {at}; ret"} for name, at in nowhere.items()}
    guests |= {f"paged-jump-{name}": small_kernel(f"mov eax,{at}; jmp eax") for name, at in nowhere.items()}
    guests |= {f"user-jump-{name}": small_kernel(TO_USER, user=f"mov eax,{at}; jmp eax") for name, at in nowhere.items()}
    guests["far-jump-nowhere"] = {ENTRY: FAR_JUMP.format(0xF0000000, 8)}
    guests["far-jump-bad-selector"] = {ENTRY: FAR_JUMP.format(ENTRY, 0x1230)}
    guests["jump-through-nowhere"] = {ENTRY: "jmp dword ptr [0xf0000000]"}
    guests["jump-through-device"] = {ENTRY: f"call dword ptr [{LAPIC}]"}
    guests["over-the-end-of-ram"] = {ENTRY: f"mov eax,{MEMORY - 64}; jmp eax", MEMORY - 64: b"\x90" * 64}
    guests["instruction-over-the-end-of-ram"] = {ENTRY: f"mov eax,{MEMORY - 3}; jmp eax", MEMORY - 3: b"\xb8\x01\x02"}
    guests["around-4-gib"] = {
        ENTRY: f"{BIG_PAGES}; mov eax,0x200000; {PAGING_ON}; mov eax,0xffffffc0; jmp eax",
        0x200000: _identity(lambda region: 0x400083 if region == 1023 else region << 22 | 0x83),
        0x7FFFC0: b"\x90" * 64,
        0: FINISH,
    }
    guests["instruction-around-4-gib"] = {**guests["around-4-gib"], 0x7FFFC0: b"\x90" * 61 + b"\xb8\x01\x02", 0: b"\0\0\x90\x90" + assemble(FINISH)}
    return guests


def _tables() -> dict[str, Parts]:
    guests: dict[str, Parts] = {}
    for name, root in {"behind-ram": MEMORY, "top": 0xFFFFF000, "lapic": LAPIC, "vga": VGA & ~0xFFF, "own-code": ENTRY, "zero": 0}.items():
        guests[f"cr3-{name}"] = {ENTRY: f"mov eax,{root}; {PAGING_ON}; {HANG}"}
        guests[f"pae-cr3-{name}"] = {ENTRY: f"mov eax,cr4; or eax,0x20; mov cr4,eax; mov eax,{root}; {PAGING_ON}; {HANG}"}
        guests[f"table-{name}"] = small_kernel(f"mov dword ptr [{DIRECTORY + 12}],{root | 7}; mov eax,[0xc00123]; mov [0xc00000],eax; {HANG}")
        guests[f"own-table-{name}"] = small_kernel(f"mov dword ptr [{DIRECTORY}],{root | 7}; mov eax,cr3; mov cr3,eax; {HANG}")
    zeros, ones, noise = b"", b"\xff" * 4096, random.Random(1).randbytes(4096)
    for name, table in {"zeros": zeros, "ones": ones, "noise": noise}.items():
        guests[f"directory-of-{name}"] = {ENTRY: f"{BIG_PAGES}; mov eax,0x200000; {PAGING_ON}; {HANG}", 0x200000: table or bytes(4096)}
        guests[f"pdptes-of-{name}"] = {
            ENTRY: f"mov eax,cr4; or eax,0x20; mov cr4,eax; mov eax,0x200000; {PAGING_ON}; {HANG}",
            0x200000: table or bytes(4096),
        }
    wipe = "xor eax,eax; mov edi,{}; mov ecx,{}; cld; rep stosd; mov eax,cr3; mov cr3,eax; mov eax,[0x345678]"
    guests["wipe-directory"] = small_kernel(f"{wipe.format(DIRECTORY, 1024)}; {HANG}")
    guests["wipe-tables"] = small_kernel(f"{wipe.format(IDENTITY, 2048)}; {HANG}")
    guests["wipe-tables-without-flush"] = small_kernel(f"xor eax,eax; mov edi,{IDENTITY}; mov ecx,2048; rep stosd; mov eax,[0x245678]; {HANG}")
    guests["wipe-all"] = small_kernel(f"{wipe.format(0, 0x100000)}; {HANG}")
    guests["wipe-all-with-ones"] = small_kernel(f"{wipe.format(0, 0x100000).replace('xor eax,eax', 'mov eax,-1')}; {HANG}")
    guests["wipe-tables-from-user"] = small_kernel(
        f"mov dword ptr [{USER_TABLE}+60],{IDENTITY | 7}; mov dword ptr [{USER_TABLE}+56],{DIRECTORY | 7}; {TO_USER}",
        user=f"mov edi,{USER + 0xE000}; mov ecx,2048; xor eax,eax; rep stosd; {HANG}",
    )
    guests["table-maps-itself"] = small_kernel(
        f"mov dword ptr [{DIRECTORY}+4092],{DIRECTORY | 3}; l: inc dword ptr [0xfffffff8]"
        "; xor dword ptr [0xfffff00c],0x1003; mov eax,[0xc00000]; jmp l"
    )
    guests["directory-flips"] = small_kernel(f"l: xor dword ptr [{DIRECTORY}+4],2; mov [{USER}+64],eax; mov eax,cr3; mov cr3,eax; jmp l")
    guests["code-in-table"] = small_kernel(f"mov dword ptr [{IDENTITY}+4092],0xfeeb9090; mov eax,{IDENTITY}+4092; jmp eax")
    guests["stack-in-table"] = small_kernel(f"mov esp,{IDENTITY}+0x800; l: push eax; push 0x2003; mov [0x200000],eax; jmp l")
    guests["stack-in-directory"] = small_kernel(f"mov esp,{DIRECTORY}+0x1000; l: push esp; call k; k: jmp l")
    guests["descriptors-in-table"] = small_kernel(
        f"mov word ptr [{LOG}],0x7ff; mov dword ptr [{LOG}+2],{IDENTITY}; {LGDT.format(LOG)}; mov eax,8; mov ds,eax; {HANG}"
    )
    guests["paging-flaps"] = small_kernel("l: mov eax,cr0; xor eax,0x80000000; mov cr0,eax; jmp l")
    guests["wp-flaps"] = small_kernel(f"l: mov eax,cr0; xor eax,0x10000; mov cr0,eax; mov [{USER}],eax; jmp l")
    guests["pae-flaps"] = small_kernel("l: mov eax,cr4; xor eax,0x20; mov cr4,eax; jmp l")
    guests["invlpg-storm"] = small_kernel(f"l: xor dword ptr [{IDENTITY}+16],0x5000; .byte 0x0f,0x01,0x3d; .long 0x4000; mov eax,[0x4000]; jmp l")
    guests["big-pages-behind-ram"] = {
        ENTRY: f"{BIG_PAGES}; mov eax,0x200000; {PAGING_ON}; mov [0x10000000],eax; mov eax,[0x7fffffff]; mov eax,0x20000000; jmp eax",
        0x200000: _identity(),
    }
    return guests


def _descriptors() -> dict[str, Parts]:
    guests: dict[str, Parts] = {}
    load = {"zero": 0, "behind-ram": MEMORY + 0x1000, "top": 0xFFFFFFFC, "lapic": LAPIC, "own-code": ENTRY, "window": WINDOW}
    for name, base in load.items():
        for limit in (0, 7, 0x17, 0xFFFF):
            table = {0x110000: struct.pack("<HI", limit, base)}
            guests[f"gdt-{name}-{limit:x}"] = {
                ENTRY: f"{ESP}; {_LOAD_GDT}; mov eax,0x10; mov ds,eax; mov ss,eax; {FAR_JUMP.format(ENTRY, 8)}",
                **table,
            }
            guests[f"idt-{name}-{limit:x}"] = {ENTRY: f"{ESP}; {LIDT.format(0x110000)}; int 0x80; int3; ud2", **table}
            guests[f"user-idt-{name}-{limit:x}"] = {**small_kernel(f"{LIDT.format(0x110000)}; {TO_USER}", user="int 0x80; ud2"), **table}
    for base in (0, MEMORY - 4, 0xFFFFFFF0, LAPIC, WINDOW):
        for limit in (0, 3, 0x67):
            tss = _gdt(FLAT_CODE, FLAT_DATA, 0x00CFFB00_0000FFFF, 0x00CFF300_0000FFFF, system_segment(base, limit, 9))
            enter = "push 0x23; push 0x170000; push 0x202; push 0x1b; push 0x130000; .byte 0xcf"
            guests[f"tss-{base:x}-{limit:x}"] = {
                ENTRY: f"{ESP}; {_LOAD_GDT}; {_LOAD_IDT}; mov eax,0x28; ltr ax; {enter}",
                0x130000: f"int 0x80; {HANG}",
                **tss,
                **_idt(*[gate(ENTRY, dpl=3)] * 256),
            }
            guests[f"ldt-{base:x}-{limit:x}"] = {
                ENTRY: f"{ESP}; {_LOAD_GDT}; mov eax,0x28; lldt ax; mov eax,0xc; mov ds,eax; mov ss,eax; .byte 0xea; .long {ENTRY}; .short 4",
                **_gdt(FLAT_CODE, FLAT_DATA, 0, 0, system_segment(base, limit, 2)),
            }
    for kind in range(32):
        odd = FLAT_DATA & ~(0x1F << 40) | kind << 40
        loads = "; ".join(f"mov eax,0x18; mov {register},eax" for register in ("es", "fs", "gs", "ds"))
        guests[f"segment-of-kind-{kind:x}"] = {
            ENTRY: f"{ESP}; {_LOAD_GDT}; {loads}; mov ss,eax; push eax; {FAR_JUMP.format(ENTRY, 0x18)}",
            **_gdt(FLAT_CODE, FLAT_DATA, odd),
        }
        gates = [gate(ENTRY) & ~(0x1F << 40) | kind << 40] * 256
        guests[f"gate-of-kind-{kind:x}"] = {ENTRY: f"{ESP}; {_LOAD_IDT}; int 0x30; ud2", **_idt(*gates)}
    for ring in range(4):
        guests[f"gates-to-ring-{ring}"] = {
            ENTRY: f"{ESP}; {_LOAD_GDT}; {_LOAD_IDT}; int 0x30; ud2",
            **_gdt(FLAT_CODE, FLAT_DATA, FLAT_CODE | ring << 45, FLAT_CODE | ring << 45 | 1 << 42),
            **_idt(*[gate(ENTRY, selector=0x18 | ring), gate(ENTRY, selector=0x20 | ring)] * 64),
        }
    based = [(name, base) for name, base in (("page", 0x1000), ("odd", 0x12345), ("behind-ram", MEMORY), ("top", 0xFFFFF001), ("half", 0x80000000))]
    for name, base in based:
        table = _gdt(FLAT_CODE, FLAT_DATA, code_with_base(base), data_with_base(base))
        guests[f"cs-base-{name}"] = {
            ENTRY: f"{ESP}; {_LOAD_GDT}; {FAR_JUMP.format(0x130000, 0x18)}",
            0x130000 + base & 0x7FFFFF: TOUCHY + "; " + HANG,
            **table,
        }
        guests[f"ss-base-{name}"] = {ENTRY: f"{_LOAD_GDT}; mov eax,0x20; mov ss,eax; {ESP}; {TOUCHY}; {FINISH}", **table}
        guests[f"ds-base-{name}"] = {
            ENTRY: f"{ESP}; {_LOAD_GDT}; mov eax,0x20; mov ds,eax; mov es,eax; {TOUCHY}; {_LOAD_IDT}; mov [0],eax; {FINISH}",
            **table,
        }
    many = [code_with_base(0x1000 * n) for n in range(64)]
    targets = {0x130000 + 0x1000 * n: f"{FAR_JUMP.format(0x130000, 8 * (1 + (n + 1) % 64))}" for n in range(64)}
    guests["many-code-bases"] = {ENTRY: f"{ESP}; {_LOAD_GDT}; {FAR_JUMP.format(0x130000, 8)}", **_gdt(*many), **targets}
    stacks = "; ".join(f"mov eax,{8 * (3 + n)}; mov ss,eax; push eax; pop ebx; pushfd; popfd; call c{n}; c{n}:" for n in range(24))
    guests["many-stack-bases"] = {
        ENTRY: f"{ESP}; {_LOAD_GDT}; l: {stacks}; jmp l",
        **_gdt(FLAT_CODE, FLAT_DATA, *(data_with_base(16 * n) for n in range(24))),
    }
    half = FLAT_CODE & ~(1 << 54), FLAT_DATA & ~(1 << 54)
    guests["16-bit-code"] = {
        ENTRY: f"{ESP}; {_LOAD_GDT}; {FAR_JUMP.format(0x3000, 0x18)}",
        0x3000: random.Random(2).randbytes(512),
        **_gdt(FLAT_CODE, FLAT_DATA, *half),
    }
    guests["16-bit-stack"] = {
        ENTRY: f"{_LOAD_GDT}; mov eax,0x20; mov ss,eax; mov esp,0x12340002; l: {TOUCHY}; pushad; jmp l",
        **_gdt(FLAT_CODE, FLAT_DATA, *half),
    }
    down = FLAT_DATA | 1 << 42
    guests["expand-down-stack"] = {ENTRY: f"{_LOAD_GDT}; mov eax,0x18; mov ss,eax; {ESP}; {TOUCHY}; {FINISH}", **_gdt(FLAT_CODE, FLAT_DATA, down)}
    for end in (2, 6, 10):
        guests[f"gdt-over-a-page-end-{end}"] = {
            **small_kernel(f"mov dword ptr [{IDENTITY + 4 * 0x141}],0; {LGDT.format(LOG)}; mov eax,8; mov ds,eax; mov eax,0x10; mov ss,eax; {HANG}"),
            LOG: struct.pack("<HI", 0x1F, 0x141000 - end),
            0x141000 - end: quads((0, FLAT_DATA))[:end],
        }
    guests["gdt-in-the-stack"] = {
        ENTRY: f"mov esp,0x120800; {_LOAD_GDT}; l: push 0x00cf9300; push 0x0000ffff; mov eax,8; push ds; mov ds,eax; pop ds; add esp,8; jmp l",
        **_gdt(FLAT_DATA, FLAT_DATA, FLAT_CODE),
    }
    guests["gdt-rewritten"] = small_kernel(f"l: xor byte ptr [{TABLES}+0x15],0x80; mov eax,0x10; mov es,eax; push ds; pop ds; jmp l")
    guests["selector-storm"] = small_kernel(
        "xor ebx,ebx; l: inc ebx; mov es,ebx; jmp l", handlers={13: f"add dword ptr [esp+4],2; add esp,4; {IRET}"}
    )
    return guests


def _stacks() -> dict[str, Parts]:
    guests: dict[str, Parts] = {}
    for esp in (0, 1, 3, 4, 0xFFFFFFFF, 0xFFFFFFFD, 0x80000000, MEMORY, VGA, LAPIC, WINDOW + 0x40, WINDOW + 0x1044, WINDOW_CODE + 64, ENTRY + 8):
        for name, body in {
            "push": "push eax",
            "call": "call f; f: nop",
            "pushad": "pushad",
            "pop": "pop eax",
            "ret": "ret",
            "flags": "popfd",
            "iret": IRET,
        }.items():
            guests[f"{name}-at-{esp:x}"] = {ENTRY: f"mov esp,{esp}; {body}; {FINISH}"}
        guests[f"interrupt-at-{esp:x}"] = {ENTRY: f"{_LOAD_IDT}; mov esp,{esp}; int 0x30; {FINISH}", **_idt(*[gate(0x130000)] * 256), 0x130000: IRET}
        guests[f"paged-{esp:x}"] = small_kernel(f"mov esp,{esp}; {TOUCHY}; {FINISH}")
        guests[f"user-{esp:x}"] = small_kernel(TO_USER, user=f"mov esp,{esp}; push eax; call f; f: pushfd; popfd; int 0x80")
    for name, body in {
        "push": "push eax",
        "pushad": "pushad",
        "call": "call l",
        "enter": "enter 64,31",
        "pushfd": "pushfd",
        "int": "int 0x30",
    }.items():
        guests[f"{name}-loop"] = {ENTRY: f"{ESP}; {_LOAD_IDT}; l: {body}; jmp l", **_idt(*[gate(ENTRY)] * 256)}
        guests[f"paged-{name}-loop"] = small_kernel(f"l: {body}; jmp l")
        guests[f"user-{name}-loop"] = small_kernel(TO_USER, user=f"l: {body}; jmp l", handlers={14: IRET, 13: IRET})
    frames = [random.Random(n) for n in range(12)]
    for n, noise in enumerate(frames):
        pushes = "; ".join(f"push {noise.choice((noise.getrandbits(32), noise.getrandbits(5), ENTRY, 0x20202))}" for _ in range(10))
        for name, back in {"iret": IRET, "retf": RETF, "popfd": "popfd; popfd", "popad": "popad; ret"}.items():
            guests[f"{name}-noise-{n}"] = small_kernel(f"{pushes}; {back}")
    guests["iret-to-v86"] = small_kernel(f"push 0; push 0; push 0; push 0; push 0; push 0x1000; push 0x20202; push 0x1000; push 0; {IRET}")
    guests["iret-nested-task"] = small_kernel(f"push 0x4202; popfd; push 2; push 8; push 0; {IRET}")
    return guests


def _code() -> dict[str, Parts]:
    """Code that writes code."""
    guests: dict[str, Parts] = {
        "smc-own-loop": {ENTRY: "l: inc dword ptr [m+1]; m: mov eax,1; jmp l"},
        "smc-next-instruction": {ENTRY: "l: xor byte ptr [m],0x08; m: inc eax; dec ecx; jmp l"},
        "smc-self": {ENTRY: "l: mov byte ptr [l],0xc6; jmp l"},
        "smc-wipe-self": {ENTRY: f"mov edi,{ENTRY}; mov ecx,4096; mov al,0x90; cld; rep stosb; {HANG}"},
        "smc-wipe-with-invalid": {ENTRY: f"mov edi,{ENTRY}; mov ecx,4096; mov al,0xff; cld; rep stosb; {HANG}"},
        "smc-copy-onward": {ENTRY: f"l: mov esi,{ENTRY}; mov edi,{ENTRY}+0x40; n: mov ecx,0x40; rep movsb; jmp n2; n2: jmp edi"},
        "smc-locked": {ENTRY: "l: mov eax,[m]; lock xadd [m],eax; m: nop; nop; nop; nop; jmp l"},
        "smc-two-pages": {
            ENTRY: f"l: inc byte ptr [0x131001]; mov eax,0x131000; call eax; jmp l; {'nop;' * 4}",
            0x131000: f"mov al,1; inc byte ptr [{ENTRY}+99]; ret",
        },
        "smc-growing": {
            ENTRY: f"mov edi,{ENTRY}+64; l: mov byte ptr [edi],0x90; mov byte ptr [edi+1],0xc3; call k; inc edi; jmp l"
            f"; k: mov eax,{ENTRY}+64; jmp eax"
        },
        "smc-by-the-stack": {
            ENTRY: f"mov esp,{ENTRY}+0x100; l: push 0x90909090; pop eax; push eax; cmp esp,{ENTRY}+0x40; ja l; mov esp,{ENTRY}+0x100; jmp l"
        },
        "smc-across-pages": {ENTRY: "mov eax,0x131ffe; l: inc dword ptr [0x131fff]; call eax; jmp l", 0x131FFE: b"\xb8\1\2\3\4\xc3"},
        "jump-everywhere": {
            ENTRY: f"l: imul ebx,ebx,1103515245; add ebx,12345; mov eax,ebx; and eax,0xfffff; add eax,0x200000; call eax; jmp l; {HANG}",
            0x200000: b"\xc3" * 0x100000,
        },
        "translate-everything": {ENTRY: "mov eax,0x200000; jmp eax", 0x200000: (b"\xe9\x0b\0\0\0" + b"\x90" * 11) * 0x8000},
        "prefixes": {ENTRY: b"\x66\x67\xf2\x2e" * 8 + b"\x90"},
        "endless-prefixes": {ENTRY: "mov eax,0x200000; jmp eax", 0x200000: b"\x66" * 0x10000},
        "lock-storm": {ENTRY: b"\xf0\x90\xf0\xfa\xf0\xcf"},
        "absent-next-page": small_kernel(f"mov dword ptr [{IDENTITY + 4 * 0x141}],0; mov eax,0x140ffd; jmp eax") | {0x140FFD: b"\xb8\1\2"},
    }
    storm = f"mov eax,0x20000000; l: xor byte ptr [{USER}+0x100],1; jmp l"
    guests["user-smc-same-page"] = small_kernel(TO_USER, user=storm)
    guests["user-smc-alias"] = small_kernel(
        TO_USER, user=f"l: inc byte ptr [{USER}+0x20101]; mov eax,{USER}+0x100; call eax; jmp l; {'nop;' * 8}"
    ) | {USER_PAGES + 0x100: b"\xb0\x01\xc3"}
    guests["user-runs-its-stack"] = small_kernel(TO_USER, user="l: push 0x90c39090; mov eax,esp; call eax; add esp,4; jmp l")
    return guests


def _scribbling() -> dict[str, Parts]:
    """Writes over the whole linear address space, the window of the translation cache included."""
    guests: dict[str, Parts] = {}
    big = {0x200000: _identity()}
    setups = {"unpaged": "", "identity": f"{BIG_PAGES}; mov eax,0x200000; {PAGING_ON};"}
    for name, setup in setups.items():
        for start in (0x300000, 0x80000000, WINDOW - 0x1000, WINDOW, WINDOW + 0x1000, WINDOW_CODE - 16, WINDOW_CODE, 0xFFFFF000):
            for value in (0, 0xFFFFFFFF, ENTRY):
                code = f"{ESP}; {setup} mov eax,{value}; mov edi,{start}; mov ecx,0x800000; cld; rep stosd; {TOUCHY}; jmp {ENTRY}"
                guests[f"{name}-scribble-{start:x}-{value:x}"] = {ENTRY: code, **big}
        guests[f"{name}-scribble-all"] = {ENTRY: f"{ESP}; {setup} l: mov [edi],eax; add edi,4096; {TOUCHY}; jmp l", **big}
        guests[f"{name}-scribble-by-word"] = {ENTRY: f"{ESP}; {setup} mov edi,{WINDOW}; l: mov [edi],edi; add edi,4; {TOUCHY}; jmp l", **big}
        guests[f"{name}-read-all"] = {ENTRY: f"{ESP}; {setup} l: add eax,[edi]; add edi,4096; jmp l", **big}
        guests[f"{name}-locked"] = {ENTRY: f"{ESP}; {setup} mov edi,{WINDOW}; l: lock inc dword ptr [edi]; add edi,4; {TOUCHY}; jmp l", **big}
        for n in range(8):
            noise = random.Random(n)
            stores = "; ".join(f"mov dword ptr [{WINDOW + 4 * noise.randrange(32)}],{noise.getrandbits(32)}" for _ in range(24))
            guests[f"{name}-window-words-{n}"] = {ENTRY: f"{ESP}; {setup} l: {stores}; {TOUCHY}; jmp l", **big}
    guests["user-scribble-window"] = small_kernel(
        TO_USER, user=f"mov edi,{WINDOW}; l: mov [edi],eax; add edi,4; jmp l", handlers={14: f"add dword ptr [esp+4],2; add esp,4; {IRET}"}
    )
    guests["user-reads-window"] = small_kernel(
        TO_USER, user=f"mov edi,{WINDOW}; l: mov eax,[edi]; add edi,4096; jmp l", handlers={14: f"add dword ptr [esp+4],2; add esp,4; {IRET}"}
    )
    return guests


def _machine() -> dict[str, Parts]:
    """Registers and devices."""
    guests: dict[str, Parts] = {}
    for register in ("cr0", "cr3", "cr4"):
        for bit in range(32):
            guests[f"{register}-bit-{bit}"] = {ENTRY: f"{ESP}; mov eax,{register}; xor eax,{1 << bit}; mov {register},eax; {TOUCHY}; {FINISH}"}
            guests[f"paged-{register}-bit-{bit}"] = small_kernel(f"mov eax,{register}; xor eax,{1 << bit}; mov {register},eax; {TOUCHY}; {FINISH}")
    for name, code in {
        "wrmsr": "xor ecx,ecx; l: mov eax,-1; mov edx,-1; wrmsr; inc ecx; jmp l",
        "wrmsr-high": "mov ecx,0xc0000080; l: mov eax,ecx; mov edx,0; wrmsr; inc ecx; jmp l",
        "rdmsr": "xor ecx,ecx; l: rdmsr; inc ecx; jmp l",
        "cpuid": "xor eax,eax; l: push eax; cpuid; pop eax; inc eax; jmp l",
        "debug-registers": "mov eax,-1; mov dr7,eax; mov dr6,eax; mov dr0,eax; mov eax,dr7; l: jmp l",
        "trap-flag": "push 0x102; popfd; l: inc eax; cli; sti; pushfd; jmp l",
        "all-flags": "push -1; popfd; l: inc eax; cli; sti; pushfd; popfd; jmp l",
        "hlt": "hlt",
        "sti-hlt": "l: sti; hlt; jmp l",
        "sti-storm": "l: sti; cli; jmp l",
        "triple": "ud2",
        "sysenter": "sysenter",
        "syscall": "syscall",
        "rsm": "rsm",
        "enter": "mov ebp,0; enter 0xffff,31",
        "fxsave": f"fxsave [{WINDOW}]; fxrstor [{WINDOW}]; fxsave [1]; fnsave [{LAPIC}]; l: jmp l",
        "cmpxchg8b": f"lock cmpxchg8b [{WINDOW}]; cmpxchg8b [{LAPIC}]; cmpxchg8b [{MEMORY} - 4]; l: jmp l",
        "bit-strings": f"mov eax,0x7fffffff; bts [{ENTRY}],eax; btr [{WINDOW}],eax; l: jmp l",
        "devices": "; ".join(f"mov dword ptr [{base + 16 * n}],-1; mov eax,[{base + 16 * n}]" for base in (LAPIC, IO_APIC) for n in range(64))
        + "; l: jmp l",
        "odd-device-accesses": f"mov eax,[{LAPIC}+1]; mov ax,[{LAPIC}+0xfff]; push dword ptr [{LAPIC}+0x30]; pop dword ptr [{VGA}]; mov edi,{LAPIC}; "
        "mov ecx,2048; rep stosb; mov edi,0xfec00010; mov ecx,64; .byte 0xf3,0xa5; l: jmp l",
        "ports-in": "mov edx,0; l: in al,dx; in ax,dx; in eax,dx; inc edx; jmp l",
        "ports-out": "mov edx,0; l: mov eax,edx; cmp dl,0xf4; je n; out dx,al; out dx,ax; out dx,eax; n: inc edx; jmp l",
        "ports-out-ones": "mov edx,0; mov eax,-1; l: cmp dl,0xf4; je n; out dx,al; out dx,ax; out dx,eax; n: inc edx; jmp l",
        "ports-out-noise": "mov ebx,1; l: imul ebx,ebx,1664525; add ebx,1013904223; mov edx,ebx; shr edx,16; and edx,0x3ff; mov eax,ebx; shr eax,8; "
        "cmp dl,0xf4; je l; cmp dl,0x64; je l; cmp dl,0x92; je l; out dx,al; out dx,ax; in al,dx; sti; cli; jmp l",
        "string-ports": f"mov edx,0x1f0; mov edi,{ENTRY}; mov ecx,4096; rep insb; l: jmp l",
        "string-ports-nowhere": f"mov edx,0x60; mov edi,0xf0000000; mov ecx,-1; rep insd; mov esi,{LAPIC}; "
        "mov edx,0x80; mov ecx,4096; rep outsw; l: jmp l",
    }.items():
        guests[name] = {ENTRY: f"{ESP}; {code}"}
        guests[f"paged-{name}"] = small_kernel(code)
        guests[f"skipping-{name}"] = small_kernel(code, handlers={vector: SKIP[vector] for vector in range(20)})
        guests[f"user-{name}"] = small_kernel(TO_USER, user=code, handlers={vector: SKIP[vector] for vector in range(20)})
    return guests


SKIP = {vector: f"{'add esp,4; ' if vector in (8, 10, 11, 12, 13, 14, 17) else ''}inc dword ptr [esp]; {IRET}" for vector in range(256)}
"""Handlers that go on one byte further."""


@cache
def written_guests() -> dict[str, Parts]:
    """The guests written on purpose, by name."""
    return _jumps() | _tables() | _descriptors() | _stacks() | _code() | _scribbling() | _machine()
