/* trap.h: exceptions, interrupts and system calls of a 64-bit kernel, and the way to user mode and back. */
#pragma once
#include "../lib/types.h"

/* What trap_entry.S leaves on the stack: SDM 3A 6.14.2 "64-Bit Mode Stack Frame". */
struct trap_frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    u64 vector, error;
    u64 rip, cs, rflags, rsp, ss;
};

/* The function of a vector; what it changes in the frame is what the interrupted code finds. */
typedef void trap_function(struct trap_frame *frame);

/* Load the IDT, the TSS, and what SYSCALL wants. Vectors from 80h on are open to users. */
void traps_setup(void);
void trap_set(u8 vector, trap_function *function);
/* The gate of `vector` uses stack 1 to 7 of the TSS, or the current one (0). */
void trap_stack(u8 vector, u8 stack);
/* The top of the stack that the TSS has as number 1. */
u64 interrupt_stack_top(void);
/* What SYSCALL calls, with RAX and RDI; the result goes to RAX. */
extern u64 (*system_call)(u64 number, u64 argument);

/* Where traps and system calls out of user mode find their stack; user_enter() says it. */
void kernel_stack_set(u64 top);
/* Run user code at `rip` with stack `rsp` until something calls user_leave(); returns what that was given. */
u64 user_enter(u64 rip, u64 rsp);
__attribute__((noreturn)) void user_leave(u64 value);
