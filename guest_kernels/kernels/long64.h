/* long64.h: what the user programs of long64 and its kernel have in common, for C and assembly. */
#pragma once

#define CALL_DOUBLE 1   /* the argument, doubled: by INT 80h and by SYSCALL */
#define CALL_TICKS 2    /* timer interrupts so far that came in user mode */
#define CALL_LEAVE 3    /* back to the kernel, with a value */
#define CALL_VECTOR 0x80

#define USER_BASE 0x40000000    /* where the user's pages are mapped: below 4 GiB, for 32-bit code */
#define USER_STACK_TOP (USER_BASE + 0x9000)
#define USER_DATA_PAGE (USER_BASE + 0x8000) /* the stack's, not executable */
