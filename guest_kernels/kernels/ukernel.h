/* ukernel.h: what the microkernel and its processes agree on. */
#pragma once
#include "services.h"

/* System calls: INT 80h with EAX = number and EBX = argument; the result is in EAX. */
enum system_call {
    CALL_ASK,     /* send the message to thread EBX and wait for its answer, which replaces it; 0, or SERVER_DIED */
    CALL_RECEIVE, /* wait for a message; who sent it */
    CALL_REPLY,   /* answer thread EBX with the message */
    CALL_YIELD,
    CALL_WATCH,   /* wait until a thread dies; which one. For init */
    CALL_START,   /* start thread EBX again. For init */
    CALL_END,     /* the end of the run: EBX things went right. For the shell */
};

enum { INIT, CONSOLE, FILE_SERVER, SHELL, COUNTER, THREADS };

void init_program(void);
void console_program(void);
void files_program(void);
void shell_program(void);
void counter_program(void);
