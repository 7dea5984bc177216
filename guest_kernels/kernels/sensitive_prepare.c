/* sensitive_prepare.c: set-up and masks of forms that the table's constants cannot say. */
#include "sensitive.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/memory.h"

void prepare_cr0(struct registers *before, int user), prepare_cr3(struct registers *before, int user), prepare_cr4(struct registers *before, int user);
void prepare_clts(struct registers *before, int user), prepare_gdt(struct registers *before, int user), prepare_idt(struct registers *before, int user);
void prepare_hlt(struct registers *before, int user), prepare_lmsw(struct registers *before, int user);
void mask_time(struct registers *after), mask_cpuid(struct registers *after), mask_smsw(struct registers *after);

#define CR4_DE (1u << 3)
#define FASTEST_TIMER_HERTZ 1000
/* CPUID.1:EDX: FPU PSE TSC MSR PAE CX8 SEP PGE CMOV MMX FXSR SSE SSE2. What a machine has beside these is its own business. */
#define COMMON_FEATURES 0x0780a979u

static u32 other_directory;

void prepare_setup(void)
{
    other_directory = (u32)page_alloc();
    memcpy((void *)other_directory, (const void *)read_cr3(), PAGE_SIZE);
    pit_setup(FASTEST_TIMER_HERTZ);
}

void prepare_cr0(struct registers *before, int user)
{
    (void)user;
    before->eax = read_cr0() ^ CR0_MP;
}

void prepare_cr3(struct registers *before, int user)
{
    (void)user;
    before->eax = other_directory;
}

void prepare_cr4(struct registers *before, int user)
{
    (void)user;
    before->eax = read_cr4() ^ CR4_DE;
}

void prepare_clts(struct registers *before, int user)
{
    (void)before, (void)user;
    write_cr0(read_cr0() | CR0_TS);
}

void prepare_lmsw(struct registers *before, int user)
{
    (void)user;
    before->eax = (before->eax & ~0xfu) | CR0_PE | CR0_TS;
    *(volatile u32 *)OPERAND = before->eax;
}

/* Tables at the same places, with shorter limits that still hold what a case needs. */
static void table_operand(u16 limit, u32 base) { *(volatile struct table_register *)OPERAND = (struct table_register){limit, base}; }

void prepare_gdt(struct registers *before, int user)
{
    (void)before, (void)user;
    table_operand(OTHER_TASK + 7, gdt_address());
}

void prepare_idt(struct registers *before, int user)
{
    (void)before, (void)user;
    table_operand(0x80 * 8 + 7, idt_address());
}

void prepare_hlt(struct registers *before, int user)
{
    (void)before, (void)user;
    pic_unmask(IRQ_TIMER);
}

/* Of the time only that it was read: no two reads are alike. */
void mask_time(struct registers *after)
{
    if (after->eax != UNTOUCHED_EAX || after->edx != UNTOUCHED_EDX)
        after->eax = after->edx = 0;
}

/* Of a 32-bit register the lower half: the upper one is undefined (SDM 2B "SMSW"). */
void mask_smsw(struct registers *after) { after->ecx &= 0xffff; }

/* Of leaf 1 only the features that every machine has which can run this kernel: model, clock and cache sizes are nobody's business. */
void mask_cpuid(struct registers *after)
{
    if (after->eax == 1)
        return;
    after->eax = after->ebx = after->ecx = 0;
    after->edx &= COMMON_FEATURES;
}
