/* real16_modes.S: from protected mode down to real mode, up to long mode, and back, with a line printed in each.
 *
 * Sources: SDM 3A 9.9.2 "Switching Back to Real-Address Mode", 9.8.5 "Initializing IA-32e Mode Operation", 3B 20.1 "Real-Address Mode".
 * All of it is copied to LOW, so that 16-bit code reaches it; AT() is where a label lies then.
 */
#include "real16.h"

#define AT(label) (label - low_start + LOW)
#define RESULT(n) (RESULTS + 4 * (n))
#define EFER 0xc0000080

#define CODE_32 0x08
#define DATA_32 0x10
#define CODE_16 0x18
#define DATA_16 0x20
#define CODE_64 0x28

        .text
/* void round_trip(u32 tables): `tables` are four-level page tables that map the first MiB to itself, and 512 GiB further on once more. */
        .globl  round_trip
        .type   round_trip, @function
round_trip:
        pushal
        movl    36(%esp), %ebp          /* the tables */
        sgdt    AT(old_gdt)
        sidt    AT(old_idt)
        movl    %esp, AT(old_esp)
        lgdt    AT(gdt_register)
        ljmp    $CODE_32, $AT(protected_32)
        .size   round_trip, . - round_trip

        .globl  low_start, low_end
low_start:

/* Prints the string at DS:SI, ESI or RSI; changes it, AX and DX. The same in all widths. */
.macro print_routine name
\name:
        lodsb
        testb   %al, %al
        jz      2f
        movb    %al, %ah
        movw    $0x3fd, %dx
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        movw    $0x3f8, %dx
        movb    %ah, %al
        outb    %al, %dx
        jmp     \name
2:      ret
.endm

/* --- 32-bit protected mode --- */

        .code32
        print_routine print_32
protected_32:
        movl    $DATA_32, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $LOW_STACK, %esp
        movl    $AT(text_32), %esi
        call    print_32
        movl    $AT(real_first), AT(real_next)
down:   ljmp    $CODE_16, $AT(protected_16)

/* --- 16-bit protected mode, and out of it --- */

        .code16
        print_routine print_16
protected_16:
        movw    $DATA_16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    %ax, %fs
        movw    %ax, %gs
        movw    $AT(text_16), %si
        call    print_16
        lidtl   AT(real_idt)
        movl    %cr0, %eax
        andl    $~1, %eax
        movl    %eax, %cr0
        ljmp    $0, $AT(real)
real:   xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $LOW_STACK, %sp
        jmp     *AT(real_next)

/* --- real mode, the first time --- */

real_first:
        movw    $AT(text_real), %si
        call    print_16
        movl    %cr0, %eax
        movl    %eax, RESULT(REAL_CR0)

        movl    $AT(interrupt), 4 * 0x40        /* INT 40h: the handler at 0:offset */
        movl    $0, RESULT(REAL_INTERRUPTS)
        movw    $7, %bx
        int     $0x40
        movw    $35, %bx
        int     $0x40

        movw    $0x1234, %ax
        movw    %ax, %es
        movl    $0xfeedbeef, %es:0x10
        movl    $0, %ebx
        movw    $0x1235, %ax
        movw    %ax, %fs
        movl    %fs:(%bx), %eax
        movl    %eax, RESULT(REAL_SEGMENTED)

        movw    $0x2000, %ax
        movw    %ax, %ss
        xorw    %sp, %sp
        pushw   $0x5a5a                         /* to FFFEh of the segment */
        movzwl  %sp, %eax
        movw    $0x2fff, %bx
        movw    %bx, %es
        cmpw    $0x5a5a, %es:0xe
        sete    %bl
        shll    $16, %eax
        movb    %bl, %al
        movl    %eax, RESULT(REAL_WRAPPED)
        xorw    %ax, %ax
        movw    %ax, %ss
        movw    $LOW_STACK, %sp
        movw    %ax, %es

        movl    $AT(divide), 4 * 0
        movl    $AT(at_divide), RESULT(REAL_DIVIDE_AT)
        xorw    %cx, %cx
        movw    $1, %ax
        cwd
at_divide:
        divw    %cx
        nop

        movl    $AT(timer), 4 * 0x20
        movl    $0, RESULT(REAL_TICKS)
        sti
1:      hlt
        cmpl    $3, RESULT(REAL_TICKS)
        jb      1b
        cli
        movw    $AT(text_interrupts), %si
        call    print_16
        movl    $AT(up_to_long), AT(next_32)
        jmp     up

