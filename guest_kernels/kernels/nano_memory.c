/* nano_memory.c: rows about page tables and address spaces. */
#include "nano.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/memory.h"
#include "../lib/pages.h"
#include "../lib/rows.h"

enum { TABLE_PAGES = 64, TOUCHED = 4 };

static struct address_space spaces[2];
static u8 *pages[2]; /* what addresses of the window are mapped to, in turns */
static u64 values[2][TABLE_PAGES];

static volatile u32 *window(u32 page) { return (volatile u32 *)(WINDOW + page * PAGE_SIZE); }

const struct address_space *nano_memory_setup(void)
{
    for (u32 i = 0; i < 2; i++) {
        pages[i] = page_take();
        *(u32 *)pages[i] = i;
    }
    for (u32 i = 0; i < 2; i++) {
        spaces[i] = space_new(&kernel_space);
        for (u32 page = 0; page < TABLE_PAGES; page++) {
            values[i][page] = (u32)pages[i] | PAGE_PRESENT | PAGE_WRITE;
            page_map(&spaces[i], WINDOW + page * PAGE_SIZE, (u32)pages[i], PAGE_WRITE);
        }
    }
    address_space_load(&spaces[0]);
    return &spaces[0];
}

/* A page is mapped elsewhere and the address dropped: each time another of the window's. All are looked at in the end. */
int nano_ptemod_cold(u32 n)
{
    u32 right = 0;
    for (u32 page = 0; page < TABLE_PAGES; page++) { /* whatever other rows have left there */
        entry_write(&spaces[0], table_entry(&spaces[0], WINDOW + page * PAGE_SIZE), values[0][page]);
        invlpg(window(page));
        right += *window(page) == 0;
    }
    rows_begin();
    for (u32 i = 0; i < n; i++) {
        u32 page = i % TABLE_PAGES, other = ~(i / TABLE_PAGES) & 1;
        entry_write(&spaces[0], table_entry(&spaces[0], WINDOW + page * PAGE_SIZE), values[other][page]);
        invlpg(window(page));
    }
    rows_end();
    for (u32 page = 0; page < TABLE_PAGES; page++) {
        u32 written = n / TABLE_PAGES + (page < n % TABLE_PAGES); /* how often */
        right += *window(page) == (written & 1);
    }
    return right == 2 * TABLE_PAGES;
}

/* One entry is written over and over, and what it maps is looked at once. */
int nano_ptemod_hot(u32 n)
{
    volatile void *entry = table_entry(&spaces[0], WINDOW);
    u64 first = values[0][0], second = values[1][0];
    u32 before = *window(0);
    rows_begin();
    for (u32 i = 0; i < n; i++)
        entry_write(&spaces[0], entry, i & 1 ? first : second);
    rows_end();
    invlpg(window(0));
    return before < 2 && *window(0) == (n & 1);
}

/* All entries of the window are written at once, CR3 loaded, and some of the pages used. */
int nano_ptemod_batch(u32 n)
{
    u32 right = 0, used = 0;
    volatile void *first = table_entry(&spaces[0], WINDOW);
    rows_begin();
    for (u32 i = 0; i < n; i++) {
        u32 other = ~i & 1;
        entries_write(&spaces[0], first, values[other], TABLE_PAGES);
        write_cr3(spaces[0].cr3);
        for (u32 page = 0; page < TABLE_PAGES; page += TABLE_PAGES / TOUCHED, used++)
            right += *window(page) == other;
    }
    rows_end();
    return right == used;
}

int nano_invlpg(u32 n)
{
    u32 before = *window(0);
    rows_begin();
    for (u32 i = 0; i < n; i++)
        invlpg(window(0));
    rows_end();
    return *window(0) == before;
}

int nano_cr3wr(u32 n)
{
    rows_begin();
    for (u32 i = 0; i < n; i++)
        write_cr3(spaces[0].cr3);
    rows_end();
    return read_cr3() == spaces[0].cr3;
}

/* What a kernel does to go from one process to another: CR3, the stack for traps, and the first use of memory there. */
int nano_ctxswitch(u32 n)
{
    u32 own = 0;
    for (u32 i = 0; i < 2; i++) { /* whatever other rows have left there */
        entry_write(&spaces[i], table_entry(&spaces[i], WINDOW), values[i][0]);
        write_cr3(spaces[i].cr3);
    }
    rows_begin();
    for (u32 i = 0; i < n; i++) {
        write_cr3(spaces[i & 1].cr3);
        kernel_stack_set((u32)pages[i & 1] + PAGE_SIZE);
        own += *window(0) == (i & 1);
    }
    rows_end();
    write_cr3(spaces[0].cr3);
    return own == n;
}
