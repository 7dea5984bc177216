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

extern u8 user_start[], user_end[]; /* link.ld */
static u64 identity[IDENTITY_TABLES]; /* directory entries */

static u64 to_machine(u64 entry)
{
    return entry & PAGE_PRESENT ? (entry & ~(u64)FRAME_BITS) | (machine((u32)entry & FRAME_BITS) & ~0xfffull) : entry;
}

static u64 to_physical(u64 entry)
{
    return entry & PAGE_PRESENT ? (entry & 0xfff) | address_of((u32)(entry >> 12) & 0xffffff) : entry;
}

static u64 *table_new(void)
{
    return page_alloc();
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
        u64 *below = table_new();
        for (u32 n = 0; i == 0 && n < IDENTITY_TABLES; n++)
            below[n] = identity[n];
        page_protect((u32)below, 0);
        top[i] = to_machine((u32)below | PAGE_PRESENT);
    }
    page_protect((u32)top, 0);
    mmu_extended(PIN_L3, frame_of((u32)top), 0);
    return (struct address_space){(u32)top, 1};
}

void address_space_load(const struct address_space *space) { write_cr3(space->cr3); }
