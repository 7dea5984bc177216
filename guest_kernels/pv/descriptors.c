/* descriptors.c: the GDT is a page that the VMM has checked and only it writes; gates are a list of handlers; the TSS is a stack pointer. */
#include "../lib/descriptors.h"
#include "../lib/cpu.h"
#include "../lib/memory.h"

enum { EVENTS_MASKED = 4 }; /* in a handler's flags */

static u64 gdt[PAGE_SIZE / 8] __attribute__((aligned(4096)));
static u64 as_written[GDT_ENTRIES];
static u64 local[PAGE_SIZE / 8] __attribute__((aligned(4096))); /* what of an LDT the VMM has */
static u8 gates[256];
static u32 task_stack;
static int loaded;
extern const u32 trap_entries[256]; /* trap_entry.S */

void segment_set(u16 selector, u32 base, u32 limit, u8 access)
{
    u32 flags = 0x4;
    if (limit > 0xfffff) {
        limit >>= 12;
        flags |= 0x8;
    }
    u32 low = base << 16 | (limit & 0xffff);
    u32 high = (base & 0xff000000) | flags << 20 | (limit & 0xf0000) | (u32)access << 8 | (base >> 16 & 0xff);
    as_written[selector >> 3] = (u64)high << 32 | low;
    if (!(access & 0x10)) /* system descriptors are nothing to this machine */
        return;
    if (!loaded) {
        gdt[selector >> 3] = as_written[selector >> 3];
        return;
    }
    u64 at = machine((u32)&gdt[selector >> 3]);
    hypercall(UPDATE_DESCRIPTOR, (u32)at, (u32)(at >> 32), low, high, 0);
}

u64 segment_get(u16 selector) { return as_written[selector >> 3]; }

/* Handlers can be added one by one, but only be taken away all together. */
static void handlers_set(void)
{
    static struct trap_info rows[257];
    struct trap_info *row = rows;
    for (u32 vector = 0; vector < 256; vector++) {
        u8 access = gate_get((u8)vector);
        if (access & SEGMENT_PRESENT)
            *row++ = (struct trap_info){(u8)vector, (u8)((access >> 5 & 3) | ((access & 0xf) == GATE_INTERRUPT ? EVENTS_MASKED : 0)), KERNEL_CODE,
                                        trap_entries[vector]};
    }
    row->address = 0;
    hypercall(SET_TRAP_TABLE, 0, 0, 0, 0, 0);
    hypercall(SET_TRAP_TABLE, (u32)rows, 0, 0, 0, 0);
}

void gate_set(u8 vector, u8 access)
{
    gates[vector] = access;
    if (machine_state.idt.limit)
        handlers_set();
}

u8 gate_get(u8 vector) { return vector * 8u + 7 <= machine_state.idt.limit ? gates[vector] : 0; }

void lidt(const struct table_register *r)
{
    machine_state.idt = *r;
    handlers_set();
}

void kernel_stack_set(u32 esp0)
{
    task_stack = esp0;
    hypercall(STACK_SWITCH, KERNEL_DATA, esp0, 0, 0, 0);
}

u32 gdt_address(void) { return (u32)gdt; }
u32 idt_address(void) { return (u32)trap_entries; }

void lgdt(const struct table_register *r)
{
    u32 frame = frame_of(r->base);
    if (!loaded)
        page_protect(r->base, 0);
    loaded = 1;
    machine_state.gdt = *r;
    hypercall(SET_GDT, (u32)&frame, (r->limit + 1u) / 8, 0, 0, 0);
}

void ltr(u16 selector)
{
    machine_state.task = selector;
    as_written[selector >> 3] |= 2ull << 40; /* busy */
}

/* The VMM wants whole pages that nobody writes: it gets a copy of the table, of one page at most. */
void lldt(u16 selector)
{
    u64 descriptor = segment_get(selector);
    u32 base = (u32)(descriptor >> 16 & 0xffffff) | (u32)(descriptor >> 56) << 24;
    u32 bytes = selector ? (u32)(descriptor & 0xffff) + 1 : 0;
    machine_state.local_table = selector;
    mmu_extended(SET_LDT, 0, 0);
    page_protect((u32)local, 1);
    memset(local, 0, sizeof local);
    memcpy(local, (const void *)base, bytes < sizeof local ? bytes : sizeof local);
    page_protect((u32)local, 0);
    mmu_extended(SET_LDT, bytes ? (u32)local : 0, bytes / 8);
}

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
    segment_set(KERNEL_CODE, 0, 0xffffffff, present | SEGMENT_DPL(KERNEL_LEVEL) | SEGMENT_CODE);
    segment_set(KERNEL_DATA, 0, 0xffffffff, present | SEGMENT_DPL(KERNEL_LEVEL) | SEGMENT_DATA);
    segment_set(USER_CODE, 0, 0xffffffff, present | SEGMENT_DPL(3) | SEGMENT_CODE);
    segment_set(USER_DATA, 0, 0xffffffff, present | SEGMENT_DPL(3) | SEGMENT_DATA);
    segment_set(TASK_STATE, (u32)&task_stack, 0x67, present | SYSTEM_TSS);
    for (int vector = 0; vector < 256; vector++)
        gate_set((u8)vector, present | GATE_INTERRUPT);
    lgdt(&(struct table_register){GDT_ENTRIES * 8 - 1, (u32)gdt});
    load_segments();
    lidt(&(struct table_register){256 * 8 - 1, idt_address()});
    lldt(0);
    ltr(TASK_STATE);
}
