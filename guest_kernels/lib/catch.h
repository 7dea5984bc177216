/* catch.h: provoke a trap in kernel mode on purpose and look at it. */
#pragma once
#include "trap.h"

/* Run `before`, then `instruction`; a trap in either resumes after it, with `caught` filled in; EIP, ESP and the callee-saved registers are
 * as before. Inputs are immediates or EBX only: CATCH("", "movl %%ebx, %%cr4", "b"(value)). Clobbers EAX, ECX, EDX, ESI, EDI. */
#define CATCH(before, instruction, ...)                         \
    do {                                                        \
        caught.vector = NOTHING_CAUGHT;                         \
        asm volatile("movl %%esp, catch_esp\n\t"                \
                     "movl $8f, catch_resume\n\t"               \
                     "movl $9f, catch_at\n\t"                   \
                     "movl $8f, catch_after\n\t"                \
                     before "\n"                                \
                     "9: " instruction "\n"                     \
                     "8: movl catch_esp, %%esp\n\t"             \
                     "movl $0, catch_resume"                    \
                     :                                          \
                     : __VA_ARGS__                              \
                     : "eax", "ecx", "edx", "esi", "edi", "memory", "cc"); \
    } while (0)

/* Addresses of the last CATCH: its instruction (where a fault's EIP must point), and what follows it (a trap's). */
extern u32 catch_at, catch_after, catch_esp;
