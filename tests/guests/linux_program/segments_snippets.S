/* segments_snippets.S: loads of segments out of the LDT, and code on a 16-bit stack. */
#include "addresses.h"
#define SNIPPETS .rodata.segments
#include "snippets.h"
.macro load selector, register
        movl    $LDT_SELECTOR(\selector), %eax
        movl    %eax, %\register
.endm
.macro flat
        movl    %ss, %eax
        movl    %ds, %eax
        movl    %eax, %ss
.endm

        .globl  segment_snippets, segment_snippets_end, code_16, stack_16_kept, thread
        .section SNIPPETS, "a"
        .balign 4
segment_snippets:

        .text
try "a segment of the LDT"
        load    LDT_DATA, fs
        movl    %fs:0, %ebx
        done
try "ds out of the LDT, with a fault"
        load    LDT_DATA, ds
        movl    0, %ebx
        ud2
try "mov of an absent segment to ds"
        load    LDT_ABSENT_DATA, ds
        done
try "mov of an absent segment to ss"
        load    LDT_ABSENT_DATA, ss
        done
try "mov of a code segment to ss"
        load    LDT_CODE_16, ss
        done
try "mov beyond the LDT to gs"
        load    100, gs
        done
try "pop of an absent segment to es"
        pushl   $LDT_SELECTOR(LDT_ABSENT_DATA)
        popl    %es
        done
try "jmp far to an absent segment"
        ljmp    $LDT_SELECTOR(LDT_ABSENT_CODE), $0
        done
try "call far to a data segment"
        lcall   $LDT_SELECTOR(LDT_DATA), $0
        done
try "ret far to an absent segment"
        pushl   $LDT_SELECTOR(LDT_ABSENT_CODE)
        pushl   $0
        lret
        done
try "iret to an absent segment"
        pushl   $0x202
        pushl   $LDT_SELECTOR(LDT_ABSENT_CODE)
        pushl   $0
        iret
        done
try "16-bit code"
        lcall   $LDT_SELECTOR(LDT_CODE_16), $0
        done
try "16-bit code that faults"
        lcall   $LDT_SELECTOR(LDT_CODE_16), $code_16_fault - code_16
        done
try "16-bit code that calls the kernel"
        lcall   $LDT_SELECTOR(LDT_CODE_16), $code_16_call - code_16
        done
try "a 16-bit stack over system calls"
        load    LDT_STACK_16, ss
        movl    $STACK_16_ESP, %esp
        movl    $100, %ecx
1:      movl    $20, %eax
        int     $0x80
        cmpl    $STACK_16_ESP, %esp
        jne     2f
        loop    1b
        pushl   $0x1234
        popl    %ebx
2:      movl    %esp, %esi
        flat
        movl    $STACK_TOP, %esp
        done
try "a 16-bit stack over interrupts"
        movl    alarms, %ebx
        addl    $5, %ebx
        load    LDT_STACK_16, ss
        movl    $STACK_16_ESP, %esp
1:      cmpl    $STACK_16_ESP, %esp
        jne     2f
        cmpl    %ebx, alarms
        jb      1b
2:      movl    %esp, %esi
        movl    $START_EBX, %ebx
        flat
        movl    $STACK_TOP, %esp
        xorl    %edi, %edi
        done
try "a 16-bit stack over page faults"
        load    LDT_STACK_16, ss
        movl    $STACK_16_ESP, %esp
        movl    %eax, HOLE
        done
try "a 16-bit stack that faults"
        load    LDT_STACK_16, ss
        movl    $STACK_16_ESP, %esp
        pushl   $1
        ud2
try "a 16-bit stack that is divided by zero on"
        load    LDT_STACK_16, ss
        movl    $STACK_16_ESP, %esp
        xorl    %ecx, %ecx
        divl    %ecx
try "int3 on a 16-bit stack"
        load    LDT_STACK_16, ss
        movl    $STACK_16_ESP, %esp
        int3

stack_16_kept:
        load    LDT_STACK_16, ss
        movl    $STACK_16_ESP, %esp
        ud2
        movl    %esp, %esi
        flat
        movl    $STACK_TOP, %esp
        done

/* long thread(flags, stack, tls, start): clone; the child calls `start` and does not come back. */
thread:
        pushl   %ebx
        pushl   %esi
        pushl   %edi
        movl    16(%esp), %ebx
        movl    20(%esp), %ecx
        movl    24(%esp), %esi
        movl    28(%esp), %edi
        movl    $120, %eax
        int     $0x80
        testl   %eax, %eax
        jz      1f
        popl    %edi
        popl    %esi
        popl    %ebx
        ret
1:      movl    $TLS_SELECTOR(6), %eax
        movl    %eax, %gs
        call    *%edi
        ud2

        .balign 16
        .code16
code_16:
        movw    $0x1234, %bx
        movl    $0x12345678, %ecx
        lretl
code_16_fault:
        movw    $1, %bx
        ud2
code_16_call:
        movl    $20, %eax
        int     $0x80
        movl    $0, %eax
        lretl
        .code32
        .section SNIPPETS, "a"
segment_snippets_end:
        .section .note.GNU-stack, "", @progbits
