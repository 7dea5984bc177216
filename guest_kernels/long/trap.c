/* trap.c: the 64-bit IDT (SDM 3A 6.14.1 "64-Bit Mode IDT"), the TSS (7.7 "Task Management in 64-Bit Mode"), and SYSCALL's registers. */
#include "trap.h"
#include "../lib/console.h"
#include "../lib/report.h"
#include "cpu.h"
#include "selectors.h"

enum { GATES = 256, FIRST_OF_USERS = 0x80, INTERRUPT_GATE = 0x8e, DPL_3 = 0x60, AVAILABLE_TSS = 0x89, IF = 1 << 9, DF = 1 << 10 };

struct gate {
    u16 offset_low, selector;
    u8 stack, kind;
    u16 offset_middle;
    u32 offset_high, reserved;
};

static struct gate idt[GATES] __attribute__((aligned(16)));
static trap_function *functions[GATES];
extern const u64 trap_entries[GATES];
extern u64 gdt[];
extern void syscall_entry(void);

static struct {
    u32 reserved_0;
    u64 rsp[3];
    u64 reserved_1;
    u64 interrupt_stacks[7];
    u64 reserved_2;
    u16 reserved_3, io_map;
} __attribute__((packed)) tss;

static u8 interrupt_stack[4096] __attribute__((aligned(16)));
/* What the kernel's GS leads to: its stack, and room for the user's RSP. */
static struct {
    u64 stack, user_rsp;
} cpu_area;

u64 (*system_call)(u64 number, u64 argument);

void traps_setup(void)
{
    for (u32 vector = 0; vector < GATES; vector++) {
        u64 entry = trap_entries[vector];
        idt[vector] = (struct gate){
            .offset_low = (u16)entry, .selector = KERNEL_CODE, .kind = INTERRUPT_GATE | (vector >= FIRST_OF_USERS ? DPL_3 : 0),
            .offset_middle = (u16)(entry >> 16), .offset_high = (u32)(entry >> 32)};
    }
    load_idt(&(struct long_table_register){sizeof idt - 1, (u64)idt});

    u64 base = (u64)&tss, limit = sizeof tss - 1;
    tss.interrupt_stacks[0] = interrupt_stack_top();
    tss.io_map = sizeof tss;
    gdt[TASK_STATE / 8] = limit | (base & 0xffffff) << 16 | (u64)AVAILABLE_TSS << 40 | (base >> 24 & 0xff) << 56;
    gdt[TASK_STATE / 8 + 1] = base >> 32;
    load_task(TASK_STATE);

    write_msr(MSR_STAR, (u64)(USER_CODE_32 & ~3) << 48 | (u64)3 << 48 | (u64)KERNEL_CODE << 32);
    write_msr(MSR_LSTAR, (u64)syscall_entry);
    write_msr(MSR_SFMASK, IF | DF);
    write_msr(MSR_GS_BASE, 0);
    write_msr(MSR_KERNEL_GS_BASE, (u64)&cpu_area);
}

u64 interrupt_stack_top(void) { return (u64)(interrupt_stack + sizeof interrupt_stack); }

void kernel_stack_set(u64 top)
{
    tss.rsp[0] = top;
    cpu_area.stack = top;
}

void trap_set(u8 vector, trap_function *function) { functions[vector] = function; }

void trap_stack(u8 vector, u8 stack) { idt[vector].stack = stack; }

void trap_dispatch(struct trap_frame *frame)
{
    if (functions[frame->vector]) {
        functions[frame->vector](frame);
        return;
    }
    report(0, "unexpected vector %u, error %x, at %x", (u32)frame->vector, (u32)frame->error, (u32)frame->rip);
    finish();
}
