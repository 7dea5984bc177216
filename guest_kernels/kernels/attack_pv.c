/* attack_pv.c: a paravirtual kernel that tries to get out of its domain by every hypercall that could let it. Each attempt must be refused with
 * the ABI's error, and what it would have led to must not be so. Runs on Xen's ABI only: there is nothing of this kind to ask a PC for.
 */
#include "../lib/catch.h"
#include "../lib/console.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/memory.h"
#include "../lib/multiboot.h"
#include "../lib/paging.h"
#include "../lib/report.h"
#include "../lib/trap.h"

enum { EPERM = 1, ENOENT = 2, EFAULT = 14, EBUSY = 16, EEXIST = 17, EINVAL = 22, ENOSYS = 38 };
enum { PIN_L4 = 3, UNPIN = 4, CLEAR_PAGE = 16, COPY_PAGE = 17, DECREASE_RESERVATION = 1, EXCHANGE = 11, REGISTER_INFO = 10 };
enum { MAP_GRANT = 0, COPY_GRANT = 5, BAD_DOMAIN = -2, BAD_GRANT = -3, DENIED = -8, BAD_PAGE = -9, BAD_COPY = -10 };

#define WINDOW 0x00f00000u /* an address whose table exists; what is mapped there does not matter */

static struct address_space space;
u32 stored_entry; /* for assembly */

static void expect(int result, int error, const char *what)
{
    if (result == -error)
        report(1, "%s", what);
    else
        report(0, "%s: %d", what, result);
}

static int update(u64 address, u64 value)
{
    struct mmu_update request = {address, value};
    return hypercall(MMU_UPDATE, (u32)&request, 1, 0, DOMID_SELF, 0);
}

static int extended(u32 command, u32 first, u32 second)
{
    struct mmuext_op request = {command, first, second};
    return hypercall(MMUEXT_OP, (u32)&request, 1, 0, DOMID_SELF, 0);
}

static int map(u32 address, u64 entry) { return hypercall(UPDATE_VA_MAPPING, address, (u32)entry, (u32)(entry >> 32), FLUSH_PAGE, 0); }
static u64 entry_of(u32 address, u32 flags) { return (machine(address) & ~0xfffull) | flags; }
static u64 window_entry(void) { return machine((u32)table_entry(&space, WINDOW)); }
static u32 own_frame(u32 address) { return frame_of(address); }

/* A frame that exists and is not ours: what the machine-to-physical table does not know. */
static u32 foreign_frame(u32 from)
{
    while (MACHINE_TO_PHYSICAL[from] != 0xffffffff)
        from++;
    return from;
}

static void report_foreign_frames(void)
{
    u32 foreign = foreign_frame(1), other = foreign_frame(foreign + 1), far = 0x7fffff;
    u64 entry = (u64)foreign << 12 | PAGE_PRESENT;
    expect(map(WINDOW, entry), EPERM, "a foreign frame by update_va_mapping");
    expect(map(WINDOW, entry | PAGE_WRITE), EPERM, "the same, writable");
    expect(update(window_entry(), entry), EPERM, "a foreign frame by mmu_update");
    expect(update(window_entry() | 2, entry), EPERM, "the same, with A and D kept");
    expect(map(WINDOW, (u64)far << 12 | PAGE_PRESENT), EPERM, "a frame that does not exist");
    expect(map(WINDOW, 1ull << 52 | PAGE_PRESENT), EPERM, "a frame beyond all addresses");
    expect(update((u64)other << 12, 0), EPERM, "a page-table entry in a foreign frame");
    expect(update((u64)foreign << 12 | 1, 0), EPERM, "the machine-to-physical entry of a foreign frame");
    for (u32 command = PIN_L1; command <= PIN_L3; command++)
        expect(extended(command, foreign, 0), EPERM, "a pin of a foreign frame");
    expect(extended(NEW_BASEPTR, foreign, 0), EPERM, "a foreign top-level table");
    expect(extended(CLEAR_PAGE, foreign, 0), EPERM, "clearing a foreign page");
    expect(extended(COPY_PAGE, own_frame((u32)page_alloc()), foreign), EPERM, "copying a foreign page");
    expect(hypercall(SET_GDT, (u32)&foreign, 512, 0, 0, 0), EPERM, "a foreign frame as GDT");
    expect(hypercall(UPDATE_DESCRIPTOR, foreign << 12, foreign >> 20, 0, 0, 0), EPERM, "a descriptor in a foreign frame");
    struct mmu_update request = {window_entry(), entry};
    expect(hypercall(MMU_UPDATE, (u32)&request, 1, 0, 5, 0), EPERM, "page tables for another domain");
    expect(hypercall((enum hypercall)22, WINDOW, (u32)entry, 0, 0, 5), EPERM, "a mapping of another domain's frame");
    u32 reservation[5] = {(u32)&foreign, 1, 0, 0, DOMID_SELF};
    report(hypercall(MEMORY_OP, DECREASE_RESERVATION, (u32)reservation, 0, 0, 0) == 0, "a foreign frame cannot be given up");
}

