/* faults_protection.c: what user mode must not do, and single steps in both modes. */
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/memory.h"
#include "../lib/paging.h"
#include "../lib/report.h"
#include "../lib/trap.h"
#include "faults.h"

#define STACK_PAGE 0x40000000u
#define STACK_TOP (STACK_PAGE + PAGE_SIZE - 64)

static void user_mode_setup(void)
{
    static struct address_space space;
    if (space.cr3)
        return;
    space = address_space_new(0);
    page_map(&space, STACK_PAGE, (u32)page_alloc(), PAGE_WRITE | PAGE_USER);
    address_space_load(&space);
}

static void report_snippets(const struct snippet *from, const struct snippet *to)
{
    user_mode_setup();
    for (const struct snippet *s = from; s < to; s++) {
        user_run(s->entry, STACK_TOP);
        if (caught.user && caught.vector == s->vector && caught.error == s->error && caught.eip == s->eip)
            report(1, "%s", s->what);
        else
            report(0, "%s: vector %d, error %x, EIP %d bytes off", s->what, (int)caught.vector, caught.error, (int)(caught.eip - s->eip));
    }
}

void report_user_exceptions(void) { report_snippets(user_snippets, user_snippets_end); }
void report_user_io(void) { report_snippets(io_snippets, io_snippets_end); }

static u32 steps;
static struct trap_frame *count_step(struct trap_frame *frame)
{
    steps++;
    return frame;
}

void report_single_steps(void)
{
    user_mode_setup();
    trap_set(DEBUG_TRAP, count_step);
    user_run((u32)user_step, STACK_TOP);
    /* TF as it is when an instruction starts decides: the POPF that sets it does not trap, the one that clears it does. Between them
     * there are three NOPs, PUSHF and AND. */
    report(steps == 6, "user: TF traps after each of six instructions");
    steps = 0;
    asm volatile("pushfl; orl $0x100, (%%esp); popfl\n"
                 "nop; nop; nop\n"
                 "pushfl; andl $~0x100, (%%esp); popfl" : : : "memory", "cc");
    report(steps == 6, "kernel: TF traps after each of six instructions");
    trap_set(DEBUG_TRAP, 0);
}
