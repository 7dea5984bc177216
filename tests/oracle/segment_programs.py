"""Programs about the hidden parts of segment registers, and segments of other shapes."""

from __future__ import annotations

from tests.assembly import assemble
from tests.oracle.program import Program
from tests.oracle.segmented import ANY, BASE, GDT, LOG, NARROW_CODE, STACKS, TSS, USER, enter, far, log, narrow_code, program
from tests.oracle.snippets import DATA, IRET, LOG_SELECTORS, S, at_level, frame_logged, shown


def segments() -> dict[str, Program]:
    """Hidden parts of segment registers, and segments of other shapes, in the kernel and in user code."""
    at_base = {BASE + LOG - BASE + 0x380: b"\x78\x56\x34\x12", LOG + 0x380 - BASE: b"\x11\x22\x33\x44"}
    word = LOG + 0x380 - BASE  # by a segment with a base of BASE this is LOG + 0x380
    made: dict[str, Program] = {}
    descriptor_at = GDT + (S["based_data3"] & 0xFFF8)
    for level in (0, 1, 2, 3):
        selector = S["based_data3"] | 3
        for name in ("ds", "es", "fs", "gs"):
            code = f"""{DATA} mov eax,{selector:#x}; mov {name},eax; mov ebx,{name}:[{word:#x}]
                int 0x40; mov ecx,{name}:[{word:#x}]; mov {name}:[{word + 4:#x}],ecx
                int 0x40; mov edx,{name}:[{word + 4:#x}]; {DATA} {log("ebx", "ecx", "edx")}"""
            # Behind the first INT the descriptor in memory has another base: the register keeps the old one until it is loaded again.
            change = f".byte 0x36; xor byte ptr [{descriptor_at + 4:#x}],1; .byte 0xcf"
            again = f"mov eax,{selector:#x}; mov {name},eax; mov ebx,{name}:[{word:#x}]; {DATA} {log('ebx')}"
            made[f"segments: level {level}: hidden state of {name}"] = at_level(level, f"{code}; {again}", inner=change, parts=at_base)
        for data in ("fresh_data3", "fresh_data"):
            accessed = f"{DATA} mov eax,{S[data] | (3 if level else 0):#x}; mov gs,eax; {log(f'dword ptr [{GDT + S[data] + 4:#x}]')}"
            made[f"segments: level {level}: accessed {data}"] = at_level(level, accessed)
        down = f"{DATA} mov eax,{S['down3'] | 3:#x}; mov fs,eax; mov ebx,fs:[{LOG + 0x380:#x}]; {log('ebx')}"
        made[f"segments: level {level}: expand-down"] = at_level(level, down, parts=at_base)
    based = f"""mov eax,{S["based_data3"] | 3:#x}; mov ds,eax; mov es,eax; mov fs,eax; mov gs,eax
        mov ebx,[{word:#x}]; mov esi,{word:#x}; mov edi,{word + 16:#x}; .byte 0xa5
        mov ecx,dword ptr es:[{word + 16:#x}]; push 0x77; mov edx,dword ptr ss:[esp]; pop eax; mov ebp,esp; mov esi,[ebp-4]
        call @f; jmp @g; @f: mov edi,dword ptr cs:[{word:#x}]; ret; @g: int 0x40
        mov eax,0x23; mov ds,eax; """.replace("@", "l")
    seen = f"push 0x23; .byte 0x1f; {log('ebx', 'ecx', 'edx', 'esi', 'edi', 'ebp')}; ud2"
    made["segments: all six with a base, user"] = program(
        f"push {S['based_data3'] | 3:#x}; push {STACKS[3] - BASE:#x}; push 2; push {S['based_code3'] | 3:#x}; push {ANY - BASE:#x}; {IRET}",
        inner=IRET,
        parts=at_base | {ANY: assemble(f"{based} {far('jmp', 0x1B, USER)}", ANY - BASE), USER: f"{seen}"},
    )
    made["segments: all six with a base, kernel"] = program(
        f"mov eax,{S['based_data']:#x}; mov ss,eax; mov esp,{STACKS[0] - 0x100 - BASE:#x}; {far('jmp', S['based_code'], ANY - BASE)}",
        inner=IRET,
        parts=at_base
        | {ANY: assemble(f"{based} {far('jmp', 8, USER)}", ANY - BASE), USER: f"mov ax,0x10; mov ss,ax; mov esp,{STACKS[0]:#x}; {seen}"},
    )
    narrow_user = f"""mov bx,sp; push 0x1234; pop dx; mov si,cs; int 0x43; mov di,sp
        mov ax,{S["narrow_data3"] | 3:#x}; mov ds,ax; mov cx,[bx-2]; call f; f: pop bp; ud2"""
    made["segments: 16-bit user code"] = program(
        f"push {S['narrow_data3'] | 3:#x}; push 0x1234; push 0x202; push {S['narrow_code3'] | 3:#x}; push 0x500; {IRET}",
        parts={NARROW_CODE + 0x500: narrow_code(narrow_user, 0x500), NARROW_CODE + 0x4000: narrow_code("push bp; mov bp,sp; pop bp; iret", 0x4000)},
    )
    made["segments: call through a gate from 16-bit user code"] = program(
        f"push {S['narrow_data3'] | 3:#x}; push 0x1234; push 2; push {S['narrow_code3'] | 3:#x}; push 0x500; {IRET}",
        inner=shown(6, ".byte 0xca,8,0"),
        parts={
            NARROW_CODE + 0x500: narrow_code(
                f".byte 0x66,0x68,1,0,0,0; .byte 0x66,0x68,2,0,0,0; .byte 0x9a; .short 0,{S['gate0']:#x}; mov bx,sp; ud2", 0x500
            )
        },
    )
    for name, ss1, tr_limit in (
        ("null", 0, 0x67),
        ("of another level", 0x10, 0x67),
        ("absent", S["absent_data"], 0x67),
        ("beyond", 0x7F8 | 1, 0x67),
        ("of a short TSS", 0, 0x12),
    ):
        patch = f"""mov word ptr [{TSS + 16:#x}],{ss1:#x}; mov word ptr [{GDT + S["tss"]:#x}],{tr_limit:#x}
            and byte ptr [{GDT + S["tss"] + 5:#x}],0xfd; mov eax,{S["tss"]:#x}; ltr ax"""
        made[f"segments: inner stack {name}: int"] = program(f"{patch}; {enter(3)}", user="int 0x41")
        made[f"segments: inner stack {name}: call"] = program(f"{patch}; {enter(3)}", user=f"push 1; {far('call', S['gate1'], 0)}")
    made["segments: through three levels"] = program(
        enter(3),
        user=f"int 0x42; {LOG_SELECTORS} ud2",
        inner=f"""mov eax,cs; and eax,3; jz @z; cmp al,1; je @o; {LOG_SELECTORS} int 0x41; jmp @e
            @o: {LOG_SELECTORS} int 0x40; jmp @e; @z: {frame_logged(5)}; @e: {IRET}""".replace("@", "l"),
    )
    return made