static void report_page_tables(void)
{
    u32 table = (u32)table_entry(&space, WINDOW) & ~(PAGE_SIZE - 1), top = space.cr3;
    u32 below = (u32)directory_entry(&space, WINDOW) & ~(PAGE_SIZE - 1);
    u32 plain = (u32)page_alloc();
    expect(map(WINDOW, entry_of(table, PAGE_PRESENT | PAGE_WRITE)), EBUSY, "a writable mapping of a page table");
    expect(map(WINDOW, entry_of(below, PAGE_PRESENT | PAGE_WRITE)), EBUSY, "a writable mapping of a directory");
    expect(map(WINDOW, entry_of(top, PAGE_PRESENT | PAGE_WRITE)), EBUSY, "a writable mapping of a top-level table");
    expect(map(WINDOW, entry_of(gdt_address(), PAGE_PRESENT | PAGE_WRITE)), EBUSY, "a writable mapping of the GDT");
    report(map(WINDOW, entry_of(table, PAGE_PRESENT)) == 0, "a read-only mapping of a page table is allowed");
    expect(extended(PIN_L1, own_frame(plain), 0), EBUSY, "a pin of a page that is mapped writable");
    expect(extended(PIN_L2, own_frame(table), 0), EBUSY, "a pin of a table as another level");
    expect(extended(PIN_L4, own_frame(plain), 0), ENOSYS, "a pin of a level that does not exist");
    expect(extended(UNPIN, own_frame(plain), 0), EINVAL, "an unpin without a pin");
    expect(extended(PIN_L3, own_frame(top), 0), EINVAL, "a second pin");
    expect(extended(NEW_BASEPTR, own_frame(table), 0), EBUSY, "a page table as top-level table");
    expect(update(machine(below), (machine(plain) & ~0xfffull) | PAGE_PRESENT), EBUSY, "a writable page as page table");
    expect(update(machine((u32)directory_entry(&space, WINDOW)), entry_of(0x400000, PAGE_PRESENT | PAGE_WRITE | PAGE_LARGE)), EINVAL,
           "a large page");
    u32 last = (u32)directory_entry(&space, 0xf5800000);
    expect(update(machine(last), 0), EPERM, "an entry of the VMM's");
    expect(update(machine(top) + 32, 0), EINVAL, "a fifth entry of a top-level table");
    expect(map(0xf5800000, entry_of(plain, PAGE_PRESENT | PAGE_WRITE)), EINVAL, "a mapping at the VMM's addresses");
    page_protect(address_of(start_info->console_frame), 0);
    int pinned = extended(PIN_L1, start_info->console_frame, 0);
    page_protect(address_of(start_info->console_frame), 1);
    expect(pinned, EBUSY, "the console's page, which the VMM writes, as page table");
    page_protect(address_of(start_info->store_frame), 0);
    expect(extended(PIN_L1, start_info->store_frame, 0), EBUSY, "the store's page as page table");
    *(volatile u32 *)plain = 1;
    report(*(volatile u32 *)plain == 1, "the page in question is still memory");
}

