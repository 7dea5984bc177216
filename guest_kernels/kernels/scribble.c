/* scribble.c: a small multitasking system with a process in it that writes random bytes at random physical places, time and again, twice as many each
 * time: the kernel's code and tables, page tables, programs and their data are all fair game. How long until somebody notices, and what?
 *
 * Words of the command line: seed=N, every=TICKS (of 10 ms; default 1000), last=N, the number of rounds; with "harmless" nothing is written. */
#include "scribble.h"
#include "../lib/console.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/memory.h"
#include "../lib/multiboot.h"
#include "../lib/report.h"
#include "threads.h"

enum { MEMORY_BYTES = 8 << 20, LAST = 22 };

static struct thread threads[THREADS] = {
    [IDLE] = {.name = "idle", .program = idle_program, .in_space_of = IDLE},
    [PATTERN] = {.name = "pattern", .program = pattern_program, .in_space_of = PATTERN},
    [SUMS] = {.name = "sums", .program = sums_program, .in_space_of = SUMS},
    [SCRIBBLER] = {.name = "scribbler", .program = scribbler_program, .in_space_of = SCRIBBLER},
};
static u32 seed = 1, every = 1000, last = LAST, round;
static int harmless, checked;

static u32 number(const char *name, u32 otherwise)
{
    char text[12];
    if (!argument_value(name, text, sizeof text))
        return otherwise;
    u32 value = 0;
    for (const char *c = text; *c >= '0' && *c <= '9'; c++)
        value = 10 * value + (u32)(*c - '0');
    return value;
}

static __attribute__((noreturn)) void noticed(const char *who, const char *what, u32 value)
{
    report(0, "round %u: %s: %s %u", round, who, what, value);
    finish();
}

static u32 next_random(void) { return seed = seed * 1664525 + 1013904223; }

/* One round. CR0.WP off: what is read-only is damaged too. */
static struct trap_frame *scribble(struct trap_frame *frame)
{
    if (round == last) {
        report(1, "%u rounds, and nobody noticed anything", round);
        finish();
    }
    u32 bytes = 1u << round++;
    printf("round %u: %u random bytes\n", round, bytes);
    if (harmless)
        return frame;
    write_cr0(read_cr0() & ~CR0_WP);
    while (bytes--) {
        u32 at = next_random() >> 3 & (MEMORY_BYTES - 1);
        *(volatile u8 *)at = (u8)(next_random() >> 24);
    }
    write_cr0(read_cr0() | CR0_WP);
    return frame;
}

static struct trap_frame *system_call(struct trap_frame *frame)
{
    switch ((enum system_call)frame->eax) {
    case CALL_SLEEP:
        current->state = SLEEPING;
        current->wake = ticks + frame->ebx;
        return switch_away(frame);
    case CALL_WAIT:
        sti_hlt();
        cli();
        return frame;
    case CALL_CHECKED:
        if (frame->ebx)
            noticed(current->name, "wrong data:", frame->ebx);
        if (current == &threads[PATTERN] && !checked++)
            printf("all is well\n");
        return frame;
    case CALL_SCRIBBLE:
        return scribble(frame);
    }
    noticed(current->name, "an unknown system call:", frame->eax);
}

static struct trap_frame *fault(struct trap_frame *frame)
{
    noticed(from_user(frame) ? current->name : "the kernel", "exception", frame->vector);
}

void main(void)
{
    seed = (number("seed", seed) + 1) * 2654435761u; /* neighbours lie far apart */
    every = number("every", every);
    last = number("last", last);
    harmless = argument("harmless");
    descriptors_setup();
    pic_setup();
    for (u8 vector = 0; vector < 20; vector++)
        trap_set(vector, fault);
    gate_set(SYSTEM_CALL, SEGMENT_PRESENT | SEGMENT_DPL(3) | GATE_INTERRUPT);
    trap_set(SYSTEM_CALL, system_call);
    threads_setup(threads, THREADS);
    for (u32 at = 0; at < PATTERN_BYTES; at += PAGE_SIZE)
        page_map(&threads[PATTERN].space, PATTERN_AT + at, (u32)page_alloc(), PAGE_WRITE | PAGE_USER);
    for (struct thread *thread = threads; thread < threads + THREADS; thread++) {
        thread_start(thread);
        thread->page->rounds = every;
    }
    printf("scribble: ready\n");
    threads_run();
}
