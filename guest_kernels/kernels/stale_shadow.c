/* stale_shadow.c: an exercise. One linear page leads to three physical pages in turn; CR3 is loaded after each change of the page table
 * (docs/EXERCISES.md, `--break no-trace`). */
#include "../lib/cpu.h"
#include "../lib/memory.h"
#include "../lib/paging.h"
#include "../lib/report.h"

#define WINDOW 0x40000000u
#define PAGES 3

void main(void)
{
    struct address_space space = address_space_new(0);
    u32 *pages[PAGES];
    for (u32 i = 0; i < PAGES; i++) {
        pages[i] = page_alloc();
        *pages[i] = 100 + i;
    }
    page_map(&space, WINDOW, (u32)pages[0], PAGE_WRITE);
    address_space_load(&space);
    for (u32 i = 0; i < PAGES; i++) {
        page_map(&space, WINDOW, (u32)pages[i], PAGE_WRITE);
        write_cr3(space.cr3); /* forget all old translations */
        u32 seen = *(volatile u32 *)WINDOW;
        report(seen == 100 + i, "the window shows page %u, and page %u is mapped there", seen - 100, i);
    }
    finish();
}