static void report_stores(void)
{
    u32 table = (u32)table_entry(&space, WINDOW);
    map(WINDOW, 0);
    u64 evil = (u64)foreign_frame(1) << 12 | PAGE_PRESENT | PAGE_WRITE;
    volatile u32 *halves = (volatile u32 *)table;
    caught.vector = NOTHING_CAUGHT;
    stored_entry = (u32)evil;
    CATCH("movl stored_entry, %%eax", "movl %%eax, (%%ebx)", "b"(table));
    report(caught.vector == PAGE_FAULT && (caught.error & 3) == 3, "a store of a foreign frame into a page table is a page fault");
    report(halves[0] == 0, "and does not happen");
    CATCH("", "movl $1, (%%ebx)", "b"(0xf5800000));
    report(caught.vector == PAGE_FAULT, "a store to the machine-to-physical table is a page fault");
    CATCH("", "movl $1, (%%ebx)", "b"(gdt_address()));
    report(caught.vector == PAGE_FAULT, "a store to the GDT is a page fault");
}

static int descriptor(u32 low, u32 high)
{
    u64 at = machine(gdt_address() + (FIRST_FREE_SELECTOR & ~7));
    return hypercall(UPDATE_DESCRIPTOR, (u32)at, 0, low, high, 0);
}

static void report_descriptors(void)
{
    expect(descriptor(0, 0x00008900), EINVAL, "a task-state segment");
    expect(descriptor(0, 0x00008200), EINVAL, "an LDT descriptor");
    expect(descriptor(0, 0x00008e00), EINVAL, "an interrupt gate");
    expect(descriptor(0xe0080000, 0x00008c00), EINVAL, "a call gate to the VMM's segments");
    expect(descriptor(0x0000ffff, 0x00af9b00), EINVAL, "a 64-bit code segment");
    report(descriptor(0x0000ffff, 0x00cf9b00) == 0 && (*(u64 *)(gdt_address() + (FIRST_FREE_SELECTOR & ~7)) >> 45 & 3) == 1,
           "a segment of level 0 becomes one of level 1");
    u64 at = machine((u32)table_entry(&space, WINDOW));
    expect(hypercall(UPDATE_DESCRIPTOR, (u32)at, 0, 0, 0, 0), EINVAL, "a descriptor in a page table");
    u32 frame = own_frame(gdt_address());
    expect(hypercall(SET_GDT, (u32)&frame, 7169, 0, 0, 0), EINVAL, "a GDT over the VMM's entries");
    frame = own_frame((u32)page_alloc());
    expect(hypercall(SET_GDT, (u32)&frame, 512, 0, 0, 0), EBUSY, "a writable page as GDT");
    expect(extended(SET_LDT, 0x123, 1), EINVAL, "an LDT off a page's start");
    struct trap_info rows[2] = {{BREAKPOINT, 3, 0x08, (u32)report_descriptors}, {0, 0, 0, 0}};
    report(hypercall(SET_TRAP_TABLE, (u32)rows, 0, 0, 0, 0) == 0, "a handler in a segment of level 0 gets its own level");
    gate_set(BREAKPOINT, SEGMENT_PRESENT | SEGMENT_DPL(3) | GATE_INTERRUPT);
    CATCH("", "lgdt 0x1000", );
    report(caught.vector == GENERAL_PROTECTION, "LGDT is #GP");
    CATCH("", "movl %%ebx, %%cr3", "b"(0));
    report(caught.vector == GENERAL_PROTECTION, "a load of CR3 is #GP");
    CATCH("", "outb %%al, $0x80", );
    report(caught.vector == GENERAL_PROTECTION, "OUT is #GP");
}

