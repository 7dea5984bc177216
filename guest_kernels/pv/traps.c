/* traps.c: what becomes of a trap before the kernel sees it, where this machine's is not what the kernel's own would be.
 *
 * Gates that are not present, the few privileged instructions that stay in the kernel, CR0.EM, CR0.WP, and reserved bits in page-table entries.
 */
#include "../lib/trap.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/paging.h"

#define IN_IDT 2u /* of an error code */
#define LLDT 2
#define LTR 3

struct trap_frame *trap_dispatch(struct trap_frame *frame); /* trap.c */
struct trap_frame *paravirt_trap(struct trap_frame *frame); /* called by trap_entry.S */

/* #GP for an INT through a gate that the VMM was not told of: was it one that is not present? */
static void missing_gate(struct trap_frame *frame)
{
    u8 access = gate_get((u8)(frame->error >> 3));
    if (!(access & SEGMENT_PRESENT) && (access >> 5 & 3) >= (frame->cs & 3))
        frame->vector = NOT_PRESENT;
}

/* LLDT and LTR of a register, as the manual has their faults; returns whether it was one and is done. */
static int load_table(struct trap_frame *frame)
{
    const u8 *code = (const u8 *)frame->eip;
    u32 what = code[2] >> 3 & 7;
    if (from_user(frame) || code[0] != 0x0f || code[1] != 0x00 || code[2] < 0xc0 || (what != LLDT && what != LTR))
        return 0;
    u32 selector = (&frame->eax)[-(int)(code[2] & 7)] & 0xffff; /* PUSHA leaves them in this order */
    u64 descriptor = selector < GDT_ENTRIES * 8 ? segment_get((u16)selector) : 0;
    u32 kind = what == LTR ? SYSTEM_TSS : SYSTEM_LDT;
    if ((selector & ~3u || what == LTR) && ((descriptor >> 40 & 0x1f) != kind || selector & 4)) {
        frame->error = selector & ~3u;
        return 0;
    }
    if (selector & ~3u && !(descriptor >> 40 & SEGMENT_PRESENT)) {
        frame->vector = NOT_PRESENT;
        frame->error = selector & ~3u;
        return 0;
    }
    if (what == LTR)
        ltr((u16)selector);
    else
        lldt((u16)selector);
    frame->eip += 3;
    return 1;
}

/* --- kernel stores to read-only pages with CR0.WP clear: the page is writable for that one instruction --- */

static struct {
    volatile u64 *entry;
    int closed;
} opened[4]; /* two pages, two levels */
static u32 opened_count, flags_before;

static int open_entry(volatile u64 *entry)
{
    u64 value = *entry;
    struct mmu_update update = {machine((u32)entry), value | PAGE_WRITE};
    if (!(value & PAGE_PRESENT) || opened_count == sizeof opened / sizeof *opened || hypercall(MMU_UPDATE, (u32)&update, 1, 0, DOMID_SELF, 0))
        return 0;
    opened[opened_count].entry = entry;
    opened[opened_count++].closed = !(value & PAGE_WRITE);
    return 1;
}

static int open_page(struct trap_frame *frame, u32 address)
{
    volatile u64 *above = paging_directory(address);
    u32 first = opened_count;
    if (!above || !(*above & PAGE_PRESENT) || !open_entry(above) || !open_entry(paging_table(above, address)))
        return 0;
    if (!first)
        flags_before = frame->eflags;
    frame->eflags = (frame->eflags & ~EFLAGS_IF) | EFLAGS_TF;
    mmu_extended(FLUSH_LOCAL, 0, 0);
    return 1;
}

/* Behind the instruction, or where it faults again: the pages are as they were but for A and D. */
static void close_pages(struct trap_frame *frame)
{
    while (opened_count) {
        opened_count--;
        if (opened[opened_count].closed) {
            struct mmu_update update = {machine((u32)opened[opened_count].entry), *opened[opened_count].entry & ~(u64)PAGE_WRITE};
            mmu_update(&update, 1);
        }
    }
    mmu_extended(FLUSH_LOCAL, 0, 0);
    frame->eflags = (frame->eflags & ~(EFLAGS_IF | EFLAGS_TF)) | (flags_before & (EFLAGS_IF | EFLAGS_TF));
}

/* Returns whether the access is to go on. */
static int page_fault(struct trap_frame *frame)
{
    if (frame->error == (FAULT_PRESENT | FAULT_WRITE) && !(machine_state.cr0 & CR0_WP) && open_page(frame, read_cr2()))
        return 1;
    if (paging_malformed(read_cr2()))
        frame->error |= FAULT_PRESENT | FAULT_RESERVED;
    return 0;
}

struct trap_frame *paravirt_trap(struct trap_frame *frame)
{
    if (frame->vector == PAGE_FAULT && page_fault(frame))
        return frame;
    if (opened_count) {
        close_pages(frame);
        if (frame->vector == DEBUG_TRAP && !(flags_before & EFLAGS_TF))
            return frame;
    }
    if (frame->vector == GENERAL_PROTECTION) {
        if (frame->error & IN_IDT)
            missing_gate(frame);
        else if (!frame->error && load_table(frame))
            return frame;
    } else if (frame->vector == NO_FPU) { /* the VMM has cleared CR0.TS, which a CPU does not */
        hypercall(FPU_TASKSWITCH, 1, 0, 0, 0, 0);
    }
    return trap_dispatch(frame);
}
