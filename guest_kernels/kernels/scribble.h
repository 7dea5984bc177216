/* scribble.h: what the kernel and its programs agree on. */
#pragma once
#include "services.h"

/* System calls: INT 80h with EAX = number and EBX = argument; the result is in EAX. */
enum system_call {
    CALL_SLEEP,    /* for so many ticks */
    CALL_WAIT,     /* for the next interrupt; for the idle thread */
    CALL_CHECKED,  /* a check is done: 0, or how much was wrong */
    CALL_SCRIBBLE, /* a round: random bytes at random places, twice as many as in the last one */
};

enum { IDLE, PATTERN, SUMS, SCRIBBLER, THREADS };

/* What the pattern thread fills and looks through, in its own address space. */
#define PATTERN_AT 0x50000000u
#define PATTERN_BYTES (32u << 10)

void idle_program(void);
void pattern_program(void);
void sums_program(void);
void scribbler_program(void);