static void report_wild_pointers(void)
{
    static const u32 wild[] = {0x00000004 + (16u << 20), 0x7ffffffd, 0xf5800000, 0xfffffff0};
    static const struct {
        enum hypercall number;
        u32 first, second;
        int pointer; /* which argument it is */
        const char *what;
    } calls[] = {
        {SET_TRAP_TABLE, 0, 0, 0, "set_trap_table"},
        {MMU_UPDATE, 0, 1, 0, "mmu_update"},
        {SET_GDT, 0, 8, 0, "set_gdt"},
        {MMUEXT_OP, 0, 1, 0, "mmuext_op"},
        {MULTICALL, 0, 1, 0, "multicall"},
        {EVENT_CHANNEL_OP, SEND, 0, 1, "event_channel_op"},
        {SCHED_OP, SHUTDOWN, 0, 1, "sched_op"},
        {PHYSDEV_OP, SET_IOPL, 0, 1, "physdev_op"},
        {GRANT_TABLE_OP, SETUP_TABLE, 0, 1, "grant_table_op"},
        {XEN_VERSION, 1, 0, 1, "xen_version"},
        {MEMORY_OP, DECREASE_RESERVATION, 0, 1, "memory_op"},
        {CALLBACK_OP, 0, 0, 1, "callback_op"},
        {CONSOLE_IO, 0, 16, 2, "console_io"},
    };
    for (u32 i = 0; i < sizeof calls / sizeof *calls; i++) {
        int refused = 1;
        for (u32 n = 0; n < sizeof wild / sizeof *wild; n++) {
            u32 arguments[3] = {calls[i].first, calls[i].second, 0};
            arguments[calls[i].pointer] = wild[n];
            if (calls[i].number == GRANT_TABLE_OP)
                arguments[2] = 1;
            refused &= hypercall(calls[i].number, arguments[0], arguments[1], arguments[2], DOMID_SELF, 0) == -EFAULT;
        }
        report(refused, "wild pointers: %s", calls[i].what);
    }
    struct mmu_update good[2] = {{window_entry(), 0}, {window_entry(), 0}};
    u32 *done = (u32 *)0x7ffffff0;
    expect(hypercall(MMU_UPDATE, (u32)good, 2, (u32)done, DOMID_SELF, 0), EFAULT, "wild pointers: where mmu_update tells how many were done");
}

struct grant_map {
    u64 address;
    u32 flags, reference;
    u16 domain;
    short status;
    u32 handle;
    u64 bus;
};

struct grant_copy {
    u32 source;
    u16 source_domain, source_at;
    u32 target;
    u16 target_domain, target_at, size, flags;
    short status;
};

static int map_grant(u16 domain, u32 reference, u32 flags)
{
    struct grant_map request = {WINDOW, flags, reference, domain, 99, 0, 0};
    int result = hypercall(GRANT_TABLE_OP, MAP_GRANT, (u32)&request, 1, 0, 0);
    return result ? result : request.status;
}

static int copy_grant(u32 source, u16 domain, u32 target, u16 at, u16 flags)
{
    struct grant_copy request = {source, domain, 0, target, DOMID_SELF, at, 16, flags, 99};
    int result = hypercall(GRANT_TABLE_OP, COPY_GRANT, (u32)&request, 1, 0, 0);
    return result ? result : request.status;
}

