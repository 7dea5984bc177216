/* rings.h: what the kernel and its user programs agree on. */
#pragma once
#include "../lib/types.h"

/* System calls: INT 80h with EAX = number and EBX = argument; the result is in EAX. */
enum system_call {
    CALL_RESULT, /* hand in the result of a round; 1: compute another one, 0: enough */
    CALL_BROKEN, /* tell that something did not survive: the argument says what */
    CALL_SLEEP,  /* give up the CPU for that many ticks */
    CALL_EXIT,
};

/* One page of its own for each process, at the same address in all: data at its start, the stack down from its end. */
#define PRIVATE_PAGE 0x40000000u
#define PRIVATE_END (PRIVATE_PAGE + 4096)

struct private_page {
    u32 process;
    u32 rounds;
};

#define PROCESSES 4

/* The programs, in rings_user.c. */
void checksum_program(void);
void primes_program(void);
void series_program(void);
void registers_program(void);
