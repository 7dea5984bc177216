/* faults_kernel.c: exceptions in kernel mode, other than page faults. */
#include "../lib/catch.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/report.h"
#include "faults.h"

#define IDT_ERROR(vector) ((vector) * 8 + 2) /* SDM 3A 6.13 "Error Code" */
#define LOCAL_DATA 0x04                      /* entry 0 of the LDT */
#define LOCAL_BEYOND 0x1004                  /* outside the LDT */

static u64 local_table[1];

void expect_fault(u32 vector, u32 error, const char *what)
{
    if (caught.vector == vector && caught.error == error && caught.eip == catch_at)
        report(1, "%s", what);
    else
        report(0, "%s: vector %d, error %x, EIP %d bytes off", what, (int)caught.vector, caught.error, (int)(caught.eip - catch_at));
}

static void expect_trap(u32 vector, const char *what)
{
    report(caught.vector == vector && caught.error == 0 && caught.eip == catch_after, "%s", what);
}

void descriptors_spoil(void)
{
    segment_set(ABSENT_DATA, 0, 0xffffffff, SEGMENT_DPL(3) | SEGMENT_DATA);
    segment_set(ABSENT_CODE, 0, 0xffffffff, SEGMENT_DPL(KERNEL_LEVEL) | SEGMENT_CODE);
    segment_set(READ_ONLY_DATA, 0, 0xffffffff, SEGMENT_PRESENT | 0x10);
    segment_set(EXECUTE_ONLY, 0, 0xffffffff, SEGMENT_PRESENT | 0x18);
    segment_set(LOCAL_TABLE, (u32)local_table, sizeof local_table - 1, SEGMENT_PRESENT | SYSTEM_LDT);
    segment_set(ABSENT_TABLE, (u32)local_table, sizeof local_table - 1, SYSTEM_LDT);
    local_table[0] = segment_get(KERNEL_DATA);
    gate_set(ABSENT_GATE, SEGMENT_DPL(3) | GATE_INTERRUPT);
}

static void report_arithmetic(void)
{
    CATCH("xorl %%edx, %%edx; movl $1, %%eax; xorl %%ecx, %%ecx", "divl %%ecx", );
    expect_fault(DIVIDE_ERROR, 0, "#DE: division by zero");
    CATCH("movl $0x80000000, %%eax; cltd; movl $-1, %%ecx", "idivl %%ecx", );
    expect_fault(DIVIDE_ERROR, 0, "#DE: quotient too large");
    CATCH("movb $127, %%al; addb $1, %%al", "into", );
    expect_trap(OVERFLOW, "#OF: into with OF set");
    CATCH("xorl %%eax, %%eax", "into", );
    report(caught.vector == NOTHING_CAUGHT, "into with OF clear does nothing");
    CATCH("pushl $5; pushl $1; movl $6, %%eax", "bound %%eax, (%%esp)", );
    expect_fault(BOUND_RANGE, 0, "#BR: bound");
}

static void report_opcodes(void)
{
    CATCH("", "int3", );
    expect_trap(BREAKPOINT, "#BP: int3");
    CATCH("", ".byte 0xcd, 3", );
    expect_trap(BREAKPOINT, "#BP: int 3 of two bytes");
    CATCH("", "ud2", );
    expect_fault(INVALID_OPCODE, 0, "#UD: ud2");
    CATCH("", ".byte 0x8e, 0xc8", );
    expect_fault(INVALID_OPCODE, 0, "#UD: mov to CS");
    CATCH("", ".byte 0x8d, 0xc0", );
    expect_fault(INVALID_OPCODE, 0, "#UD: lea of a register");
    CATCH("", ".byte 0x0f, 0x20, 0xc8", );
    expect_fault(INVALID_OPCODE, 0, "#UD: read of CR1");
}

