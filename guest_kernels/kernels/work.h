/* work.h: what the kernel, its processes and its rows agree on. */
#pragma once
#include "../lib/spaces.h"

/* System calls: INT 80h with EAX = number and EBX = argument; the result is in EAX. */
enum system_call {
    CALL_COUNT,  /* how often the row's work is to be done */
    CALL_BEGIN,  /* what is measured begins */
    CALL_END,    /* it is over; the argument says whether all came out right. Ends all processes */
    CALL_FORK,   /* 0 in the child, 1 in the parent */
    CALL_EXIT,
    CALL_WAIT,   /* for the child to exit; what it gave to CALL_EXIT */
    CALL_WRITE,  /* a word into the pipe to the other process */
    CALL_READ,   /* a word out of the pipe from it */
    CALL_NOTHING,
};

/* The memory of a process: data at its start, the stack down from its end. */
#define DATA_PAGES 16u
#define STACK_END (WINDOW + DATA_PAGES * PAGE_SIZE)

/* Programs, in work_user.c. */
void forkwait_program(void);
void pipe_program(void);
void mix_program(void);

/* Rows of the kernel alone, in work_kernel.c, and of a disk, in work_file.c. */
int work_compute(u32 n);
int work_stream(u32 n);
int work_sort(u32 n);
int work_file(u32 n);
/* CRC-32, bit by bit. */
u32 work_checksum(const u8 *bytes, u32 count);
