/* faults.h: the parts of the faults kernel. */
#pragma once

/* GDT entries made by descriptors_spoil(). */
#define ABSENT_DATA 0x30      /* not present, DPL 3 */
#define ABSENT_CODE 0x38      /* not present, DPL 0 */
#define READ_ONLY_DATA 0x40
#define EXECUTE_ONLY 0x48
#define LOCAL_TABLE 0x50      /* an LDT with one data segment */
#define ABSENT_TABLE 0x58     /* not present */
#define BEYOND_TABLE 0x1000   /* outside the GDT */

/* IDT entries made by descriptors_spoil(): not present and DPL 3; DPL 0. */
#define ABSENT_GATE 0x90
#define KERNEL_GATE 0x91

/* What a selector looks like in an error code. */
#define ERROR_OF(selector) ((selector) & ~3)

#ifndef __ASSEMBLER__
#include "../lib/types.h"

/* Each makes its exceptions happen and reports on each. */
void report_kernel_exceptions(void);
void report_user_exceptions(void);
void report_user_io(void);
void report_single_steps(void);
void report_paging(int pae);
void report_demand_paging(int pae);
__attribute__((noreturn)) void triple_fault(void);

/* Make the entries above. */
void descriptors_spoil(void);
/* Report that the last catch was this fault: its vector, its error code, and EIP at the instruction itself. */
void expect_fault(u32 vector, u32 error, const char *what);

/* User code, in faults_snippets.S: one that faults, and what it must give. */
struct snippet {
    u32 entry, eip, vector, error;
    const char *what;
};
extern const struct snippet user_snippets[], user_snippets_end[], io_snippets[], io_snippets_end[];
/* These take an address from the top of their stack, and end with INT 80h. */
void user_read(void), user_write(void), user_fetch(void), user_step(void);
void user_fill(void); /* address, count of u32, value: stores the value, then returns the sum of what it reads back */
#endif
