/* mono.h: what the kernel and its programs agree on. */
#pragma once
#include "services.h"

/* System calls: INT 80h with EAX = number and EBX = argument; the result is in EAX. */
enum system_call {
    CALL_ASK,   /* have the message answered */
    CALL_YIELD,
    CALL_END,   /* the end of the run: EBX things went right */
};

enum { SHELL, COUNTER, THREADS };

void shell_program(void);
void counter_program(void);
