/* lost_if.c: an exercise. The usual way into and out of a critical section: PUSHF, CLI, the work, POPF (docs/EXERCISES.md, `--break popf`). */
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/report.h"
#include "../lib/trap.h"

#define HERTZ 1000
#define PATIENCE 30000000u /* rounds of an empty loop: many ticks on any machine */

static volatile u32 ticks;

static struct trap_frame *tick(struct trap_frame *frame)
{
    ticks++;
    pic_end(IRQ_TIMER);
    return frame;
}

static int a_tick_comes(void)
{
    u32 before = ticks;
    for (volatile u32 i = 0; i < PATIENCE; i++) {
        if (ticks != before)
            return 1;
    }
    return 0;
}

void main(void)
{
    descriptors_setup();
    pic_setup();
    trap_set(IRQ_VECTOR(IRQ_TIMER), tick);
    pit_setup(HERTZ);
    pic_unmask(IRQ_TIMER);
    sti();
    report(a_tick_comes(), "the clock ticks");

    u32 flags = read_eflags();
    cli();
    report(!(read_eflags() & EFLAGS_IF), "IF is clear in the critical section");
    write_eflags(flags);

    report((read_eflags() & EFLAGS_IF) != 0, "IF is set behind it");
    report(a_tick_comes(), "the clock ticks behind it");
    cli();
    finish();
}