interrupt:
        addw    %bx, RESULT(REAL_INTERRUPTS)
        iret

divide: pushw   %bp
        movw    %sp, %bp
        movl    2(%bp), %eax
        movl    %eax, RESULT(REAL_DIVIDE)
        addw    $2, 2(%bp)
        popw    %bp
        iret

timer:  pushw   %ax
        incl    RESULT(REAL_TICKS)
        movb    $0x20, %al
        outb    %al, $0x20
        popw    %ax
        iret

/* --- up again --- */

up:     lgdtl   AT(gdt_register)
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $CODE_32, $AT(protected_again)

        .code32
protected_again:
        movl    $DATA_32, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    %eax, %fs
        movl    %eax, %gs
        movl    $LOW_STACK, %esp
        movl    $AT(text_again), %esi
        call    print_32
        jmp     *AT(next_32)

up_to_long:
        movl    %cr4, %eax
        orl     $1 << 5, %eax                   /* PAE */
        movl    %eax, %cr4
        movl    %ebp, %cr3
        movl    $EFER, %ecx
        rdmsr
        orl     $1 << 8, %eax                   /* LME */
        wrmsr
        movl    %cr0, %eax
        orl     $1 << 31, %eax                  /* PG */
        movl    %eax, %cr0
        movl    $AT(text_compatibility), %esi
        call    print_32
        ljmp    $CODE_64, $AT(long_64)

/* --- long mode --- */

        .code64
        print_routine print_64
long_64:
        movl    $AT(text_64), %esi
        call    print_64
        movl    $EFER, %ecx
        rdmsr
        movl    %eax, RESULT(LONG_EFER)
        movabsq $0x123456789abcdef0, %r8
        movabsq $0x0fedcba987654321, %r9
        addq    %r9, %r8
        movl    %r8d, RESULT(LONG_LOW)
        movq    %r8, %rax
        shrq    $32, %rax
        movl    %eax, RESULT(LONG_HIGH)
        movabsq $1 << 39, %rax
        movl    RESULT(REAL_SEGMENTED)(%rax), %eax
        movl    %eax, RESULT(LONG_FAR)
        pushq   $CODE_32
        pushq   $AT(narrow)
        lretq

/* --- compatibility mode, and out of long mode --- */

        .code32
narrow: movl    $0x9abcdef0, %eax
        addl    $0x87654321, %eax
        movl    %eax, RESULT(NARROW_SUM)
        movl    $AT(text_compatibility), %esi
        call    print_32
        movl    %cr0, %eax
        andl    $0x7fffffff, %eax
        movl    %eax, %cr0
        movl    $EFER, %ecx
        rdmsr
        movl    %eax, RESULT(AFTER_EFER)
        andl    $~(1 << 8), %eax
        wrmsr
        movl    %cr4, %eax
        andl    $~(1 << 5), %eax
        movl    %eax, %cr4
        movl    $AT(text_left), %esi
        call    print_32
        movl    $AT(real_second), AT(real_next)
        jmp     down

        .code16
real_second:
        movw    $AT(text_real), %si
        call    print_16
        movl    %cr0, %eax
        movl    %eax, RESULT(AGAIN_CR0)
        movl    $AT(finish_trip), AT(next_32)
        jmp     up

        .code32
finish_trip:
        lgdt    AT(old_gdt)
        lidt    AT(old_idt)
        movl    AT(old_esp), %esp
        ljmp    $CODE_32, $back

text_32:        .asciz  "32-bit protected mode\r\n"
text_16:        .asciz  "16-bit protected mode\r\n"
text_real:      .asciz  "real mode\r\n"
text_interrupts: .asciz "real mode: interrupts, faults and segments were tried\r\n"
text_again:     .asciz  "32-bit protected mode, from below\r\n"
text_compatibility: .asciz "compatibility mode\r\n"
text_64:        .asciz  "64-bit mode\r\n"
text_left:      .asciz  "32-bit protected mode, from above\r\n"

        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff
        .quad   0x00cf93000000ffff
        .quad   0x00009b000000ffff
        .quad   0x000093000000ffff
        .quad   0x00af9b000000ffff
gdt_end:
gdt_register:
        .word   gdt_end - gdt - 1
        .long   AT(gdt)
real_idt:
        .word   0x3ff
        .long   0
old_gdt: .skip  6
old_idt: .skip  6
        .balign 4
old_esp: .long  0
real_next: .long 0
next_32: .long  0
low_end:

        .type   back, @function
back:   popal
        ret
        .size   back, . - back

        .section .note.GNU-stack, "", @progbits
