/* cpu.h: what lib/cpu.h says by privileged instructions, said by hypercalls, shared memory and what is remembered here. */
#pragma once
#include "../lib/selectors.h"
#include "xen.h"

struct machine_state {
    u32 cr3, iopl;
    struct table_register gdt, idt;
    u16 task, local_table;
    u8 task_switched;
};
extern struct machine_state machine_state; /* start.c */

/* A domain has no ports but the two that its creator grants, and uses them with IOPL 1. */
static inline void set_iopl(u32 iopl) { hypercall(PHYSDEV_OP, SET_IOPL, (u32)&iopl, 0, 0, 0); }

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

static inline u32 read_cr0(void) { return CR0_PG | CR0_WP | CR0_NE | CR0_MP | CR0_PE | (machine_state.task_switched ? CR0_TS : 0); }
static inline u32 read_cr2(void) { return shared_info.cpu[0].cr2; }
static inline u32 read_cr3(void) { return machine_state.cr3; }
static inline u32 read_cr4(void) { return CR4_PAE; }
static inline void write_cr4(u32 value) { (void)value; }

static inline void task_switched(int on)
{
    machine_state.task_switched = (u8)on;
    hypercall(FPU_TASKSWITCH, (u32)on, 0, 0, 0, 0);
}

static inline void write_cr0(u32 value) { task_switched((value & CR0_TS) != 0); }
static inline void clts(void) { task_switched(0); }

static inline void write_cr3(u32 value)
{
    machine_state.cr3 = value;
    mmu_extended(NEW_BASEPTR, frame_of(value), 0);
}

static inline void invlpg(const volatile void *address)
{
    (void)address;
    mmu_extended(FLUSH_LOCAL, 0, 0);
}

void lgdt(const struct table_register *r); /* descriptors.c */

static inline void lidt(const struct table_register *r)
{
    machine_state.idt = *r;
    if (!r->limit) /* no gates: no handlers */
        hypercall(SET_TRAP_TABLE, 0, 0, 0, 0, 0);
}

static inline void sgdt(struct table_register *r) { *r = machine_state.gdt; }
static inline void sidt(struct table_register *r) { *r = machine_state.idt; }
void ltr(u16 selector);
static inline void lldt(u16 selector) { machine_state.local_table = selector; }
static inline u16 str(void) { return machine_state.task; }
static inline u16 sldt(void) { return machine_state.local_table; }
