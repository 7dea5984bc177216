/* spaces.c: address spaces whose tables are filled as plain memory, and become tables all at once when they are pinned. */
#include "../lib/spaces.h"
#include "../lib/cpu.h"
#include "../lib/memory.h"
#include "../lib/pages.h"

#define FRAME_BITS 0xfffff000u
enum { KERNEL_TABLES = IDENTITY_MIB / 2, TOP_ENTRIES = 4, WINDOW_TOP = WINDOW >> 30, TABLES = TOP_ENTRIES + 2, UNPIN = 4, BATCH = 64 };

/* The table, in the kernel's own view, that an entry with a machine frame names. */
static u64 *table_of(u64 entry) { return (u64 *)address_of((u32)(entry >> 12) & 0xffffff); }

static u64 *window_table(const struct address_space *space) { return table_of(table_of(((const u64 *)space->cr3)[WINDOW_TOP])[0]); }

static u64 table_entry_for(const void *table, u64 flags) { return (machine((u32)table) & ~0xfffull) | flags; }

/* The kernel's own view of all tables of a space, read-only or writable, by one request; `shared` is a directory with the kernel's tables. */
static void protect(const u64 *shared, void *const tables[TABLES], u64 writable)
{
    struct mmu_update updates[TABLES];
    for (u32 i = 0; i < TABLES; i++) {
        u32 address = (u32)tables[i];
        updates[i].address = machine((u32)&table_of(shared[address >> 21])[address >> 12 & 511]);
        updates[i].value = table_entry_for(tables[i], PAGE_PRESENT | writable);
    }
    mmu_update(updates, TABLES);
    mmu_extended(FLUSH_LOCAL, 0, 0);
}

/* Top level and four directories are filled as plain memory, around the window's table, and become tables by being pinned. */
static u64 *tables_new(const struct address_space *like, u64 *window)
{
    void *tables[TABLES];
    u64 *top = page_take();
    const u64 *shared = table_of(((const u64 *)like->cr3)[0]);
    for (u32 i = 0; i < TOP_ENTRIES; i++) {
        u64 *directory = page_take();
        for (u32 n = 0; i == 0 && n < KERNEL_TABLES; n++)
            directory[n] = shared[n];
        if (i == WINDOW_TOP)
            directory[0] = table_entry_for(window, PAGE_PRESENT | PAGE_WRITE | PAGE_USER);
        top[i] = table_entry_for(directory, PAGE_PRESENT);
        tables[i] = directory;
    }
    tables[TOP_ENTRIES] = top;
    tables[TOP_ENTRIES + 1] = window;
    protect(shared, tables, 0);
    mmu_extended(PIN_L3, frame_of((u32)top), 0);
    return top;
}

/* A domain has no NX. */
struct address_space space_of_kernel(u64 *data)
{
    *data = 0;
    return address_space_new(0);
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

void space_free(const struct address_space *space)
{
    void *tables[TABLES];
    u64 *top = (u64 *)space->cr3;
    for (u32 i = 0; i < TOP_ENTRIES; i++)
        tables[i] = table_of(top[i]);
    tables[TOP_ENTRIES] = top;
    tables[TOP_ENTRIES + 1] = window_table(space);
    mmu_extended(UNPIN, frame_of((u32)top), 0);
    protect(tables[0], tables, PAGE_WRITE);
    for (u32 i = 0; i < TABLES; i++)
        page_give(tables[i]);
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
