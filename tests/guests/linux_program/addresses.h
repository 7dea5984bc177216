/* addresses.h: where the program keeps what its snippets work on; numbers only, for assembly and C. */
#pragma once
#define DATA 0x20000000      /* a page to read and write, behind which nothing is mapped */
#define HOLE 0x20001000
#define CONSTANT 0x20003000  /* a page to read only */
#define FRESH 0x20005000     /* a page that nobody has touched */
#define BORDER 0x20007000    /* a page of code, behind which nothing is mapped */
#define STACK 0x20010000     /* the stack of attempts */
#define STACK_TOP 0x20020000
#define SIGNAL_STACK 0x20030000
#define SIGNAL_STACK_SIZE 0x8000
#define ALIAS 0x20040000     /* code written in one place and run in another */
#define KERNEL 0xc1000000

/* What registers hold when an attempt begins. */
#define START_EAX 0x11111111
#define START_EBX 0x22222222
#define START_ECX 0x33333333
#define START_EDX 0x44444444
#define START_ESI 0x55555555
#define START_EDI 0x66666666
#define START_EBP 0x77777777

/* Linux's selectors for users. */
#define USER_CS 0x73
#define USER_DS 0x7b
#define KERNEL_CS 0x60
#define TLS_SELECTOR(entry) ((entry) * 8 + 3)
#define LDT_SELECTOR(entry) ((entry) * 8 + 7)

/* Entries of the LDT: a flat data segment, a code segment that is not present, a data segment that is not, 16-bit code, a 16-bit stack. */
#define LDT_DATA 0
#define LDT_ABSENT_CODE 1
#define LDT_ABSENT_DATA 2
#define LDT_CODE_16 3
#define LDT_STACK_16 4
#define LDT_MOVING 5
#define STACK_16_BASE STACK
#define STACK_16_ESP 0xabcdf000 /* only its lower half says where */
