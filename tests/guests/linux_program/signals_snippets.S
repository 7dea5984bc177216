/* signals_snippets.S: code that signals interrupt. */
#include "addresses.h"

        .globl  register_loop, string_loop, skipped
        .text
skipped:
        ud2
        jmp     attempt_passed

/* All registers and the carry flag as they were, until 20 alarms have come. */
register_loop:
        stc
1:      jnc     2f
        cmpl    $START_EAX, %eax
        jne     2f
        cmpl    $START_EBX, %ebx
        jne     2f
        cmpl    $START_ECX, %ecx
        jne     2f
        cmpl    $START_EDX, %edx
        jne     2f
        cmpl    $START_ESI, %esi
        jne     2f
        cmpl    $START_EDI, %edi
        jne     2f
        cmpl    $START_EBP, %ebp
        jne     2f
        cmpl    $STACK_TOP, %esp
        jne     2f
        cmpl    $20, alarms
        jb      1b              /* with carry */
        xorl    %eax, %eax
        jmp     attempt_passed
2:      ud2

/* A page is filled and compared again and again. */
string_loop:
        movl    $DATA, %edi
        movl    $4096, %ecx
        movb    alarms, %al
        rep stosb
        movl    $DATA, %edi
        movl    $4096, %ecx
        repe scasb
        jne     2f
        movl    $DATA, %esi
        movl    $FRESH, %edi
        movl    $1024, %ecx
        rep movsl
        movl    $DATA, %esi
        movl    $FRESH, %edi
        movl    $1024, %ecx
        repe cmpsl
        jne     2f
        cmpl    $20, alarms
        jb      string_loop
        xorl    %eax, %eax
        jmp     attempt_passed
2:      ud2
        .section .note.GNU-stack, "", @progbits
