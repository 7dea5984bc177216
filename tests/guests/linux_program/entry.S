/* entry.S: the program's entry, system calls, and attempts: code that runs with known registers until it raises a signal. */
#include "addresses.h"

        .globl  _start, system_call, fast_call, fast_call_entry, attempt, attempt_passed, attempt_over
_start:
        movl    %esp, %eax
        andl    $-16, %esp
        pushl   %eax
        pushl   %eax
        call    main
        movl    %eax, %ebx
        movl    $1, %eax
        int     $0x80

.macro arguments
        pushl   %ebx
        pushl   %esi
        pushl   %edi
        pushl   %ebp
        movl    20(%esp), %eax
        movl    24(%esp), %ebx
        movl    28(%esp), %ecx
        movl    32(%esp), %edx
        movl    36(%esp), %esi
        movl    40(%esp), %edi
        movl    44(%esp), %ebp
.endm
.macro return
        popl    %ebp
        popl    %edi
        popl    %esi
        popl    %ebx
        ret
.endm

system_call:
        arguments
        int     $0x80
        return
fast_call:
        arguments
        call    *fast_call_entry
        return

attempt:
        pusha
        movl    36(%esp), %eax
        movl    %esp, own_stack
        movl    $STACK_TOP, %esp
        pushl   %eax
        pushl   $0x202
        popf
        movl    $START_EAX, %eax
        movl    $START_EBX, %ebx
        movl    $START_ECX, %ecx
        movl    $START_EDX, %edx
        movl    $START_ESI, %esi
        movl    $START_EDI, %edi
        movl    $START_EBP, %ebp
        ret
attempt_passed:
        int3
attempt_over: /* the handler leads here, with segment registers as they should be */
        pushl   $0x202
        popf
        fninit
        ldmxcsr default_mxcsr
        movl    own_stack, %esp
        popa
        ret

        .data
default_mxcsr:
        .long   0x1f80
own_stack:
        .long   0
fast_call_entry:
        .long   0
        .section .note.GNU-stack, "", @progbits
