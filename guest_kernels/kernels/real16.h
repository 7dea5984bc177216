/* real16.h: what the round trip through the modes leaves behind, for C and assembly. */
#pragma once

#define LOW 0x8000              /* the code that runs in 16-bit modes is copied there */
#define LOW_STACK 0x7000
#define RESULTS 0x6000          /* 32-bit words, in this order */

#define REAL_CR0 0              /* CR0 as real mode sees it */
#define REAL_INTERRUPTS 1       /* what INT 40h's handler added up */
#define REAL_SEGMENTED 2        /* the word at 1234h:0010h */
#define REAL_WRAPPED 3          /* bytes pushed with SP 0: where they went */
#define REAL_TICKS 4            /* timer interrupts through the vector table */
#define REAL_DIVIDE 5           /* CS:IP that a division by zero pushed */
#define REAL_DIVIDE_AT 6        /* and where it stood */
#define LONG_EFER 7
#define LONG_LOW 8              /* a 64-bit sum, and its upper half */
#define LONG_HIGH 9
#define LONG_FAR 10             /* a word read by an address beyond 4 GiB */
#define NARROW_SUM 11           /* the same sum in compatibility mode */
#define AFTER_EFER 12           /* EFER once paging is off */
#define AGAIN_CR0 13
#define RESULT_COUNT 14
