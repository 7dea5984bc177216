/* paging.c: builds page tables, of 4-byte entries in two levels or of 8-byte entries in three. */
#include "paging.h"
#include "cpu.h"
#include "memory.h"

#define TABLE_ADDRESS 0xfffff000u

extern u8 user_start[], user_end[]; /* link.ld */

static volatile void *entry_at(const struct address_space *space, u32 table, u32 index)
{
    return (volatile u8 *)table + index * (space->pae ? 8 : 4);
}

u64 entry_read(const struct address_space *space, const volatile void *entry)
{
    return space->pae ? *(const volatile u64 *)entry : *(const volatile u32 *)entry;
}

void entry_write(const struct address_space *space, volatile void *entry, u64 value)
{
    volatile u32 *half = entry;
    if (space->pae)
        half[1] = (u32)(value >> 32);
    half[0] = (u32)value; /* last: it has the present bit */
}

/* The directory for `address`: with PAE one of four, named by an entry of the page-directory-pointer table. */
static u32 directory(const struct address_space *space, u32 address)
{
    if (!space->pae)
        return space->cr3;
    return (u32)entry_read(space, entry_at(space, space->cr3, address >> 30)) & TABLE_ADDRESS;
}

volatile void *directory_entry(const struct address_space *space, u32 address)
{
    u32 index = space->pae ? address >> 21 & 511 : address >> 22;
    return entry_at(space, directory(space, address), index);
}

volatile void *table_entry(const struct address_space *space, u32 address)
{
    volatile void *above = directory_entry(space, address);
    if (!(entry_read(space, above) & PAGE_PRESENT)) /* the page's own entry decides about writing and user mode */
        entry_write(space, above, (u32)page_alloc() | PAGE_PRESENT | PAGE_WRITE | PAGE_USER);
    u32 table = (u32)entry_read(space, above) & TABLE_ADDRESS;
    return entry_at(space, table, address >> 12 & (space->pae ? 511 : 1023));
}

void page_map(const struct address_space *space, u32 address, u32 physical, u64 flags)
{
    entry_write(space, table_entry(space, address), physical | flags | PAGE_PRESENT);
}

struct address_space address_space_new(int pae)
{
    struct address_space space = {(u32)page_alloc(), pae};
    /* All four directories at once: the CPU reads these entries only when CR3 is loaded (SDM 3A 4.4.1 "PDPTE Registers"). */
    for (u32 i = 0; pae && i < 4; i++)
        entry_write(&space, entry_at(&space, space.cr3, i), (u32)page_alloc() | PAGE_PRESENT);
    for (u32 at = 0; at < IDENTITY_MIB << 20; at += PAGE_SIZE) {
        int user = at >= (u32)user_start && at < (u32)user_end;
        page_map(&space, at, at, user ? PAGE_USER : PAGE_WRITE);
    }
    return space;
}

void address_space_load(const struct address_space *space)
{
    if (!(read_cr0() & CR0_PG)) {
        u32 cr4 = read_cr4() & ~CR4_PAE;
        write_cr4(space->pae ? cr4 | CR4_PAE : cr4);
    }
    write_cr3(space->cr3);
    write_cr0(read_cr0() | CR0_PG | CR0_WP);
}
