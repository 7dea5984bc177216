/* paging.c: page tables that hold machine frames and are written by request. The CPU walks them as they are.
 *
 * What the kernel sees at its physical address is mapped by one set of lowest tables that all address spaces share, so that a page becomes
 * read-only in all of them at once, which every page table must be before it is one.
 */
#include "../lib/paging.h"
#include "../lib/cpu.h"
#include "../lib/memory.h"

#define FRAME_BITS 0xfffff000u
#define IDENTITY_TABLES (IDENTITY_MIB / 2)
#define OFFSET(address, shift) ((address) >> (shift)&511)

/* What entries as the CPU sees them cannot say for the kernel: in bits that are the kernel's own, which none of these kernels uses. */
#define WAS_LARGE (1u << 9)     /* a directory entry: the table below stands for a large page */
#define WAS_MALFORMED (1u << 10) /* not present, because of a reserved bit */
#define WAS_GLOBAL (1u << 11)   /* every flush is one of all pages here */
#define RESERVED_LARGE 0x1fe000u /* SDM 3A Table 4-10: bits 20 to 13 */
#define MARKS (PAGE_ACCESSED | PAGE_DIRTY)

extern u8 user_start[], user_end[]; /* link.ld */
static u64 identity[IDENTITY_TABLES]; /* directory entries */

static u64 *table_new(void)
{
    return page_alloc();
}

static u64 to_machine(u64 entry)
{
    if (!(entry & PAGE_PRESENT))
        return entry;
    if (entry >> 36 || (entry & PAGE_LARGE && entry & RESERVED_LARGE))
        return (entry & ~(u64)PAGE_PRESENT) | WAS_MALFORMED;
    if (entry & PAGE_GLOBAL)
        entry ^= PAGE_GLOBAL | WAS_GLOBAL;
    return (entry & ~(u64)FRAME_BITS) | (machine((u32)entry & FRAME_BITS) & ~0xfffull);
}

static volatile u64 *below(u64 entry) { return (volatile u64 *)address_of((u32)(entry >> 12) & 0xffffff); }

static u64 to_physical(u64 entry)
{
    if (entry & WAS_MALFORMED)
        return (entry & ~(u64)WAS_MALFORMED) | PAGE_PRESENT;
    if (!(entry & PAGE_PRESENT))
        return entry;
    if (entry & WAS_LARGE) {
        u64 whole = to_physical(*below(entry)) | PAGE_LARGE;
        for (u32 page = 1; page < 512; page++)
            whole |= below(entry)[page] & MARKS;
        return whole;
    }
    if (entry & WAS_GLOBAL)
        entry ^= PAGE_GLOBAL | WAS_GLOBAL;
    return (entry & 0xfff) | address_of((u32)(entry >> 12) & 0xffffff);
}

/* There are no large pages: a table of 512 small ones stands for one; the same for the entry's later values. */
static u64 table_for_large(u64 before, u64 entry)
{
    static struct mmu_update updates[512];
    u32 table = (u32)(before & PAGE_PRESENT && before & WAS_LARGE ? (u64 *)below(before) : table_new());
    page_protect(table, 0);
    for (u32 page = 0; page < 512; page++)
        updates[page] = (struct mmu_update){machine(table + page * 8), to_machine((entry & ~(u64)PAGE_LARGE) + page * PAGE_SIZE)};
    mmu_update(updates, 512);
    return (machine(table) & ~0xfffull) | PAGE_PRESENT | PAGE_WRITE | PAGE_USER | WAS_LARGE;
}

u64 entry_read(const struct address_space *space, const volatile void *entry)
{
    (void)space;
    return to_physical(*(const volatile u64 *)entry);
}

void entry_write(const struct address_space *space, volatile void *entry, u64 value)
{
    (void)space;
    struct mmu_update update = {machine((u32)entry), to_machine(value)};
    if (update.value & PAGE_PRESENT && value & PAGE_LARGE)
        update.value = table_for_large(*(const volatile u64 *)entry, value);
    mmu_update(&update, 1);
}

static u32 directory(const struct address_space *space, u32 address)
{
    return (u32)entry_read(space, (const u64 *)space->cr3 + (address >> 30)) & FRAME_BITS;
}

volatile void *directory_entry(const struct address_space *space, u32 address)
{
    return (volatile u64 *)directory(space, address) + OFFSET(address, 21);
}

volatile void *table_entry(const struct address_space *space, u32 address)
{
    volatile void *above = directory_entry(space, address);
    if (!(entry_read(space, above) & PAGE_PRESENT)) {
        u64 *table = table_new();
        page_protect((u32)table, 0);
        entry_write(space, above, (u32)table | PAGE_PRESENT | PAGE_WRITE | PAGE_USER);
    }
    return (volatile u64 *)((u32)entry_read(space, above) & FRAME_BITS) + OFFSET(address, 12);
}

void page_map(const struct address_space *space, u32 address, u32 physical, u64 flags)
{
    entry_write(space, table_entry(space, address), physical | flags | PAGE_PRESENT);
}

volatile u64 *paging_directory(u32 address)
{
    struct address_space now = {machine_state.cr3, 1};
    if (address >= VMM_START || !(((const volatile u64 *)now.cr3)[address >> 30] & PAGE_PRESENT))
        return 0;
    return (volatile u64 *)directory_entry(&now, address);
}

volatile u64 *paging_table(const volatile u64 *above, u32 address) { return below(*above) + OFFSET(address, 12); }

int paging_malformed(u32 address)
{
    const volatile u64 *above = paging_directory(address);
    return above && (*above & WAS_MALFORMED || (*above & PAGE_PRESENT && *paging_table(above, address) & WAS_MALFORMED));
}

/* The builder has mapped the first megabytes; the rest of what is seen at its physical address is mapped here. */
void paging_setup(void)
{
    struct address_space first = {start_info->tables, 1};
    for (u32 n = 0; n < IDENTITY_TABLES; n++) {
        u64 *above = (u64 *)directory_entry(&first, n << 21);
        if (!(*above & PAGE_PRESENT)) {
            u64 *table = table_new();
            for (u32 page = 0; page < 512; page++)
                table[page] = to_machine(((n << 21) + (page << 12)) | PAGE_PRESENT | PAGE_WRITE);
            page_protect((u32)table, 0);
            entry_write(&first, above, (u32)table | PAGE_PRESENT | PAGE_WRITE | PAGE_USER);
        }
        identity[n] = *above;
    }
    for (u32 at = (u32)user_start; at < (u32)user_end; at += PAGE_SIZE)
        page_map(&first, at, at, PAGE_USER);
    machine_state.cr3 = start_info->tables;
}

struct address_space address_space_new(int pae)
{
    (void)pae; /* there is one format */
    u64 *top = table_new();
    for (u32 i = 0; i < 4; i++) {
        u64 *second = table_new();
        for (u32 n = 0; i == 0 && n < IDENTITY_TABLES; n++)
            second[n] = identity[n];
        page_protect((u32)second, 0);
        top[i] = to_machine((u32)second | PAGE_PRESENT);
    }
    page_protect((u32)top, 0);
    mmu_extended(PIN_L3, frame_of((u32)top), 0);
    return (struct address_space){(u32)top, 1};
}

void address_space_load(const struct address_space *space) { write_cr3(space->cr3); }