static void report_fpu(void)
{
    u32 cr0 = read_cr0();
    write_cr0(cr0 | CR0_TS);
    CATCH("", "fld1", );
    expect_fault(NO_FPU, 0, "#NM: CR0.TS");
    clts();
    write_cr0(cr0 | CR0_EM);
    CATCH("", "fld1", );
    expect_fault(NO_FPU, 0, "#NM: CR0.EM");
    write_cr0((cr0 & ~(CR0_EM | CR0_TS)) | CR0_NE);
    CATCH("fninit; pushl $0x37b; fldcw (%%esp); fld1; fldz; fdivrp", "fwait", ); /* 37Bh: zero-divide not masked */
    expect_fault(FPU_ERROR, 0, "#MF: division by zero on the FPU");
    asm volatile("fninit");
}

static void report_not_present(void)
{
    CATCH("movl %0, %%eax", "movl %%eax, %%ds", "i"(ABSENT_DATA));
    expect_fault(NOT_PRESENT, ABSENT_DATA, "#NP: data segment into DS");
    CATCH("movl %0, %%eax", "movl %%eax, %%gs", "i"(ABSENT_DATA | 3));
    expect_fault(NOT_PRESENT, ABSENT_DATA, "#NP: data segment into GS, the RPL is not in the error code");
    CATCH("", "ljmp %0, $0", "i"(ABSENT_CODE));
    expect_fault(NOT_PRESENT, ABSENT_CODE, "#NP: far jump");
    CATCH("", "lcall %0, $0", "i"(ABSENT_CODE));
    expect_fault(NOT_PRESENT, ABSENT_CODE, "#NP: far call");
    CATCH("movl %0, %%eax", "lldt %%ax", "i"(ABSENT_TABLE));
    expect_fault(NOT_PRESENT, ABSENT_TABLE, "#NP: lldt");
    CATCH("", "int %0", "i"(ABSENT_GATE));
    expect_fault(NOT_PRESENT, IDT_ERROR(ABSENT_GATE), "#NP: int through a gate that is not present");
    segment_set(ABSENT_DATA, 0, 0xffffffff, SEGMENT_DPL(KERNEL_LEVEL) | SEGMENT_DATA);
    CATCH("movl %0, %%eax", "movl %%eax, %%ss", "i"(ABSENT_DATA | KERNEL_LEVEL));
    expect_fault(STACK_FAULT, ABSENT_DATA, "#SS: segment that is not present into SS");
    descriptors_spoil();
}

static void report_selectors(void)
{
    CATCH("movl %0, %%eax", "movl %%eax, %%ds", "i"(BEYOND_TABLE));
    expect_fault(GENERAL_PROTECTION, BEYOND_TABLE, "#GP: selector beyond the GDT into DS");
    CATCH("movl %0, %%eax", "movl %%eax, %%es", "i"(TASK_STATE));
    expect_fault(GENERAL_PROTECTION, TASK_STATE, "#GP: a system descriptor into ES");
    CATCH("movl %0, %%eax", "movl %%eax, %%fs", "i"(EXECUTE_ONLY));
    expect_fault(GENERAL_PROTECTION, EXECUTE_ONLY, "#GP: an execute-only segment into FS");
    CATCH("movl %0, %%eax", "movl %%eax, %%ss", "i"(READ_ONLY_DATA));
    expect_fault(GENERAL_PROTECTION, READ_ONLY_DATA, "#GP: a read-only segment into SS");
    CATCH("movl %0, %%eax", "movl %%eax, %%ss", "i"(USER_DATA));
    expect_fault(GENERAL_PROTECTION, ERROR_OF(USER_DATA), "#GP: a user segment into SS");
    CATCH("xorl %%eax, %%eax", "movl %%eax, %%ss", );
    expect_fault(GENERAL_PROTECTION, 0, "#GP: null into SS");
    CATCH("pushl %0", "popl %%es", "i"(BEYOND_TABLE));
    expect_fault(GENERAL_PROTECTION, BEYOND_TABLE, "#GP: pop of a bad selector into ES");
}

