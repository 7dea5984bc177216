"""Programs at privilege levels outside of 0: what they may do, and how they are entered and left."""

from __future__ import annotations

from collections.abc import Mapping

from tests.oracle.program import Program
from tests.oracle.segmented import ANY, BASE, INNER, LOG_EAX, NARROW_CODE, STACKS, enter, far, finish, log, narrow_code, program
from tests.oracle.snippets import DATA, IRET, LOG_SELECTORS, RETF, S, shown

_PRIVILEGED = {
    "cli": "cli",
    "sti": "sti",
    "hlt": "hlt",
    "clts": "clts",
    "mov eax,cr0": "mov eax,cr0",
    "mov cr3,eax": "mov cr3,eax",
    "mov dr0,eax": "mov dr0,eax",
    "mov eax,dr7": "mov eax,dr7",
    "wbinvd": "wbinvd",
    "invd": ".byte 0x0f,0x08",
    "invlpg": "invlpg [esp]",
    "lgdt": ".byte 0x0f,0x01,0x14,0x24",
    "ltr": "mov eax,0x28; ltr ax",
    "lldt": "xor eax,eax; lldt ax",
    "lmsw": "lmsw ax",
    "rdmsr": "mov ecx,0x174; rdmsr",
    "in": "in al,0x21",
    "out": "mov dx,0xe8; out dx,eax",
    "ins": "mov edx,0x21; mov edi,esp; insb",
    "rep outs": "mov edx,0x80; mov esi,esp; mov ecx,2; rep outsb",
}