/* Grants of others, grants that say other things than they may, memory that is not ours by way of those that are. */
static void report_grants(void)
{
    static volatile struct {
        u16 flags, domain;
        u32 frame;
    } grants[PAGE_SIZE / 8] __attribute__((aligned(4096)));
    u32 foreign = foreign_frame(1), plain = (u32)page_alloc(), table = (u32)table_entry(&space, WINDOW) & ~(PAGE_SIZE - 1), frame;
    struct {
        u16 domain, unused;
        u32 frames;
        short status;
        u32 list;
    } setup = {DOMID_SELF, 0, 1, 0, (u32)&frame};
    report(hypercall(GRANT_TABLE_OP, SETUP_TABLE, (u32)&setup, 1, 0, 0) == 0 && setup.status == 0
               && map((u32)grants, (u64)frame << 12 | PAGE_PRESENT | PAGE_WRITE) == 0, "a grant table");
    grants[1].domain = grants[2].domain = grants[3].domain = 1;
    grants[1].frame = foreign;
    grants[2].frame = own_frame(table);
    grants[3].frame = own_frame(plain);
    grants[1].flags = grants[2].flags = 1;
    grants[3].flags = 1 | 4; /* read-only */
    expect(map_grant(7, 1, 2), -BAD_DOMAIN, "a grant of another domain");
    expect(map_grant(0, 1, 2), -BAD_DOMAIN, "a grant of the control domain");
    expect(map_grant(DOMID_SELF, 0, 2), -BAD_GRANT, "a grant that is none");
    expect(map_grant(DOMID_SELF, 0xffffffff, 2), -BAD_GRANT, "a grant beyond the table");
    report(map_grant(DOMID_SELF, 1, 2) < 0, "a grant of a foreign frame");
    report(map_grant(DOMID_SELF, 2, 2) < 0, "a writable grant of a page table");
    expect(map_grant(DOMID_SELF, 3, 2), -DENIED, "a read-only grant, to write");
    expect(copy_grant(foreign, DOMID_SELF, own_frame(plain), 0, 0), -BAD_PAGE, "a copy out of a foreign frame");
    expect(copy_grant(own_frame(plain), DOMID_SELF, foreign, 0, 0), -BAD_PAGE, "a copy into a foreign frame");
    expect(copy_grant(own_frame(plain), DOMID_SELF, own_frame(table), 0, 0), -BAD_PAGE, "a copy into a page table");
    expect(copy_grant(own_frame(plain), 7, own_frame(plain), 0, 0), -BAD_DOMAIN, "a copy for another domain");
    expect(copy_grant(own_frame(plain), DOMID_SELF, own_frame(plain), PAGE_SIZE - 8, 0), -BAD_COPY, "a copy over the end of a page");
    expect(copy_grant(own_frame(plain), DOMID_SELF, 2, 0, 2), -BAD_PAGE, "a copy into a page table by a grant");
    u32 page = 0, exchange[11] = {(u32)&foreign, 1, 0, 0, DOMID_SELF, (u32)&page, 1, 0, 0, DOMID_SELF, 0};
    expect(hypercall(MEMORY_OP, EXCHANGE, (u32)exchange, 0, 0, 0), EPERM, "an exchange of a foreign frame");
    frame = own_frame(table);
    exchange[0] = (u32)&frame;
    expect(hypercall(MEMORY_OP, EXCHANGE, (u32)exchange, 0, 0, 0), EBUSY, "an exchange of a page table");
    u32 place[4] = {foreign, 0, 0, 0};
    expect(hypercall(VCPU_OP, REGISTER_INFO, 0, (u32)place, 0, 0), EPERM, "the CPU's information in a foreign frame");
    place[0] = own_frame(table);
    expect(hypercall(VCPU_OP, REGISTER_INFO, 0, (u32)place, 0, 0), EBUSY, "the CPU's information in a page table");
}

static void report_events(void)
{
    u32 port = 999;
    expect(hypercall(EVENT_CHANNEL_OP, SEND, (u32)&port, 0, 0, 0), EINVAL, "a signal over a closed channel");
    port = 0xffffffff;
    expect(hypercall(EVENT_CHANNEL_OP, UNMASK, (u32)&port, 0, 0, 0), EINVAL, "a channel that cannot exist");
    u32 virq[3] = {99, 0, 0};
    expect(hypercall(EVENT_CHANNEL_OP, BIND_VIRQ, (u32)virq, 0, 0, 0), EINVAL, "a virtual interrupt that does not exist");
    u32 other[3] = {VIRQ_TIMER, 7, 0};
    expect(hypercall(EVENT_CHANNEL_OP, BIND_VIRQ, (u32)other, 0, 0, 0), ENOENT, "a virtual interrupt of another CPU");
    u32 pirq[3] = {14, 0, 0};
    expect(hypercall(EVENT_CHANNEL_OP, 2, (u32)pirq, 0, 0, 0), EPERM, "a physical interrupt");
    expect(hypercall((enum hypercall)7, 0, 0, 0, 0, 0), ENOSYS, "an operation of the control domain");
    expect(hypercall((enum hypercall)63, 0, 0, 0, 0, 0), ENOSYS, "a hypercall that does not exist");
}

void main(void)
{
    descriptors_setup();
    pic_setup();
    space = address_space_new(1);
    address_space_load(&space);
    report_foreign_frames();
    report_page_tables();
    report_stores();
    report_descriptors();
    report_wild_pointers();
    report_grants();
    report_events();
}
