/* trap_entry.S: the entry of every vector and of SYSCALL, and the way into user mode and out of it. The stack is `struct trap_frame` (trap.h). */
#include "selectors.h"

#define HAS_ERROR_CODE(v) ((v) == 8 || ((v) >= 10 && (v) <= 14) || (v) == 17)
#define RFLAGS_IF 0x202

        .text
        .altmacro
.macro entry vector
        .balign 4
.Ltrap_entry_\vector:
        .if !HAS_ERROR_CODE(\vector)
        pushq   $0
        .endif
        pushq   $\vector
        jmp     trap_common
.endm

.macro address vector
        .quad   .Ltrap_entry_\vector
.endm

        .set    vector, 0
        .rept   256
        entry   %vector
        .set    vector, vector + 1
        .endr

        .type   trap_common, @function
trap_common:
        .irp    register, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
        pushq   %\register
        .endr
        cld
        xorl    %ebp, %ebp              /* a back-trace of the kernel ends here */
        movq    %rsp, %rdi
        call    trap_dispatch           /* trap.c */
        .irp    register, r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax
        popq    %\register
        .endr
        addq    $16, %rsp               /* vector and error code */
        iretq
        .size   trap_common, . - trap_common

/* SYSCALL changes neither RSP nor GS: the kernel's GS base is exchanged in, and leads to its stack. */
        .globl  syscall_entry
        .type   syscall_entry, @function
syscall_entry:
        swapgs
        movq    %rsp, %gs:8
        movq    %gs:0, %rsp
        pushq   %gs:8
        pushq   %rcx
        pushq   %r11
        pushq   %rdi
        pushq   %rsi
        pushq   %rdx
        movq    %rdi, %rsi
        movq    %rax, %rdi
        call    *system_call
        popq    %rdx
        popq    %rsi
        popq    %rdi
        popq    %r11
        popq    %rcx
        popq    %rsp
        swapgs
        sysretq
        .size   syscall_entry, . - syscall_entry

/* u64 user_enter(u64 rip, u64 rsp) */
        .globl  user_enter
        .type   user_enter, @function
user_enter:
        .irp    register, rbp, rbx, r12, r13, r14, r15
        pushq   %\register
        .endr
        pushfq
        movq    %rsp, user_return_rsp
        movq    %rdi, %rbx
        movq    %rsi, %rbp
        movq    %rsp, %rdi
        andq    $~15, %rdi
        movq    %rdi, %rsp
        call    kernel_stack_set        /* traps from user mode land right below here */
        pushq   $USER_DATA
        pushq   %rbp
        pushq   $RFLAGS_IF
        pushq   $USER_CODE
        pushq   %rbx
        iretq
        .size   user_enter, . - user_enter

/* void user_leave(u64 value) */
        .globl  user_leave
        .type   user_leave, @function
user_leave:
        movq    %rdi, %rax
        movq    user_return_rsp, %rsp
        popfq
        .irp    register, r15, r14, r13, r12, rbx, rbp
        popq    %\register
        .endr
        ret
        .size   user_leave, . - user_leave

        .bss
        .balign 8
user_return_rsp:
        .skip   8

        .section .rodata
        .balign 8
        .globl  trap_entries
trap_entries:
        .set    vector, 0
        .rept   256
        address %vector
        .set    vector, vector + 1
        .endr

        .section .note.GNU-stack, "", @progbits
