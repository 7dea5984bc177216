/* xen.h: what a guest needs of the Xen PV ABI for 32-bit PAE kernels (Xen's public headers xen.h, event_channel.h, sched.h, vcpu.h, io/console.h). */
#pragma once
#include "../lib/types.h"

#define VMM_START 0xf5800000u
#define MACHINE_TO_PHYSICAL ((const u32 *)VMM_START)

enum hypercall {
    SET_TRAP_TABLE = 0,
    MMU_UPDATE = 1,
    SET_GDT = 2,
    STACK_SWITCH = 3,
    SET_CALLBACKS = 4,
    FPU_TASKSWITCH = 5,
    UPDATE_DESCRIPTOR = 10,
    MEMORY_OP = 12,
    MULTICALL = 13,
    UPDATE_VA_MAPPING = 14,
    SET_TIMER_OP = 15,
    XEN_VERSION = 17,
    CONSOLE_IO = 18,
    GRANT_TABLE_OP = 20,
    VCPU_OP = 24,
    MMUEXT_OP = 26,
    SCHED_OP = 29,
    CALLBACK_OP = 30,
    EVENT_CHANNEL_OP = 32,
    PHYSDEV_OP = 33,
};

enum { DOMID_SELF = 0x7ff0, FLUSH_NOTHING = 0, FLUSH_ALL = 1, FLUSH_PAGE = 2 };
enum { PIN_L1 = 0, PIN_L2 = 1, PIN_L3 = 2, NEW_BASEPTR = 5, FLUSH_LOCAL = 6, SET_LDT = 13 }; /* mmuext_op */
enum { BIND_VIRQ = 1, SEND = 4, ALLOC_UNBOUND = 6, UNMASK = 9 };                            /* event_channel_op */
enum { YIELD = 0, BLOCK = 1, SHUTDOWN = 2 };                                                /* sched_op */
enum { STOP_PERIODIC_TIMER = 7 };                                                           /* vcpu_op */
enum { SET_IOPL = 6 };                                                                      /* physdev_op */
enum { SETUP_TABLE = 2 };                                                                   /* grant_table_op */
enum { VIRQ_TIMER = 0 };

struct start_info {
    char magic[32];
    u32 pages, shared_info, flags, store_frame, store_port, console_frame, console_port;
    u32 tables, table_count, frame_list, module, module_size;
    char command_line[1024];
};

struct shared_info {
    struct {
        u8 pending, mask, unused[2];
        u32 selector, cr2;
        u32 other[5], time[8];
    } cpu[32];
    u32 pending[32], mask[32];
};

struct console_ring {
    char in[1024], out[2048];
    u32 in_consumed, in_produced, out_consumed, out_produced;
};

struct mmu_update {
    u64 address, value;
};

struct mmuext_op {
    u32 command, first, second;
};

struct trap_info {
    u8 vector, flags;
    u16 selector;
    u32 address;
};

extern u8 hypercall_page[]; /* entry.S */
extern const struct start_info *start_info;
extern volatile struct shared_info shared_info;

/* Arguments in EBX, ECX, EDX, ESI, EDI, result in EAX: through the page that the VMM has filled. */
static inline int hypercall(enum hypercall number, u32 a, u32 b, u32 c, u32 d, u32 e)
{
    int result;
    asm volatile("call *%%eax"
                 : "=a"(result), "+b"(a), "+c"(b), "+d"(c), "+S"(d), "+D"(e)
                 : "0"((u32)hypercall_page + 32 * number)
                 : "memory", "cc");
    return result;
}

/* The machine frame of a page that the kernel sees at `address`, and the address of a machine frame of ours. */
static inline u32 frame_of(u32 address) { return ((const u32 *)start_info->frame_list)[address >> 12]; }
static inline u32 address_of(u32 frame) { return MACHINE_TO_PHYSICAL[frame] << 12; }
static inline u64 machine(u32 address) { return (u64)frame_of(address) << 12 | (address & 0xfff); }

/* Make a page that the kernel sees at its physical address read-only, or writable again, in all address spaces. */
void page_protect(u32 address, int writable);
/* Let the VMM know what is to be done to page tables: n requests. */
void mmu_update(const struct mmu_update *updates, u32 count);
void mmu_extended(u32 command, u32 first, u32 second);
/* paging.c: the entries that map an address now, as the CPU sees them, 0 without a directory; and whether one of them has a reserved bit set. */
volatile u64 *paging_directory(u32 address);
volatile u64 *paging_table(const volatile u64 *above, u32 address);
int paging_malformed(u32 address);
/* descriptors.c: what gate_set() was given, 0 beyond the IDT's limit. */
u8 gate_get(u8 vector);
/* A pending event is let in now, if none is masked. */
void events_poll(void);
