/* sensitive_forms.S: the table of forms: every instruction of bt/sensitive.py in each of its forms, under the same names.
 *
 * `form` gives the instruction and what is in registers, memory and on the stack before it. Encodings that the assembler would not
 * choose are given as bytes.
 */
#include "sensitive.h"

.set target, TARGET /* for use within strings, which the preprocessor leaves alone */
.set my_code, MY_CODE

.macro form name:req, code:req, eax=UNTOUCHED_EAX, ecx=UNTOUCHED_ECX, edx=UNTOUCHED_EDX, flags=FLAGS, m0=0x40414243, m1=0x44454647, s0=0x50515253, s1=0x54555657, s2=0x58595a5b, prepare=0, mask=0
        .pushsection .rodata.strings
.Lname\@:
        .asciz  "\name"
        .popsection
        .pushsection .rodata.code
.Lcode\@:
        \code
.Lend\@:
        .popsection
        .long   .Lname\@, .Lcode\@, .Lend\@, \eax, \ecx, \edx, \flags, \m0, \m1, \s0, \s1, \s2, \prepare, \mask
.endm

        .section .rodata.forms, "a"
        .balign 4
        .globl  forms, forms_end
forms:
/* Privileged. */
        form    "cli", "cli"
        form    "sti", "sti", flags=FLAGS & ~0x200
        form    "hlt", "hlt", prepare=prepare_hlt
.irp number, 0, 2, 3, 4
        form    "mov r,cr\number 32", "movl %cr\number, %ecx"
        form    "mov r,cr\number 16", ".byte 0x66; movl %cr\number, %ecx"
.endr
        form    "mov r,cr 32", ".byte 0x0f, 0x20, 0xc9"
        form    "mov r,cr 16", ".byte 0x66, 0x0f, 0x20, 0xe9"
        form    "mov cr0,r 32", "movl %eax, %cr0", prepare=prepare_cr0
        form    "mov cr0,r 16", ".byte 0x66; movl %eax, %cr0", prepare=prepare_cr0
        form    "mov cr2,r 32", "movl %eax, %cr2"
        form    "mov cr2,r 16", ".byte 0x66; movl %eax, %cr2"
        form    "mov cr3,r 32", "movl %eax, %cr3", prepare=prepare_cr3
        form    "mov cr3,r 16", ".byte 0x66; movl %eax, %cr3", prepare=prepare_cr3
        form    "mov cr4,r 32", "movl %eax, %cr4", prepare=prepare_cr4
        form    "mov cr4,r 16", ".byte 0x66; movl %eax, %cr4", prepare=prepare_cr4
        form    "mov cr,r 32", ".byte 0x0f, 0x22, 0xc8"
        form    "mov cr,r 16", ".byte 0x66, 0x0f, 0x22, 0xe8"
        form    "mov r,dr 32", "movl %db0, %ecx"
        form    "mov r,dr 16", ".byte 0x66; movl %db0, %ecx"
        form    "mov dr,r 32", "movl %eax, %db0"
        form    "mov dr,r 16", ".byte 0x66; movl %eax, %db0"
        form    "clts", "clts", prepare=prepare_clts
        form    "lmsw r", "lmsw %ax", prepare=prepare_lmsw
        form    "lmsw m", "lmsw (%ebx)", prepare=prepare_lmsw
        form    "invd", "invd"
        form    "wbinvd", "wbinvd"
        form    "invlpg", "invlpg (%ebx)"
        form    "lgdt 32", "lgdtl (%ebx)", prepare=prepare_gdt
        form    "lgdt 16", "lgdtw (%ebx)", prepare=prepare_gdt
        form    "lidt 32", "lidtl (%ebx)", prepare=prepare_idt
        form    "lidt 16", "lidtw (%ebx)", prepare=prepare_idt
        form    "lldt r", "lldt %ax", eax=LOCAL_TABLE
        form    "lldt m", "lldt (%ebx)", m0=LOCAL_TABLE
        form    "ltr r", "ltr %ax", eax=OTHER_TASK
        form    "ltr m", "ltr (%ebx)", m0=OTHER_TASK
        form    "rdmsr", "rdmsr", ecx=0x1b
        form    "wrmsr", "wrmsr", ecx=0x175
        form    "rdpmc", "rdpmc", ecx=0
        form    "sysexit", "sysexit", ecx=STACK, edx=TARGET
