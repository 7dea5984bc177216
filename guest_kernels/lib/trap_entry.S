/* trap_entry.S: the entry of every vector, the one common path into C and back, and the way into user mode and out of it.
 *
 * The stack that C sees as `struct trap_frame` (trap.h) is built here: the CPU pushes SS and ESP (from user mode only), EFLAGS, CS,
 * EIP and for some vectors an error code; we push 0 for the others, the vector, the general and the data segment registers.
 */
#include "selectors.h"

/* Vectors with an error code: SDM 3A 6.15 "Exception and Interrupt Reference". */
#define HAS_ERROR_CODE(v) ((v) == 8 || ((v) >= 10 && (v) <= 14) || (v) == 17 || (v) == 21)

        .text
        .altmacro
.macro entry vector
        .balign 4
.Ltrap_entry_\vector:
        .if !HAS_ERROR_CODE(\vector)
        pushl   $0
        .endif
        pushl   $\vector
        jmp     trap_common
.endm

.macro address vector
        .long   .Ltrap_entry_\vector
.endm

        .type   trap_entry, @function
trap_entry:
        .set    vector, 0
        .rept   256
        entry   %vector
        .set    vector, vector + 1
        .endr

        .size   trap_entry, . - trap_entry

#ifdef PARAVIRT
        .globl  trap_common             /* upcalls come here too */
#endif
        .type   trap_common, @function
trap_common:
        pushal
        pushl   %ds
        pushl   %es
        pushl   %fs
        pushl   %gs
        movl    $KERNEL_DATA, %eax
        movl    %eax, %ds
        movl    %eax, %es
        cld
        xorl    %ebp, %ebp              /* a back-trace of the kernel ends here */
        pushl   %esp                    /* struct trap_frame * */
        call    TRAP_FUNCTION           /* trap.c: returns the frame to resume, of this context or another */
        movl    %eax, %esp
        popl    %gs
        popl    %fs
        popl    %es
        popl    %ds
        popal
        addl    $8, %esp                /* vector and error code */
        RETURN_FROM_TRAP
        .size   trap_common, . - trap_common

/* u32 user_enter(u32 eip, u32 esp): run user code until something calls user_leave(); returns what that was given. */
        .globl  user_enter
        .type   user_enter, @function
user_enter:
        pushl   %ebp
        movl    %esp, %ebp
        pushl   %ebx
        pushl   %esi
        pushl   %edi
        pushfl
        movl    %esp, user_return_esp
        pushl   %esp
        call    kernel_stack_set        /* traps from user mode land right below this frame */
        addl    $4, %esp
        movl    8(%ebp), %ecx
        movl    12(%ebp), %edx
        movl    $USER_DATA, %eax
        movl    %eax, %ds
        movl    %eax, %es
        pushl   %eax                    /* ss */
        pushl   %edx                    /* esp */
        pushl   $0x202                  /* eflags: IF, and the bit that is always 1 */
        pushl   $USER_CODE
        pushl   %ecx                    /* eip */
        RETURN_FROM_TRAP
        .size   user_enter, . - user_enter

/* void user_leave(u32 value): called by a trap's function; the trap's own frame is dropped. */
        .globl  user_leave
        .type   user_leave, @function
user_leave:
        movl    4(%esp), %eax
        movl    user_return_esp, %esp
        popfl
        popl    %edi
        popl    %esi
        popl    %ebx
        popl    %ebp
        ret
        .size   user_leave, . - user_leave

        .bss
        .balign 4
user_return_esp:
        .skip   4

        .section .rodata
        .balign 4
        .globl  trap_entries
trap_entries:
        .set    vector, 0
        .rept   256
        address %vector
        .set    vector, vector + 1
        .endr

        .section .note.GNU-stack, "", @progbits
