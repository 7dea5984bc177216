/* spaces.c: address spaces in the two-level format. */
#include "spaces.h"
#include "pages.h"

#define TABLE_ADDRESS 0xfffff000u
enum { KERNEL_TABLES = IDENTITY_MIB / 4 };

static u32 *window_table(const struct address_space *space) { return (u32 *)(((u32 *)space->cr3)[WINDOW >> 22] & TABLE_ADDRESS); }

struct address_space space_new(const struct address_space *kernel)
{
    u32 *directory = page_take();
    for (u32 i = 0; i < KERNEL_TABLES; i++)
        directory[i] = ((const u32 *)kernel->cr3)[i];
    directory[WINDOW >> 22] = (u32)page_take() | PAGE_PRESENT | PAGE_WRITE | PAGE_USER;
    return (struct address_space){(u32)directory, 0};
}

struct address_space space_fork(const struct address_space *parent, u32 pages)
{
    struct address_space child = space_new(parent);
    volatile u32 *from = window_table(parent), *to = window_table(&child);
    for (u32 i = 0; i < pages; i++)
        from[i] = to[i] = from[i] & ~PAGE_WRITE;
    return child;
}

void space_free(const struct address_space *space)
{
    page_give(window_table(space));
    page_give((void *)space->cr3);
}

void entries_write(const struct address_space *space, volatile void *first, const u64 *values, u32 count)
{
    for (u32 i = 0; i < count; i++)
        entry_write(space, (volatile u32 *)first + i, values[i]);
}
