/* start.c: the way from the domain builder to main(); the console, the end of the run, and the few hypercalls that others need. */
#include "../lib/console.h"
#include "../lib/cpu.h"
#include "../lib/memory.h"
#include "../lib/multiboot.h"
#include "../lib/paging.h"
#include "../lib/trap.h"

#define LOADED_BY_MULTIBOOT 0x2badb002
#define HAS_COMMAND_LINE (1u << 2)

const struct start_info *start_info;
struct machine_state machine_state;
static struct console_ring *console;
static u8 *next_page;
void upcall_entry(void); /* entry.S */
__attribute__((noreturn)) void paravirt_start(const struct start_info *info);

void mmu_update(const struct mmu_update *updates, u32 count) { hypercall(MMU_UPDATE, (u32)updates, count, 0, DOMID_SELF, 0); }

void mmu_extended(u32 command, u32 first, u32 second)
{
    struct mmuext_op op = {command, first, second};
    hypercall(MMUEXT_OP, (u32)&op, 1, 0, DOMID_SELF, 0);
}

void events_poll(void) { hypercall(XEN_VERSION, 0, 0, 0, 0, 0); }

void page_protect(u32 address, int writable)
{
    u64 entry = (machine(address) & ~0xfffull) | PAGE_PRESENT | (writable ? PAGE_WRITE : 0);
    hypercall(UPDATE_VA_MAPPING, address, (u32)entry, (u32)(entry >> 32), FLUSH_PAGE, 0);
}

void *page_alloc(void)
{
    void *page = next_page;
    next_page += PAGE_SIZE;
    return memset(page, 0, PAGE_SIZE);
}

/* --- the console --- */

void serial_setup(void) { console = (struct console_ring *)address_of(start_info->console_frame); }

static void send(char c)
{
    console->out[console->out_produced % sizeof console->out] = c;
    asm volatile("" : : : "memory");
    console->out_produced++;
}

void serial_write(char c)
{
    if (c == '\n')
        send('\r');
    send(c);
    if (c == '\n' || console->out_produced - console->out_consumed >= sizeof console->out - 2)
        hypercall(EVENT_CHANNEL_OP, SEND, (u32)&start_info->console_port, 0, 0, 0);
}

/* --- the start --- */

void paravirt_start(const struct start_info *info)
{
    static struct {
        u32 flags, unused[3];
        const char *command_line;
    } information = {.flags = HAS_COMMAND_LINE};

    start_info = info;
    hypercall(UPDATE_VA_MAPPING, (u32)&shared_info, info->shared_info | PAGE_PRESENT | PAGE_WRITE, 0, FLUSH_PAGE, 0);
    hypercall(SET_CALLBACKS, KERNEL_CODE_AT_START, (u32)upcall_entry, KERNEL_CODE_AT_START, 0, 0);
    hypercall(VCPU_OP, STOP_PERIODIC_TIMER, 0, 0, 0, 0);
    machine_state.cr0 = CR0_PG | CR0_WP | CR0_NE | CR0_MP | CR0_PE;
    machine_state.cr4 = CR4_PAE;
    next_page = (u8 *)(info->tables + (info->table_count + 1) * PAGE_SIZE); /* behind the tables and the builder's stack */
    paging_setup();
    information.command_line = info->command_line;
    kernel_start(LOADED_BY_MULTIBOOT, &information);
}
