/* spaces.c: address spaces whose tables are filled as plain memory, and become tables all at once when they are pinned. */
#include "../lib/spaces.h"
#include "../lib/cpu.h"
#include "../lib/memory.h"
#include "../lib/pages.h"

#define FRAME_BITS 0xfffff000u
enum { KERNEL_TABLES = IDENTITY_MIB / 2, TOP_ENTRIES = 4, WINDOW_TOP = WINDOW >> 30, UNPIN = 4, BATCH = 64 };

/* The table, in the kernel's own view, that an entry with a machine frame names. */
static u64 *table_of(u64 entry) { return (u64 *)address_of((u32)(entry >> 12) & 0xffffff); }

static u64 *window_table(const struct address_space *space) { return table_of(table_of(((const u64 *)space->cr3)[WINDOW_TOP])[0]); }

static u64 table_entry_for(const void *table, u64 flags) { return (machine((u32)table) & ~0xfffull) | flags; }

/* Filled, but not yet tables to the VMM: top level, four directories, and the window's table. */
static u64 *tables_new(const struct address_space *like, const u64 *window)
{
    u64 *top = page_take();
    const u64 *shared = table_of(((const u64 *)like->cr3)[0]);
    for (u32 i = 0; i < TOP_ENTRIES; i++) {
        u64 *directory = page_take();
        for (u32 n = 0; i == 0 && n < KERNEL_TABLES; n++)
            directory[n] = shared[n];
        if (i == WINDOW_TOP) {
            directory[0] = table_entry_for(window, PAGE_PRESENT | PAGE_WRITE | PAGE_USER);
            page_protect((u32)window, 0);
        }
        page_protect((u32)directory, 0);
        top[i] = table_entry_for(directory, PAGE_PRESENT);
    }
    page_protect((u32)top, 0);
    mmu_extended(PIN_L3, frame_of((u32)top), 0);
    return top;
}

struct address_space space_new(const struct address_space *kernel) { return (struct address_space){(u32)tables_new(kernel, page_take()), 1}; }

struct address_space space_fork(const struct address_space *parent, u32 pages)
{
    u64 *from = window_table(parent), *to = page_take();
    for (u32 i = 0; i < pages; i++)
        to[i] = from[i] & ~(u64)PAGE_WRITE;
    struct mmu_update updates[BATCH];
    for (u32 done = 0, count; done < pages; done += count) {
        for (count = 0; count < BATCH && done + count < pages; count++)
            updates[count] = (struct mmu_update){machine((u32)&from[done + count]), to[done + count]};
        mmu_update(updates, count);
    }
    return (struct address_space){(u32)tables_new(parent, to), 1};
}

static void give(void *table)
{
    page_protect((u32)table, 1);
    page_give(table);
}

void space_free(const struct address_space *space)
{
    u64 *top = (u64 *)space->cr3, *window = window_table(space), *directories[TOP_ENTRIES];
    for (u32 i = 0; i < TOP_ENTRIES; i++)
        directories[i] = table_of(top[i]);
    mmu_extended(UNPIN, frame_of((u32)top), 0);
    give(top);
    for (u32 i = 0; i < TOP_ENTRIES; i++)
        give(directories[i]);
    give(window);
}

void entries_write(const struct address_space *space, volatile void *first, const u64 *values, u32 count)
{
    (void)space;
    struct mmu_update updates[BATCH];
    for (u32 done = 0, now; done < count; done += now) {
        for (now = 0; now < BATCH && done + now < count; now++) {
            u64 value = values[done + now];
            if (value & PAGE_PRESENT)
                value = (value & ~(u64)FRAME_BITS) | (machine((u32)value & FRAME_BITS) & ~0xfffull);
            updates[now] = (struct mmu_update){machine((u32)((volatile u64 *)first + done + now)), value};
        }
        mmu_update(updates, now);
    }
}
