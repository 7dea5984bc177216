"""Programs that are single-stepped, and programs that meet the lazy FPU."""

from __future__ import annotations

from tests.oracle.program import Program
from tests.oracle.segmented import ANY, LOG, enter, far, finish, log, program
from tests.oracle.snippets import DATA, DEBUG, IRET, TRAPPING, narrowed


def stepping() -> dict[str, Program]:
    """TF in the kernel and outside of it, and debug registers."""
    bodies = {
        "plain": "nop; inc eax; mov ecx,5; nop",
        "memory": f"mov [{LOG + 0x380:#x}],eax; push eax; pop ecx; xchg eax,ecx",
        "jumps": "jmp @a; nop; @a: call @f; jmp @b; @f: ret; @b: xor ecx,ecx; jecxz @c; nop; @c: jz @d; nop; @d: nop",
        "sensitive": "mov ecx,cr0; smsw ecx; sgdt [esp-16]; pushfd; pop ecx; str ecx; mov ecx,cs; mov edx,ss; cli; cld",
        "mov ss": "mov ecx,ss; mov ss,ecx; nop; nop; .byte 0x16,0x17; inc edx; nop",
        "data segments": "mov ecx,ds; mov ds,ecx; .byte 0x06,0x07; nop",
        "rep movs": f"mov esi,{LOG:#x}; mov edi,{LOG + 0x380:#x}; mov ecx,3; rep movsb; nop",
        "rep stos, none": f"mov edi,{LOG + 0x380:#x}; xor ecx,ecx; rep stosd; nop",
        "repe cmps": f"mov esi,{LOG + 0x380:#x}; mov edi,{LOG + 0x390:#x}; mov ecx,3; repe cmpsb; nop",
        "int": "int 0x40; nop; nop",
        "untaken into": ".byte 0xce; nop; nop",
        "popf off": "push 2; popfd; nop",
        "popf again": "push 0x102; popfd; nop",
        "iret off": f"pushfd; and dword ptr [esp],0xfffffeff; .byte 0x0e; push {ANY:#x}; .byte 0xcf",
        "iret on": f"pushfd; .byte 0x0e; push {ANY:#x}; .byte 0xcf",
        "fault": "ud2",
        "privileged fault": "mov ecx,8; ltr cx",
        "x87": "fninit; fld1; fstp dword ptr [esp-8]; wait; nop",
        "far jump": f"{far('jmp', 8, ANY)}",
    }
    made: dict[str, Program] = {}
    back = {ANY: f"nop; nop; push 2; popfd; {log('esp')}; {finish()}"}
    for name, body in bodies.items():
        body = body.replace("@", "l")
        made[f"TF: {name}"] = program(f"{TRAPPING} {body}; push 2; popfd; {DEBUG} {finish()}", inner=f"nop; nop; {IRET}", parts=back)
        if "privileged" in name or name in ("sensitive", "far jump", "mov ss"):
            continue
        made[f"TF: user: {name}"] = program(
            enter(3, flags=0x202), user=f"{DATA} mov eax,7; {TRAPPING} {body}; push 2; popfd; ud2", inner=f"nop; nop; {IRET}", parts=back
        )
    made["TF: into user by iret"] = program(
        enter(3, flags=0x302), user=f"nop; {DATA} nop; int 0x40; nop; push 2; popfd; ud2", inner=f"nop; nop; {IRET}"
    )
    made["TF: level 1"] = program(
        enter(1, flags=0x102), user="nop; mov eax,0x23; mov ds,eax; inc ecx; int 0x40; nop; push 2; popfd; ud2", inner=f"nop; nop; {IRET}"
    )
    made["TF: 16-bit"] = narrowed(".byte 0x66; push 0x102; .byte 0x66; popf; nop; inc ax; mov cx,2; l: loop l; .byte 0x66; push 2; .byte 0x66; popf")
    made["TF: dr6"] = program(f"{TRAPPING} nop; push 2; popfd; {DEBUG} {DEBUG} {finish()}")
    made["debug registers"] = program(
        "mov eax,0x12345678; mov dr0,eax; mov eax,0xffffffff; mov dr1,eax; mov dr2,eax; mov dr3,eax; mov ebx,dr0; mov ecx,dr6; "
        f"mov edx,dr7; {log('ebx', 'ecx', 'edx')}; {finish()}"
    )
    return made


def lazy_fpu() -> dict[str, Program]:
    """CR0.TS, EM, MP and NE: #NM and #MF in the kernel and in user code."""
    made: dict[str, Program] = {}
    instructions = {
        "fld1": "fld1",
        "wait": "wait",
        "movaps": ".byte 0x0f,0x28,0xc1",
        "fxsave": "sub esp,0x400; and esp,0xfffffff0; fxsave [esp]",
        "fninit": "fninit",
    }
    for bits, name in ((8, "TS"), (10, "TS MP"), (2, "MP"), (4, "EM"), (12, "EM TS"), (6, "EM MP")):
        control = f"mov eax,cr4; or eax,0x200; mov cr4,eax; mov eax,cr0; or eax,{bits:#x}; mov cr0,eax; mov eax,0"
        for text, code in instructions.items():
            made[f"FPU: {name}: {text}"] = program(f"{control}; {code}; ud2")
            made[f"FPU: {name}: user {text}"] = program(f"{control}; {enter(3)}", user=f"{code}; ud2")
    clear = f"""mov eax,cr0; or eax,8; mov cr0,eax; clts; fld1; fstp dword ptr [{LOG + 0x380:#x}]
        mov ebx,[{LOG + 0x380:#x}]; mov ecx,cr0; {log("ebx", "ecx")}; {finish()}"""
    made["FPU: clts"] = program(clear)
    unmask = "mov eax,cr0; or eax,0x22; mov cr0,eax; fninit; push 0x37b; fldcw [esp]; fld1; fldz; .byte 0xde,0xf9"
    for text, code in {"fld1": "fld1", "wait": "wait", "fnstsw": f"fnstsw ax; and eax,0x80ff; {log('eax')}; {finish()}"}.items():
        made[f"FPU: error: {text}"] = program(f"{unmask}; nop; {code}; ud2")
    made["FPU: error: user"] = program(
        f"mov eax,cr0; or eax,0x22; mov cr0,eax; {enter(3)}", user="fninit; push 0x37b; fldcw [esp]; fld1; fldz; .byte 0xde,0xf9; nop; fld1; ud2"
    )
    return made
