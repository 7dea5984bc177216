/* trap.h: exceptions, system calls and interrupts, as the kernel's C code sees them. */
#pragma once
#include "types.h"

enum vector {
    DIVIDE_ERROR = 0,
    DEBUG_TRAP = 1,
    BREAKPOINT = 3,
    OVERFLOW = 4,
    BOUND_RANGE = 5,
    INVALID_OPCODE = 6,
    NO_FPU = 7,
    DOUBLE_FAULT = 8,
    INVALID_TSS = 10,
    NOT_PRESENT = 11,
    STACK_FAULT = 12,
    GENERAL_PROTECTION = 13,
    PAGE_FAULT = 14,
    FPU_ERROR = 16,
    SYSTEM_CALL = 0x80,
};

/* What trap_entry.S and the CPU leave on the stack; lowest address first. */
struct trap_frame {
    u32 gs, fs, es, ds;
    u32 edi, esi, ebp, unused_esp, ebx, edx, ecx, eax;
    u32 vector, error;
    u32 eip, cs, eflags;
    u32 esp, ss; /* only there when from_user() */
};

static inline int from_user(const struct trap_frame *frame) { return (frame->cs & 3) == 3; }

/* A vector's function gets the interrupted context and returns the one to resume: the same, or that of another process. */
typedef struct trap_frame *trap_function(struct trap_frame *frame);

/* From now on `function` takes `vector`; null gives it back to the default, which reports a failure and ends the run. */
void trap_set(u8 vector, trap_function *function);

/* What the last caught trap was. */
struct caught {
    u32 vector;   /* NOTHING_CAUGHT when none came */
    u32 error, eip, cr2;
    u32 user;     /* it came from user mode */
    u32 eax, ecx, esi, edi, eflags;
};
#define NOTHING_CAUGHT 0xffffffffu
extern struct caught caught;

/* Where the kernel resumes after a trap that it provokes on purpose; set by CATCH() in catch.h. */
extern u32 catch_resume;

/* Run user code at eip with the stack pointer esp, until INT 80h, whose EAX is returned, or until a trap without a function of its
 * own, which goes to `caught` (0 is returned then). Interrupts are on meanwhile. */
u32 user_run(u32 eip, u32 esp);
