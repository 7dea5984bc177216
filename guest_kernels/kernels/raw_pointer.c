/* raw_pointer.c: an exercise. Paging is turned on, each linear page leading to the physical page of the same number, four pages are looked at,
 * and paging is turned off again (docs/EXERCISES.md, `--break raw-ptp`).
 *
 * From the one change of CR0 to the other nothing is in memory but what is looked at: no stack, no variable. */
#include "../lib/console.h"
#include "../lib/cpu.h"
#include "../lib/memory.h"
#include "../lib/paging.h"
#include "../lib/report.h"

#define PAGES 4
#define SHOWN 32

static void look(const u32 *address, u32 cr0, u32 seen[2])
{
    asm volatile("movl %%cr0, %%edx; movl %3, %%cr0\n"
                 "movl (%2), %0; movl 4(%2), %1\n"
                 "movl %%edx, %%cr0"
                 : "=&a"(seen[0]), "=&c"(seen[1])
                 : "r"(address), "r"(cr0)
                 : "edx", "memory");
}

static char printable(char c) { return c >= ' ' && c <= '~' ? c : '.'; }

void main(void)
{
    struct address_space space = address_space_new(0);
    u32 with_paging = read_cr0() | CR0_PG | CR0_WP;
    char *pages[PAGES];
    for (u32 i = 0; i < PAGES; i++) {
        pages[i] = page_alloc();
        memcpy(pages[i], "This is my own memory, and mine.", SHOWN);
    }
    write_cr3(space.cr3);
    for (u32 i = 0; i < PAGES; i++) {
        char seen[SHOWN];
        for (u32 at = 0; at < SHOWN; at += 8) {
            u32 words[2];
            look((const u32 *)(pages[i] + at), with_paging, words);
            memcpy(seen + at, words, sizeof words);
        }
        printf("page %u: ", i);
        for (u32 at = 0; at < SHOWN; at++)
            printf("%c", printable(seen[at]));
        printf("\n");
        report(!memcmp(seen, pages[i], SHOWN), "page %u shows what was written there", i);
    }
    finish();
}
