/* paging.c: makes page tables out of a pool. */
#include "paging.h"

enum { TABLES = 24, ENTRIES = 512 };
#define ADDRESS 0x000ffffffffff000ull

extern u64 top_table[ENTRIES];
static u64 pool[TABLES][ENTRIES] __attribute__((aligned(4096)));
static u32 used;

/* The table below `entry`. Rights are those of the leaf. */
static u64 *table_below(u64 *entry)
{
    if (!(*entry & PAGE_PRESENT) && used < TABLES)
        *entry = (u64)pool[used++] | PAGE_PRESENT | PAGE_WRITABLE | PAGE_USER;
    return (u64 *)(*entry & ADDRESS);
}

volatile u64 *page_map(u64 address, u64 physical, u64 flags)
{
    u64 *table = top_table;
    u32 last = flags & PAGE_LARGE ? 21 : 12;
    for (u32 shift = 39; shift > last; shift -= 9)
        table = table_below(&table[address >> shift & (ENTRIES - 1)]);
    u64 *entry = &table[address >> last & (ENTRIES - 1)];
    *entry = physical | flags | PAGE_PRESENT;
    return entry;
}
