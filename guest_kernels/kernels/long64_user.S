/* long64_user.S: the user programs of long64. They run where USER_BASE is, wherever they are linked. RBX: where to go on behind a fault. */
#include "../long/selectors.h"
#include "long64.h"

        .section .user, "ax"

.macro leave_with register
        movq    \register, %rdi
        movl    $CALL_LEAVE, %eax
        syscall
.endm

/* Both kinds of system call, with all other registers kept: leaves with 0, or the number of what went wrong. */
        .globl  user_calls
user_calls:
        movabsq $0x0123456789abcdef, %r15
        movq    %r15, %r14
        notq    %r14
        movl    $200, %r13d
        xorl    %r12d, %r12d
1:      movq    %r13, %rdi
        shlq    $33, %rdi
        movq    %rdi, %rbp
        movl    $CALL_DOUBLE, %eax
        int     $CALL_VECTOR
        leaq    (%rbp, %rbp), %rdx
        movl    $1, %r12d
        cmpq    %rdx, %rax
        jne     9f
        movl    $CALL_DOUBLE, %eax
        syscall
        movl    $2, %r12d
        leaq    (%rbp, %rbp), %rdx
        cmpq    %rdx, %rax
        jne     9f
        movl    $3, %r12d
        cmpq    %rdi, %rbp
        jne     9f
        movl    $4, %r12d
        pushfq
        popq    %rdx
        btl     $9, %edx                /* IF */
        jnc     9f
        movl    $5, %r12d
        movq    %r14, %rdx
        notq    %rdx
        cmpq    %rdx, %r15
        jne     9f
        xorl    %r12d, %r12d
        decl    %r13d
        jnz     1b
9:      leave_with %r12

/* Counts until it has been interrupted three times: leaves with whether its registers were its own all the time. */
        .globl  user_spins
user_spins:
        xorl    %r12d, %r12d
        xorl    %r13d, %r13d
1:      movl    $100000, %ecx
2:      incq    %r12
        leaq    (%r13, %r12), %r13
        subq    %r12, %r13
        incq    %r13
        loop    2b
        movl    $CALL_TICKS, %eax
        syscall
        cmpq    $3, %rax
        jb      1b
        xorl    %edi, %edi
        cmpq    %r12, %r13
        sete    %dil
        leave_with %rdi

/* What users may not do: each is one instruction, and goes on at RBX. */
.macro attempt name, body:vararg
        .globl  user_\name
user_\name:
        leaq    1f(%rip), %rbx
        \body
1:      leave_with %rax
.endm
        attempt hlt, hlt
        attempt write_kernel, movq %rax, 0x100000
        attempt read_high, movq 0xffffffff80000000, %rax
        attempt not_canonical, movabsq 0x0000800000000000, %rax
        attempt gate, int $0x20
        attempt execute_data, jmp *data_page(%rip)
        attempt undefined, ud2
        attempt swapgs, swapgs
        attempt read_cr8, movq %cr8, %rax
data_page:
        .quad   USER_DATA_PAGE

/* 32-bit code in between: a far return to it, a system call from there, and a far jump back. Leaves with what it computed. */
        .globl  user_narrow
user_narrow:
        movabsq $0x1111111122222222, %r8
        leaq    1f(%rip), %rax
        pushq   $USER_CODE_32
        pushq   %rax
        lretq
        .code32
1:      movl    $USER_DATA, %eax
        movl    %eax, %ds
        call    2f
2:      popl    %ebx
        movl    $0x7fffffff, %edi
        addl    $0x80000000, %edi       /* 32 bits: ffffffff */
        movl    $CALL_DOUBLE, %eax
        int     $CALL_VECTOR
        incl    %eax                    /* the kernel gave fffffffe in 32 bits */
        leal    3f - 2b(%ebx), %edx
        pushl   $USER_CODE
        pushl   %edx
        lret
        .code64
3:      xorq    %r8, %rax
        leave_with %rax

        .section .note.GNU-stack, "", @progbits