def at_levels() -> dict[str, Program]:
    """What each privilege level outside of 0 may do, and how it is entered and left."""
    made: dict[str, Program] = {}
    for level in (1, 2, 3):
        own = S[f"data{level}"] | level
        into = enter(level)

        def case(
            name: str, user: str, *, kernel: str = "", inner: str = "", into: str = into, parts: Mapping[int, str | bytes] | None = None
        ) -> None:
            made[f"level {level}: {name}"] = program(f"{kernel}; {into}", user=f"{user}; ud2", inner=inner, parts=parts)  # noqa: B023

        case("selectors kept and dropped", LOG_SELECTORS)
        mixed = f"mov eax,{S['data1']}; mov es,eax; mov eax,{S['data2'] | 1}; mov fs,eax; mov eax,{S['conforming0']}; mov gs,eax"
        case("selectors kept by privilege", LOG_SELECTORS, kernel=mixed)
        case(
            "readable code in data registers",
            LOG_SELECTORS,
            kernel=f"mov eax,{S['code0']}; mov es,eax; mov eax,{S['code2']}; mov fs,eax; mov eax,{S['code3']}; mov gs,eax",
        )
        for name, code in _PRIVILEGED.items():
            case(f"privileged: {name}", code)
            case(f"IOPL {level}: {name}", f"{DATA}{code}; pushfd; pop eax; call {LOG_EAX:#x}", into=enter(level, flags=level << 12 | 2))
        case(
            "flags",
            f"{DATA} pushfd; pop eax; {log('eax')}; push 0x3ed7; popfd; pushfd; pop eax; push 2; popfd; {log('eax')}",
            into=enter(level, flags=0x1202),
        )
        case("flags by iret", f"{DATA} push 0x3ad7; .byte 0x0e; push {ANY:#x}; {IRET}", parts={ANY: f"pushfd; pop eax; cld; {log('eax')}; ud2"})
        for name in (
            "data0",
            "data1",
            "data2",
            "data3",
            "code0",
            "conforming0",
            "fresh_data3",
            "absent_data3",
            "execute_only",
            "tss",
            "ldt_data0",
            "ldt_data3",
            "down3",
        ):
            for rpl in (0, 3):
                case(f"mov fs,{name} rpl {rpl}", f"mov eax,{S[name] | rpl:#x}; mov fs,eax; {LOG_SELECTORS}")
        for name, register in (
            ("null", 0),
            ("null 3", 3),
            ("own", own),
            ("inner", 0x10),
            ("rpl", own & ~3),
            ("outer", 0x23),
            ("absent", S["absent_data3"] | 3),
            ("read only", S["read_only"]),
        ):
            case(f"mov ss,{name}", f"{DATA} mov eax,{register:#x}; mov ss,eax; {log('esp')}; {LOG_SELECTORS}")
        case("null data segments", "xor eax,eax; mov ds,eax; mov eax,3; mov es,eax; mov eax,1; mov fs,eax; mov eax,2; mov gs,eax; " + LOG_SELECTORS)
        case(
            "pop and far pointers",
            f"{DATA} push 0x23; pop fs; push 0x23; push 0x1234; .byte 0x0f,0xb5,0x04,0x24; {log('eax')}; pop eax; pop eax; push 0x10; pop es",
        )
        for vector in (0x40, 0x41, 0x42, 0x45):
            case(f"int {vector:x}", f"int {vector:#x}; {LOG_SELECTORS} {log('esp')}", inner=shown(6, IRET))
        case("int 46", "int 0x46")
        case("int 47", "int 0x47")
        case("int3", "int3")
        case("ud2", "ud2")
        frame = narrow_code("mov bp,sp; mov dx,[bp]; mov si,[bp+2]; mov di,[bp+4]; mov ecx,[bp+6]; .byte 0x66; pushf; ud2", 0x4000)
        case("int through a 16-bit gate", "int 0x43", parts={NARROW_CODE + 0x4000: frame}, into=enter(level, flags=0x202))
        case("int through a 16-bit trap gate", "int 0x44", parts={NARROW_CODE + 0x4000: frame}, into=enter(level, flags=0x202))
        for gate_ in ("gate0", "gate1", "gate_private", "gate_absent", "gate_null", "gate_data", "gate_same3", "gate1_16", "ldt", "data3"):
            count = 2 if gate_ in ("gate0", "gate_same3") else 1
            back = f"{DATA} .byte 0xca,{4 * count},0" if level == 3 or gate_ not in ("gate1", "gate_same3") else f".byte 0xca,{4 * count},0"
            for rpl in (0, level):
                case(
                    f"call {gate_} rpl {rpl}",
                    f"push 0x1111; push 0x2222; {far('call', S[gate_] | rpl, 0x12345)}; {LOG_SELECTORS} {log('esp')}",
                    inner=shown(7, back if gate_ != "gate1_16" else "ud2"),
                    parts={0x4000: f"jmp {INNER:#x}"} if gate_ == "gate1_16" else None,
                )
                case(f"jmp {gate_} rpl {rpl}", far("jmp", S[gate_] | rpl, 0x12345), inner=f"{LOG_SELECTORS} ud2", parts={0x4000: f"jmp {INNER:#x}"})
        case(
            "call through a 16-bit gate with parameters",
            f"push 0x22221111; push 0x44443333; {far('call', S['gate0_16'], 0)}; {DATA} {log('esp', 'ebx', 'edx', 'esi', 'edi')}; ud2",
            parts={NARROW_CODE + 0x4000: narrow_code("mov bp,sp; mov bx,[bp]; mov dx,[bp+4]; mov si,[bp+8]; mov di,[bp+10]; .byte 0xca,6,0", 0x4000)},
        )
        case(
            "indirect call through a gate",
            f"{DATA} push 0x1111; push 0x2222; push {S['gate0']:#x}; push 0; .byte 0xff,0x1c,0x24; ud2",
            inner=shown(7, ".byte 0xca,8,0"),
        )
        for name in (
            "code0",
            "code1",
            "code2",
            "code3",
            "conforming0",
            "conforming3",
            "absent_code",
            "ldt_code3",
            "ldt_code0",
            "based_code3",
            "fresh_code",
        ):
            for rpl in (0, 3):
                at = ANY - BASE if name == "based_code3" else ANY
                case(f"call {name} rpl {rpl}", f"{far('call', S[name] | rpl, at)}; {LOG_SELECTORS}", parts={ANY: shown(3, RETF)})
                case(f"jmp {name} rpl {rpl}", far("jmp", S[name] | rpl, at), parts={ANY: f"{LOG_SELECTORS} ud2"})
                case(f"retf {name} rpl {rpl}", f"push {S[name] | rpl:#x}; push {at:#x}; {RETF}", parts={ANY: f"{LOG_SELECTORS} ud2"})
        case("iret inwards", f"push 0x10; push 0x1000; push 2; push 8; push {ANY:#x}; {IRET}", parts={ANY: finish()})
        case("hidden state", f"{LOG_SELECTORS} int 0x40; {LOG_SELECTORS}", inner=IRET)
        if level < 3:
            case(
                "retf outwards",
                f"push 0x23; push {STACKS[3]:#x}; push 7; push 0x1b; push {ANY:#x}; .byte 0xca,4,0",
                parts={ANY: f"{LOG_SELECTORS} {log('esp')}; ud2"},
            )
            case(
                "iret outwards",
                f"push 0x23; push {STACKS[3]:#x}; push 0x202; push 0x1b; push {ANY:#x}; {IRET}",
                parts={ANY: f"{LOG_SELECTORS} {log('esp')}; ud2"},
            )
            case(
                "iret outwards to 16-bit",
                f"push {S['narrow_data3'] | 3:#x}; push 0x1234; push 2; push {S['narrow_code3'] | 3:#x}; push 0x500; {IRET}",
                parts={NARROW_CODE + 0x500: narrow_code("mov bx,sp; push 5; pop dx; mov si,cs; ud2", 0x500)},
            )
    return made
