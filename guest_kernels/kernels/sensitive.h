/* sensitive.h: the parts of the sensitive kernel. */
#pragma once

/* Low memory that the cases use, user-accessible and mapped as it is. Instructions stand below 64 KiB, so that jumps with a 16-bit operand size,
 * which cut EIP off, go where the others go. */
#define CODE 0x8000
#define DATA 0xa000
#define STACK 0xbf00    /* ESP of a case */
#define TARGET 0x8020   /* where a case's jumps lead */
#define OPERAND 0xa010  /* EBX */
#define SOURCE 0xa020   /* ESI */
#define DESTINATION 0xa030 /* EDI */
#define DATA_BYTES 0x40

/* GDT entries of this kernel. */
#define OTHER_KERNEL_DATA 0x30
#define OTHER_USER_DATA 0x3b
#define LOOKED_AT 0x43  /* data of DPL 3 that nothing loads */
#define LOCAL_TABLE 0x48
#define OTHER_TASK 0x50

/* Stand in registers, memory and instructions for a selector of the mode that the case runs in. */
#define MY_CODE 0xc5c5
#define MY_DATA 0xd5d5
#define MY_OTHER_DATA 0xe5e5

#define UNTOUCHED_EAX 0xa1a2a3a4
#define UNTOUCHED_ECX 0xc1c2c3c4
#define UNTOUCHED_EDX 0xd1d2d3d4
#define FLAGS 0xad7 /* all arithmetic flags and IF */

#ifndef __ASSEMBLER__
#include "../lib/types.h"

/* The registers of a case, before and after. */
struct registers {
    u32 eax, ecx, edx, ebx, esp, ebp, esi, edi, eip, eflags, cs, ss, ds, es, fs, gs;
};

/* One instruction in one of its forms. */
struct form {
    const char *name;
    const u8 *code, *end;
    u32 eax, ecx, edx, eflags;
    u32 memory[2], stack[3];       /* at EBX and at ESP */
    void (*prepare)(struct registers *before, int user); /* what constants cannot say; or null */
    void (*mask)(struct registers *after);               /* takes out what differs between machines; or null */
};
extern const struct form forms[], forms_end[]; /* sensitive_forms.S */

/* sensitive_run.S: loads all registers from `case_registers`, and returns when something calls case_leave(). */
extern struct registers case_registers;
void case_run(void);
__attribute__((noreturn)) void case_leave(void);

/* sensitive_state.c: control, debug, table and model-specific registers, and the interrupt mask. */
void state_setup(void);
void state_prepare(void); /* as they are before each case */
void state_remember(void);
void state_print_changes(void);

/* sensitive_prepare.c: the functions that the table of forms names. */
void prepare_setup(void);
#endif