static void report_far_transfers(void)
{
    CATCH("", "ljmp %0, $0", "i"(KERNEL_DATA));
    expect_fault(GENERAL_PROTECTION, ERROR_OF(KERNEL_DATA), "#GP: far jump to data");
    CATCH("", "ljmp $0, $0", );
    expect_fault(GENERAL_PROTECTION, 0, "#GP: far jump to null");
    CATCH("", "lcall %0, $0", "i"(BEYOND_TABLE));
    expect_fault(GENERAL_PROTECTION, BEYOND_TABLE, "#GP: far call beyond the GDT");
    CATCH("pushl %0; pushl $0", "lret", "i"(KERNEL_DATA));
    expect_fault(GENERAL_PROTECTION, ERROR_OF(KERNEL_DATA), "#GP: far return to data");
    CATCH("pushfl; pushl %0; pushl $0", "iret", "i"(BEYOND_TABLE));
    expect_fault(GENERAL_PROTECTION, BEYOND_TABLE, "#GP: iret beyond the GDT");
    CATCH("pushl %0; pushl $0; pushfl; pushl %1; pushl $0", "iret", "i"(KERNEL_DATA), "i"(USER_CODE));
    expect_fault(GENERAL_PROTECTION, ERROR_OF(KERNEL_DATA), "#GP: iret to user code with a kernel stack segment");
}

static void report_system_registers(void)
{
    CATCH("movl %0, %%eax", "ltr %%ax", "i"(TASK_STATE));
    expect_fault(GENERAL_PROTECTION, TASK_STATE, "#GP: ltr of a busy TSS");
    CATCH("movl %0, %%eax", "lldt %%ax", "i"(KERNEL_DATA));
    expect_fault(GENERAL_PROTECTION, ERROR_OF(KERNEL_DATA), "#GP: lldt of a data segment");

    lidt(&(struct table_register){0x80 * 8 - 1, idt_address()});
    CATCH("", "int %0", "i"(KERNEL_GATE));
    expect_fault(GENERAL_PROTECTION, IDT_ERROR(KERNEL_GATE), "#GP: int beyond the IDT");
    lidt(&(struct table_register){256 * 8 - 1, idt_address()});
}

static void report_local_table(void)
{
    static const u32 word = 0x600d;
    u32 seen;
    lldt(LOCAL_TABLE);
    asm volatile("movl %1, %%fs; movl %%fs:%2, %0; movl %3, %%fs" : "=&r"(seen) : "r"(LOCAL_DATA), "m"(word), "r"(0));
    report(seen == word && sldt() == LOCAL_TABLE, "a segment of the LDT");
    CATCH("movl %0, %%eax", "movl %%eax, %%fs", "i"(LOCAL_BEYOND));
    expect_fault(GENERAL_PROTECTION, LOCAL_BEYOND, "#GP: selector beyond the LDT");
    lldt(0);
    CATCH("movl %0, %%eax", "movl %%eax, %%fs", "i"(LOCAL_DATA));
    expect_fault(GENERAL_PROTECTION, LOCAL_DATA, "#GP: selector into a null LDT");
}

static u32 flags_in_gate;
static struct trap_frame *remember_flags(struct trap_frame *frame)
{
    flags_in_gate = read_eflags();
    return frame;
}

/* An interrupt gate clears IF, a trap gate leaves it. All interrupt lines are masked. */
static void report_gates(void)
{
    trap_set(BREAKPOINT, remember_flags);
    sti();
    asm volatile("int3" : : : "memory");
    report(!(flags_in_gate & EFLAGS_IF) && read_eflags() & EFLAGS_IF, "an interrupt gate clears IF until IRET");
    gate_set(BREAKPOINT, SEGMENT_PRESENT | SEGMENT_DPL(3) | GATE_TRAP);
    asm volatile("int3" : : : "memory");
    report((flags_in_gate & EFLAGS_IF) != 0, "a trap gate leaves IF on");
    cli();
    gate_set(BREAKPOINT, SEGMENT_PRESENT | SEGMENT_DPL(3) | GATE_INTERRUPT);
    trap_set(BREAKPOINT, 0);
}

void report_kernel_exceptions(void)
{
    report_arithmetic();
    report_opcodes();
    report_fpu();
    report_not_present();
    report_selectors();
    report_far_transfers();
    report_system_registers();
    report_local_table();
    report_gates();
}

void triple_fault(void)
{
    lidt(&(struct table_register){0, 0});
    asm volatile("int3");
    for (;;)
        asm volatile("cli; hlt");
}
