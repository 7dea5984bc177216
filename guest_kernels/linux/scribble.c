/* scribble.ko: every so many seconds it writes random bytes at random places of physical memory, each time twice as many as before.
 *
 *   insmod scribble.ko [every=SECONDS] [seed=NUMBER] [last=ROUNDS]
 *
 * `rmmod scribble` ends it, if the kernel still can; `dmesg` says what it has done. The kernel's twin of the bundled guest `scribble`. */

#define pr_fmt(format) KBUILD_MODNAME ": " format

#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/prandom.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>

static unsigned int every = 10;
module_param(every, uint, 0444);
MODULE_PARM_DESC(every, "seconds between two rounds");

static unsigned int seed = 1;
module_param(seed, uint, 0444);
MODULE_PARM_DESC(seed, "the same number chooses the same places and values");

static unsigned int last = 20;
module_param(last, uint, 0444);
MODULE_PARM_DESC(last, "rounds; the last one writes 2^(last-1) bytes");

static struct rnd_state chance;
static unsigned int done;

static void scribble(struct work_struct *work);
static DECLARE_DELAYED_WORK(next_round, scribble);

/* One byte of one frame. The kernel's own mapping of a frame may be read-only, as that of its code is, so the frame is given another one. */
static void write_anywhere(void)
{
    unsigned long pfn = prandom_u32_state(&chance) % get_num_physpages();
    unsigned int at = prandom_u32_state(&chance) % PAGE_SIZE;
    u8 value = prandom_u32_state(&chance);
    struct page *page;
    u8 *mapped;

    if (!pfn_valid(pfn))
        return; /* a hole */
    page = pfn_to_page(pfn);
    mapped = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
    if (!mapped)
        return;
    mapped[at] = value;
    vunmap(mapped);
}

static void scribble(struct work_struct *work)
{
    unsigned int bytes = 1U << done, n;

    pr_notice("round %u: %u random bytes\n", ++done, bytes);
    for (n = 0; n < bytes; n++)
        write_anywhere();
    if (done < last)
        schedule_delayed_work(&next_round, every * HZ);
    else
        pr_notice("%u rounds, and it is still here\n", done);
}

static int __init scribble_init(void)
{
    if (!every || !last || last > 31)
        return -EINVAL;
    prandom_seed_state(&chance, seed);
    pr_notice("every %u s, seed %u\n", every, seed);
    schedule_delayed_work(&next_round, every * HZ);
    return 0;
}

static void __exit scribble_exit(void)
{
    cancel_delayed_work_sync(&next_round);
    pr_notice("no more\n");
}

module_init(scribble_init);
module_exit(scribble_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Writes random bytes at random places of physical memory");
