/* descriptors.c: builds and loads the tables that segmentation, interrupts and stack switches need. */
#include "descriptors.h"
#include "cpu.h"

/* SDM 3A 7.2.1 "Task-State Segment (TSS)". Without hardware task switches only esp0 and ss0 matter. */
static struct {
    u32 previous_task;
    u32 esp0, ss0;
    u32 unused[22];
    u16 trap, io_map_offset;
} task_state;

static u64 gdt[GDT_ENTRIES];
static struct gate {
    u16 offset_low, selector;
    u8 zero, access;
    u16 offset_high;
} idt[256];

extern const u32 trap_entries[256]; /* trap_entry.S */

void segment_set(u16 selector, u32 base, u32 limit, u8 access)
{
    u32 flags = 0x4; /* D: 32-bit */
    if (limit > 0xfffff) {
        limit >>= 12;
        flags |= 0x8; /* G: the limit counts pages */
    }
    u32 low = base << 16 | (limit & 0xffff);
    u32 high = (base & 0xff000000) | flags << 20 | (limit & 0xf0000) | (u32)access << 8 | (base >> 16 & 0xff);
    gdt[selector >> 3] = (u64)high << 32 | low;
}

u64 segment_get(u16 selector) { return gdt[selector >> 3]; }

void gate_set(u8 vector, u8 access)
{
    u32 entry = trap_entries[vector];
    idt[vector] = (struct gate){entry & 0xffff, KERNEL_CODE, 0, access, entry >> 16};
}

void kernel_stack_set(u32 esp0) { task_state.esp0 = esp0; }
u32 gdt_address(void) { return (u32)gdt; }
u32 idt_address(void) { return (u32)idt; }

static void load_segments(void)
{
    asm volatile("ljmp %0, $1f\n"
                 "1: movl %1, %%ds; movl %1, %%es; movl %1, %%ss; movl %2, %%fs; movl %2, %%gs"
                 :
                 : "i"(KERNEL_CODE), "r"(KERNEL_DATA), "r"(0)
                 : "memory");
}

void descriptors_setup(void)
{
    const u8 present = SEGMENT_PRESENT;
    segment_set(KERNEL_CODE, 0, 0xffffffff, present | SEGMENT_CODE);
    segment_set(KERNEL_DATA, 0, 0xffffffff, present | SEGMENT_DATA);
    segment_set(USER_CODE, 0, 0xffffffff, present | SEGMENT_DPL(3) | SEGMENT_CODE);
    segment_set(USER_DATA, 0, 0xffffffff, present | SEGMENT_DPL(3) | SEGMENT_DATA);
    segment_set(TASK_STATE, (u32)&task_state, sizeof task_state - 1, present | SYSTEM_TSS);
    task_state.ss0 = KERNEL_DATA;
    task_state.io_map_offset = sizeof task_state; /* beyond the limit: no I/O from user mode */
    for (int vector = 0; vector < 256; vector++)
        gate_set((u8)vector, present | GATE_INTERRUPT);

    lgdt(&(struct table_register){sizeof gdt - 1, (u32)gdt});
    load_segments();
    lidt(&(struct table_register){sizeof idt - 1, (u32)idt});
    lldt(0);
    ltr(TASK_STATE);
}
