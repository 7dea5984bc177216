/* sensitive_state.c: the privileged registers: what they were before a case, what changed, and back to what they were. */
#include "sensitive.h"
#include "../lib/console.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/memory.h"

#define SYSENTER_CS 0x174
#define SYSENTER_ESP 0x175
#define SYSENTER_EIP 0x176
#define MASK_PORT 0x21 /* the interrupt mask of the first 8259 */

enum { CR0, CR2, CR3, CR4, DR0, DR1, DR2, DR3, DR6, DR7, GDT_LIMIT, GDT_BASE, IDT_LIMIT, IDT_BASE, LDT, TASK, MSR_CS, MSR_ESP, MSR_EIP, MASK, COUNT };
static const char *const names[COUNT] = {"cr0", "cr2", "cr3", "cr4", "dr0", "dr1", "dr2", "dr3", "dr6", "dr7", "gdt limit", "gdt base", "idt limit",
                                         "idt base", "ldt", "tr", "sysenter cs", "sysenter esp", "sysenter eip", "port 21"};
static u32 usual[COUNT], remembered[COUNT];

#define DEBUG_REGISTER(n)                                                                         \
    static inline u32 read_dr##n(void)                                                                \
    {                                                                                             \
        u32 value;                                                                                \
        asm volatile("movl %%dr" #n ", %0" : "=r"(value));                                        \
        return value;                                                                             \
    }                                                                                             \
    static inline void write_dr##n(u32 value) { asm volatile("movl %0, %%dr" #n : : "r"(value)); }
DEBUG_REGISTER(0)
DEBUG_REGISTER(1)
DEBUG_REGISTER(2)
DEBUG_REGISTER(3)
DEBUG_REGISTER(6)
DEBUG_REGISTER(7)

static void read_all(u32 *to)
{
    struct table_register gdt, idt;
    sgdt(&gdt);
    sidt(&idt);
    to[CR0] = read_cr0();
    to[CR2] = read_cr2();
    to[CR3] = read_cr3();
    to[CR4] = read_cr4();
    to[DR0] = read_dr0();
    to[DR1] = read_dr1();
    to[DR2] = read_dr2();
    to[DR3] = read_dr3();
    to[DR6] = read_dr6();
    to[DR7] = read_dr7();
    to[GDT_LIMIT] = gdt.limit;
    to[GDT_BASE] = gdt.base;
    to[IDT_LIMIT] = idt.limit;
    to[IDT_BASE] = idt.base;
    to[LDT] = sldt();
    to[TASK] = str();
    to[MSR_CS] = (u32)rdmsr(SYSENTER_CS);
    to[MSR_ESP] = (u32)rdmsr(SYSENTER_ESP);
    to[MSR_EIP] = (u32)rdmsr(SYSENTER_EIP);
    to[MASK] = inb(MASK_PORT);
}

static void task_set(u16 selector, u32 base) { segment_set(selector, base, 0x67, SEGMENT_PRESENT | SYSTEM_TSS); }

void state_setup(void)
{
    segment_set(OTHER_KERNEL_DATA, 0, 0xffffffff, SEGMENT_PRESENT | SEGMENT_DATA);
    segment_set(OTHER_USER_DATA, 0, 0xffffffff, SEGMENT_PRESENT | SEGMENT_DPL(3) | SEGMENT_DATA);
    segment_set(LOOKED_AT, 0x12345, 0x6789, SEGMENT_PRESENT | SEGMENT_DPL(3) | SEGMENT_DATA);
    segment_set(LOCAL_TABLE, (u32)page_alloc(), 0xff, SEGMENT_PRESENT | SYSTEM_LDT);
    task_set(OTHER_TASK, (u32)page_alloc());
    wrmsr(SYSENTER_CS, KERNEL_CODE);
    wrmsr(SYSENTER_ESP, STACK - 0x80);
    wrmsr(SYSENTER_EIP, TARGET);
    write_cr2(0xc0de2);
    write_dr0(0xd0);
    read_all(usual);
    /* Not as read: a kernel to which SGDT, SIDT, SLDT and STR show another machine's tables must not load those. */
    usual[GDT_LIMIT] = GDT_ENTRIES * 8 - 1;
    usual[GDT_BASE] = gdt_address();
    usual[IDT_LIMIT] = 256 * 8 - 1;
    usual[IDT_BASE] = idt_address();
    usual[LDT] = 0;
    usual[TASK] = TASK_STATE;
}

static void clear_busy(u16 selector) { ((volatile u8 *)gdt_address())[selector + 5] &= (u8)~2; }

void state_prepare(void)
{
    write_cr0(usual[CR0]);
    write_cr2(usual[CR2]);
    if (read_cr3() != usual[CR3])
        write_cr3(usual[CR3]);
    write_cr4(usual[CR4]);
    write_dr0(usual[DR0]);
    write_dr6(usual[DR6]);
    write_dr7(usual[DR7]);
    lgdt(&(struct table_register){(u16)usual[GDT_LIMIT], usual[GDT_BASE]});
    lidt(&(struct table_register){(u16)usual[IDT_LIMIT], usual[IDT_BASE]});
    lldt((u16)usual[LDT]);
    if (str() != usual[TASK]) { /* LTR wants a task that is not busy, and leaves the other one busy */
        clear_busy(TASK_STATE);
        ltr(TASK_STATE);
        clear_busy(OTHER_TASK);
    }
    wrmsr(SYSENTER_CS, usual[MSR_CS]);
    wrmsr(SYSENTER_ESP, usual[MSR_ESP]);
    wrmsr(SYSENTER_EIP, usual[MSR_EIP]);
    outb(MASK_PORT, (u8)usual[MASK]);
}

void state_remember(void) { read_all(remembered); }

void state_print_changes(void)
{
    u32 now[COUNT];
    read_all(now);
    for (int i = 0; i < COUNT; i++) {
        if (now[i] != remembered[i])
            printf(" %s=%x", names[i], now[i]);
    }
}