/* Port 21h is the interrupt mask; nobody is at E4h. */
        form    "in al,n", "inb $0x21, %al"
        form    "in eax,n 32", "inl $0xe4, %eax"
        form    "in eax,n 16", "inw $0xe4, %ax"
        form    "in al,dx", "inb %dx, %al", edx=0x21
        form    "in eax,dx 32", "inl %dx, %eax", edx=0xe4
        form    "in eax,dx 16", "inw %dx, %ax", edx=0xe4
        form    "out n,al", "outb %al, $0x21", eax=0x7f
        form    "out n,eax 32", "outl %eax, $0xe4"
        form    "out n,eax 16", "outw %ax, $0xe4"
        form    "out dx,al", "outb %al, %dx", eax=0x7f, edx=0x21
        form    "out dx,eax 32", "outl %eax, %dx", edx=0xe4
        form    "out dx,eax 16", "outw %ax, %dx", edx=0xe4
        form    "insb 8", "insb %dx, %es:(%edi)", edx=0x21
        form    "insb rep8", "rep insb %dx, %es:(%edi)", edx=0x21, ecx=3
        form    "ins 32", "insl %dx, %es:(%edi)", edx=0xe4
        form    "ins 16", "insw %dx, %es:(%edi)", edx=0xe4
        form    "ins rep32", "rep insl %dx, %es:(%edi)", edx=0xe4, ecx=3
        form    "ins rep16", "rep insw %dx, %es:(%edi)", edx=0xe4, ecx=3
        form    "outsb 8", "outsb (%esi), %dx", edx=0x21
        form    "outsb rep8", "rep outsb (%esi), %dx", edx=0x21, ecx=3
        form    "outs 32", "outsl (%esi), %dx", edx=0xe4
        form    "outs 16", "outsw (%esi), %dx", edx=0xe4
        form    "outs rep32", "rep outsl (%esi), %dx", edx=0xe4, ecx=3
        form    "outs rep16", "rep outsw (%esi), %dx", edx=0xe4, ecx=3

/* Sensitive and unprivileged. */
        form    "sgdt 32", "sgdtl (%ebx)"
        form    "sgdt 16", "sgdtw (%ebx)"
        form    "sidt 32", "sidtl (%ebx)"
        form    "sidt 16", "sidtw (%ebx)"
.irp name, sldt, str
        form    "\name r32", "\name\()l %ecx"
        form    "\name r16", "\name\()w %cx"
        form    "\name m", "\name\()w (%ebx)"
.endr
        form    "smsw r32", "smswl %ecx", mask=mask_smsw
        form    "smsw r16", "smsww %cx"
        form    "smsw m", "smsww (%ebx)"
        form    "pushf 32", "pushfl", flags=FLAGS & ~0x200
        form    "pushf 16", "pushfw", flags=FLAGS & ~0x200
        form    "popf 32", "popfl", s0=0x3046
        form    "popf 16", "popfw", s0=0x3046
.irp name, lar, lsl
        form    "\name r32", "\name\()l %ecx, %edx", ecx=LOOKED_AT, flags=FLAGS & ~0x40
        form    "\name r16", "\name\()w %cx, %dx", ecx=LOOKED_AT, flags=FLAGS & ~0x40
        form    "\name m32", "\name\()l (%ebx), %edx", m0=LOOKED_AT, flags=FLAGS & ~0x40
        form    "\name m16", "\name\()w (%ebx), %dx", m0=LOOKED_AT, flags=FLAGS & ~0x40
.endr
.irp name, verr, verw
        form    "\name r", "\name %cx", ecx=LOOKED_AT, flags=FLAGS & ~0x40
        form    "\name m", "\name (%ebx)", m0=LOOKED_AT, flags=FLAGS & ~0x40
.endr
        form    "arpl r", "arpl %cx, %ax", eax=0x10, ecx=3, flags=FLAGS & ~0x40
        form    "arpl m", "arpl %cx, (%ebx)", m0=0x10, ecx=3, flags=FLAGS & ~0x40
        form    "cpuid", "cpuid", eax=1, mask=mask_cpuid
        form    "rdtsc", "rdtsc", mask=mask_time
.irp name, es, cs, ss, ds, fs, gs
        form    "push \name 32", "pushl %\name"
        form    "push \name 16", "pushw %\name"
        form    "mov r/m,\name r32", "movl %\name, %ecx"
        form    "mov r/m,\name r16", "movw %\name, %cx"
        form    "mov r/m,\name m", "movw %\name, (%ebx)"
.endr
.irp name, es, ss, ds, fs, gs
        form    "pop \name 32", "popl %\name", s0=MY_OTHER_DATA
        form    "pop \name 16", "popw %\name", s0=MY_OTHER_DATA
        form    "mov \name,r/m r", "movl %eax, %\name", eax=MY_OTHER_DATA
        form    "mov \name,r/m m", "movw (%ebx), %\name", m0=MY_OTHER_DATA
        form    "l\name 32", "l\name\()l (%ebx), %edx", m0=0x12345678, m1=MY_OTHER_DATA
        form    "l\name 16", "l\name\()w (%ebx), %dx", m0=MY_OTHER_DATA << 16 | 0x5678
