/* faults_demand.c: memory that appears when it is touched, and pages shared until one side writes: page faults put to use. */
#include "../lib/cpu.h"
#include "../lib/memory.h"
#include "../lib/paging.h"
#include "../lib/report.h"
#include "../lib/trap.h"
#include "faults.h"

#define STACK 0x40000000u
#define LAZY 0x60000000u /* pages that do not exist yet */
#define LAZY_PAGES 8u
#define SHARED 0x70000000u /* pages copied on a write */
#define SHARED_PAGES 4u
#define WORDS (PAGE_SIZE / 4)

static struct address_space parent, child, *current;
static volatile u32 appeared, copied; /* any access may change them */

static struct trap_frame *pager(struct trap_frame *frame)
{
    u32 page = read_cr2() & ~(PAGE_SIZE - 1);
    int present = (frame->error & FAULT_PRESENT) != 0;
    if (page - LAZY < LAZY_PAGES * PAGE_SIZE && !present) {
        page_map(current, page, (u32)page_alloc(), PAGE_WRITE | PAGE_USER);
        appeared++;
    } else if (page - SHARED < SHARED_PAGES * PAGE_SIZE && present && frame->error & FAULT_WRITE) {
        void *copy = page_alloc();
        memcpy(copy, (void *)page, PAGE_SIZE);
        page_map(current, page, (u32)copy, PAGE_WRITE | PAGE_USER);
        invlpg((void *)page);
        copied++;
    } else {
        report(0, "the pager got a fault at %08x with error %x", page, frame->error);
        finish();
    }
    return frame;
}

static void enter(struct address_space *space)
{
    current = space;
    address_space_load(space);
}

/* user_fill in faults_snippets.S: store `value` to `words` words, return the sum of what reads back. */
static u32 fill(u32 address, u32 words, u32 value)
{
    u32 *stack = (u32 *)(STACK + PAGE_SIZE - 64);
    stack[0] = address;
    stack[1] = words;
    stack[2] = value;
    return user_run((u32)user_fill, (u32)stack);
}

static u32 sum(u32 address, u32 words)
{
    u32 total = 0;
    for (u32 i = 0; i < words; i++)
        total += ((volatile u32 *)address)[i];
    return total;
}

static void make_spaces(int pae)
{
    parent = address_space_new(pae);
    child = address_space_new(pae);
    page_map(&parent, STACK, (u32)page_alloc(), PAGE_WRITE | PAGE_USER);
    page_map(&child, STACK, (u32)page_alloc(), PAGE_WRITE | PAGE_USER);
    for (u32 i = 0; i < SHARED_PAGES; i++) {
        u32 *page = page_alloc();
        for (u32 word = 0; word < WORDS; word++)
            page[word] = i + 1;
        page_map(&parent, SHARED + i * PAGE_SIZE, (u32)page, PAGE_USER);
        page_map(&child, SHARED + i * PAGE_SIZE, (u32)page, PAGE_USER);
    }
}

void report_demand_paging(int pae)
{
    make_spaces(pae);
    enter(&parent);
    trap_set(PAGE_FAULT, pager);

    u32 total = fill(LAZY, LAZY_PAGES * WORDS, 3);
    report(total == 3 * LAZY_PAGES * WORDS, "demand paging: user code got its memory");
    report(appeared == LAZY_PAGES, "demand paging: one fault for each page");
    enter(&child);
    appeared = 0;
    report(fill(LAZY, WORDS, 5) == 5 * WORDS && appeared == 1, "demand paging: another address space gets its own");
    appeared = 0;
    report(sum(LAZY + PAGE_SIZE, WORDS) == 0 && appeared == 1, "demand paging: the kernel's own access is served too");

    report(fill(SHARED, WORDS, 9) == 9 * WORDS && copied == 1, "copy on write: the child's write copies one page");
    report(sum(SHARED, 4 * WORDS) == (9 + 2 + 3 + 4) * WORDS, "copy on write: the child sees its copy and the shared rest");
    *(volatile u32 *)(SHARED + PAGE_SIZE) = 2; /* CR0.WP: the kernel's write to a user page faults like the user's */
    report(copied == 2, "copy on write: the kernel's write copies a page");
    enter(&parent);
    report(sum(SHARED, 4 * WORDS) == (1 + 2 + 3 + 4) * WORDS, "copy on write: the parent's pages are unchanged");
    report(sum(LAZY, WORDS) == 3 * WORDS, "demand paging: the parent's memory is unchanged");
    trap_set(PAGE_FAULT, 0);
}
