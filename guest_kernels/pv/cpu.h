/* cpu.h: what lib/cpu.h says by privileged instructions, said by hypercalls, shared memory and what is remembered here. */
#pragma once
#include "../lib/selectors.h"
#include "xen.h"

struct machine_state {
    u32 cr0, cr3, cr4, iopl;
    struct table_register gdt, idt;
    u16 task, local_table;
};
extern struct machine_state machine_state; /* start.c */

/* A domain has no ports but the two that its creator grants, and uses them with IOPL 1. */
static inline void set_iopl(u32 iopl) { hypercall(PHYSDEV_OP, SET_IOPL, (u32)&iopl, 0, 0, 0); }

/* Port access without asking each time. */
static inline void ports_open(int open)
{
    machine_state.iopl = open ? 1 : 0;
    set_iopl(machine_state.iopl);
}

static inline void outb(u16 port, u8 value)
{
    set_iopl(1);
    asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
    set_iopl(machine_state.iopl);
}

static inline void cli(void) { shared_info.cpu[0].mask = 1; }

static inline void sti(void)
{
    shared_info.cpu[0].mask = 0;
    asm volatile("" : : : "memory");
    if (shared_info.cpu[0].pending)
        events_poll();
}

static inline void sti_cli(void)
{
    shared_info.cpu[0].mask = 0;
    cli();
}

static inline void sti_hlt(void) { hypercall(SCHED_OP, BLOCK, 0, 0, 0, 0); }

static inline u32 read_eflags(void)
{
    u32 value;
    asm volatile("pushfl; popl %0" : "=r"(value));
    return (value & ~(EFLAGS_IF | EFLAGS_IOPL)) | machine_state.iopl << 12 | (shared_info.cpu[0].mask ? 0 : EFLAGS_IF);
}

static inline void write_eflags(u32 value)
{
    asm volatile("pushl %0; popfl" : : "r"(value & ~EFLAGS_IOPL) : "memory", "cc");
    machine_state.iopl = value >> 12 & 3;
    if (value & EFLAGS_IF)
        sti();
    else
        cli();
}

static inline u32 read_cr0(void) { return machine_state.cr0; }
static inline u32 read_cr2(void) { return shared_info.cpu[0].cr2; }
static inline u32 read_cr3(void) { return machine_state.cr3; }
static inline u32 read_cr4(void) { return machine_state.cr4; }

/* The FPU is away by TS or by EM; WP is kept by traps.c. */
static inline void write_cr0(u32 value)
{
    if ((machine_state.cr0 ^ value) & (CR0_TS | CR0_EM))
        hypercall(FPU_TASKSWITCH, (value & (CR0_TS | CR0_EM)) != 0, 0, 0, 0, 0);
    machine_state.cr0 = value;
}

static inline void clts(void) { write_cr0(machine_state.cr0 & ~CR0_TS); }

static inline void write_cr3(u32 value)
{
    machine_state.cr3 = value;
    mmu_extended(NEW_BASEPTR, frame_of(value), 0);
}

static inline void write_cr4(u32 value)
{
    machine_state.cr4 = value;
    mmu_extended(FLUSH_LOCAL, 0, 0);
}

static inline void invlpg(const volatile void *address)
{
    (void)address;
    mmu_extended(FLUSH_LOCAL, 0, 0);
}

void lgdt(const struct table_register *r); /* descriptors.c */

void lidt(const struct table_register *r);
static inline void sgdt(struct table_register *r) { *r = machine_state.gdt; }
static inline void sidt(struct table_register *r) { *r = machine_state.idt; }
void ltr(u16 selector);
void lldt(u16 selector);
static inline u16 str(void) { return machine_state.task; }
static inline u16 sldt(void) { return machine_state.local_table; }
