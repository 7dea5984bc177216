/* batch_pv.c: the same page-table updates three ways: a hypercall for each (how=single), queued in one call for many (how=queue), and
 * many calls in one multicall (how=multicall). What batching saves is the way in and out of the VMM.
 */
#include "../lib/console.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/memory.h"
#include "../lib/multiboot.h"
#include "../lib/paging.h"
#include "../lib/report.h"

enum { UPDATES = 4096, BATCH = 256, PAGES = 512 };
#define WINDOW 0x50000000u

struct call {
    u32 number, result, arguments[6];
};

static struct mmu_update updates[BATCH];
static struct call calls[BATCH];
static u32 queued, hypercalls;
static struct address_space space;
static u32 *pages[2];

static void single(const struct mmu_update *update)
{
    mmu_update(update, 1);
    hypercalls++;
}

static void queue_flush(void)
{
    if (queued) {
        mmu_update(updates, queued);
        hypercalls++;
    }
    queued = 0;
}

static void queue(const struct mmu_update *update)
{
    updates[queued++] = *update;
    if (queued == BATCH)
        queue_flush();
}

static void multicall_flush(void)
{
    if (queued) {
        hypercall(MULTICALL, (u32)calls, queued, 0, 0, 0);
        hypercalls++;
    }
    queued = 0;
}

static void multicall(const struct mmu_update *update)
{
    updates[queued] = *update;
    calls[queued] = (struct call){MMU_UPDATE, 0, {(u32)&updates[queued], 1, 0, DOMID_SELF, 0, 0}};
    queued++;
    if (queued == BATCH)
        multicall_flush();
}

static const struct way {
    const char *name;
    void (*update)(const struct mmu_update *update);
    void (*flush)(void);
} ways[] = {{"single", single, queue_flush}, {"queue", queue, queue_flush}, {"multicall", multicall, multicall_flush}};

static const struct way *chosen(void)
{
    char how[16] = "single";
    argument_value("how", how, sizeof how);
    for (u32 i = 0; i < sizeof ways / sizeof *ways; i++)
        if (!memcmp(ways[i].name, how, 4))
            return &ways[i];
    return ways;
}

/* Maps one of two pages at all addresses of the window, in turns. */
static void remap(const struct way *way)
{
    for (u32 i = 0; i < UPDATES; i++) {
        u64 entry = (machine((u32)pages[i / PAGES & 1]) & ~0xfffull) | PAGE_PRESENT | PAGE_WRITE;
        struct mmu_update update = {machine((u32)table_entry(&space, WINDOW + i % PAGES * PAGE_SIZE)), entry};
        way->update(&update);
    }
    way->flush();
    mmu_extended(FLUSH_LOCAL, 0, 0);
}

void main(void)
{
    descriptors_setup();
    pic_setup();
    space = address_space_new(1);
    table_entry(&space, WINDOW); /* makes the table */
    address_space_load(&space);
    for (u32 i = 0; i < 2; i++)
        *(pages[i] = page_alloc()) = i + 1;

    const struct way *way = chosen();
    remap(way);
    int right = 1;
    for (u32 i = 0; i < PAGES; i++)
        right &= *(volatile u32 *)(WINDOW + i * PAGE_SIZE) == 2;
    report(right, "every address shows the page that it was given last");
    printf("%s: %u updates by %u hypercalls\n", way->name, UPDATES, hypercalls);
}
