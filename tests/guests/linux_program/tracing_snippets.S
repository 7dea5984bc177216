/* tracing_snippets.S: what is stepped through. */
#include "addresses.h"
        .globl  stepped, stepped_calls, looped, looped_at
        .text
stepped:
        nop
        movl    $3, %ecx
        movl    $DATA, %edi
        rep stosb
        pushf
        popl    %edx
        pushl   $0x246
        popf
        jz      1f
        nop
1:      call    2f
        movl    %ds, %eax
        movl    %eax, %ss       /* nothing stops behind it */
        nop
        movl    %eax, %es
        movl    $2, %ecx
3:      loop    3b
        fld1
        fstp    %st
        lock incl DATA
        jmp     attempt_passed
2:      ret     $0

stepped_calls:
        movl    $20, %eax       /* getpid, three times */
        int     $0x80
        movl    %eax, %ebx
        movl    $20, %eax
        int     $0x80
        movl    %eax, %ecx
        movl    $20, %eax
        int     $0x80
        movl    %eax, %edx
        movl    $0, %eax
        jmp     attempt_passed

/* 10 + 9 + ... + 1 */
looped:
        movl    $10, %ecx
        xorl    %eax, %eax
        xorl    %edx, %edx
        movd    %edx, %xmm0
looped_at:
        addl    %ecx, %eax
        loop    looped_at
        movd    %xmm0, %edx
        jmp     attempt_passed
        .section .note.GNU-stack, "", @progbits