.endr
        form    "mov cs,r/m r", ".byte 0x8e, 0xc8", eax=MY_CODE
        form    "mov cs,r/m m", ".byte 0x8e, 0x0b", m0=MY_CODE
        form    "call far 32", ".byte 0x9a; .long target; .short my_code"
        form    "call far 16", ".byte 0x66, 0x9a; .short target, my_code"
        form    "call far m 32", "lcall *(%ebx)", m0=TARGET, m1=MY_CODE
        form    "call far m 16", "lcallw *(%ebx)", m0=MY_CODE << 16 | TARGET
        form    "jmp far 32", ".byte 0xea; .long target; .short my_code"
        form    "jmp far 16", ".byte 0x66, 0xea; .short target, my_code"
        form    "jmp far m 32", "ljmp *(%ebx)", m0=TARGET, m1=MY_CODE
        form    "jmp far m 16", "ljmpw *(%ebx)", m0=MY_CODE << 16 | TARGET
        form    "ret far n 32", "lret $8", s0=TARGET, s1=MY_CODE
        form    "ret far n 16", "lretw $8", s0=MY_CODE << 16 | TARGET
        form    "ret far 32", "lret", s0=TARGET, s1=MY_CODE
        form    "ret far 16", "lretw", s0=MY_CODE << 16 | TARGET
        form    "iret 32", "iretl", s0=TARGET, s1=MY_CODE, s2=0x3046
        form    "iret 16", "iretw", s0=MY_CODE << 16 | TARGET, s1=0x3046
        form    "int3", "int3"
        form    "int", "int $0x80"
        form    "into", "into"
        form    "icebp", ".byte 0xf1"
        form    "sysenter", "sysenter"

/* Undefined: what this processor does not offer. */
        form    "syscall", "syscall"
        form    "sysret", ".byte 0x0f, 0x07"
        form    "rsm", "rsm"
        form    "xgetbv", "xgetbv", ecx=0
        form    "xsetbv", "xsetbv", ecx=0
        form    "rdtscp", "rdtscp"
        form    "swapgs", ".byte 0x0f, 0x01, 0xf8"
        form    "monitor", "monitor"
        form    "mwait", "mwait"
        form    "clac", "clac"
        form    "stac", "stac"
        form    "rdpkru", "rdpkru", ecx=0
        form    "wrpkru", "wrpkru", ecx=0, edx=0
        form    "vmcall", "vmcall"
        form    "vmrun", "vmrun"
        form    "vmmcall", "vmmcall"
        form    "vmload", "vmload"
        form    "vmsave", "vmsave"
        form    "stgi", "stgi"
        form    "clgi", "clgi"
        form    "skinit", "skinit"
        form    "invlpga", "invlpga"
        form    "0f 01 /0 r", "vmlaunch"
        form    "0f 01 /1 r", ".byte 0x0f, 0x01, 0xcf"
        form    "0f 01 /2 r", ".byte 0x0f, 0x01, 0xd4"
        form    "0f 01 /5", ".byte 0x0f, 0x01, 0xe8"
        form    "0f 01 /7 r", ".byte 0x0f, 0x01, 0xfc"

/* Control flow. Every jump leads to TARGET. */
        form    "jmp rel8 32", ".byte 0xeb, 0x1e"
        form    "jmp rel8 16", ".byte 0x66, 0xeb, 0x1d"
        form    "jmp rel 32", ".byte 0xe9; .long 0x1b"
        form    "jmp rel 16", ".byte 0x66, 0xe9; .short 0x1c"
.irp digit, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, A, B, C, D, E, F
        form    "jcc rel8 \digit 32", ".byte 0x7\digit, 0x1e"
        form    "jcc rel8 \digit 16", ".byte 0x66, 0x7\digit, 0x1d"
        form    "jcc rel \digit 32", ".byte 0x0f, 0x8\digit; .long 0x1a"
        form    "jcc rel \digit 16", ".byte 0x66, 0x0f, 0x8\digit; .short 0x1b"
.endr
        form    "loopne 32", ".byte 0xe0, 0x1e", flags=FLAGS & ~0x40
        form    "loopne 16", ".byte 0x66, 0xe0, 0x1d", flags=FLAGS & ~0x40
        form    "loope 32", ".byte 0xe1, 0x1e"
        form    "loope 16", ".byte 0x66, 0xe1, 0x1d"
        form    "loop 32", ".byte 0xe2, 0x1e"
        form    "loop 16", ".byte 0x66, 0xe2, 0x1d"
        form    "jecxz 32", ".byte 0xe3, 0x1e", ecx=0
        form    "jecxz 16", ".byte 0x66, 0xe3, 0x1d", ecx=0
        form    "call rel 32", ".byte 0xe8; .long 0x1b"
        form    "call rel 16", ".byte 0x66, 0xe8; .short 0x1c"
        form    "ret n 32", "ret $8", s0=TARGET
        form    "ret n 16", "retw $8", s0=TARGET
        form    "ret 32", "ret", s0=TARGET
        form    "ret 16", "retw", s0=TARGET
.irp name, call, jmp
        form    "\name r/m r32", "\name *%eax", eax=TARGET
        form    "\name r/m r16", "\name\()w *%ax", eax=0x10000 + TARGET
        form    "\name r/m m32", "\name *(%ebx)", m0=TARGET
        form    "\name r/m m16", "\name\()w *(%ebx)", m0=0x10000 + TARGET
.endr
forms_end:

        .section .note.GNU-stack, "", @progbits
