/* threads.c: see threads.h. A thread is a kernel stack with a trap frame at its top; to switch is to return from a trap by another thread's
 * frame. The kernel runs with interrupts off. Somebody is always ready: one that counts, or one that waits for interrupts. */
#include "threads.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/memory.h"

enum { TIMER_HERTZ = 100 };

struct thread *current;
volatile u32 ticks;
static struct thread *first;
static u32 all;

static struct thread *next_ready(void)
{
    u32 from = (u32)(current - first);
    for (u32 i = 1; i <= all; i++)
        if (first[(from + i) % all].state == READY)
            return &first[(from + i) % all];
    __builtin_unreachable(); /* somebody always is */
}

struct trap_frame *switch_away(struct trap_frame *frame)
{
    current->frame = frame;
    struct thread *next = next_ready();
    if (next->space.cr3 != current->space.cr3)
        write_cr3(next->space.cr3);
    current = next;
    kernel_stack_set(next->kernel_stack_top);
    return next->frame;
}

static struct trap_frame *tick(struct trap_frame *frame)
{
    pic_end(IRQ_TIMER);
    ticks++;
    for (struct thread *thread = first; thread < first + all; thread++)
        if (thread->state == SLEEPING && (int)(ticks - thread->wake) >= 0)
            thread->state = READY;
    return switch_away(frame);
}

void thread_start(struct thread *thread)
{
    memset(thread->page, 0, PAGE_SIZE);
    thread->frame = (struct trap_frame *)thread->kernel_stack_top - 1;
    *thread->frame = (struct trap_frame){
        .ds = USER_DATA, .es = USER_DATA, .cs = USER_CODE, .ss = USER_DATA, .eip = (u32)thread->program,
        .esp = (u32)PRIVATE(thread - first + 1) - 16, .eflags = EFLAGS_ALWAYS | EFLAGS_IF | thread->extra_flags,
    };
    thread->state = READY;
    thread->started++;
}

void threads_setup(struct thread *threads, u32 count)
{
    first = threads;
    all = count;
    for (u32 i = 0; i < count; i++) {
        struct thread *thread = &threads[i];
        thread->space = thread->in_space_of == i ? address_space_new(0) : threads[thread->in_space_of].space;
        thread->page = page_alloc();
        thread->kernel_stack_top = (u32)page_alloc() + PAGE_SIZE;
        page_map(&thread->space, (u32)PRIVATE(i), (u32)thread->page, PAGE_WRITE | PAGE_USER);
    }
    trap_set(IRQ_VECTOR(IRQ_TIMER), tick);
    pit_setup(TIMER_HERTZ);
    pic_unmask(IRQ_TIMER);
}

void threads_run(void)
{
    static struct trap_frame nobody;
    static struct thread start;
    current = first;
    start = *first; /* the first one is to be gone to, not away from */
    address_space_load(&start.space);
    kernel_stack_set(first->kernel_stack_top);
    struct trap_frame *frame = first->state == READY ? first->frame : switch_away(&nobody);
    asm volatile("movl %0, %%esp; popl %%gs; popl %%fs; popl %%es; popl %%ds; popal; addl $8, %%esp; iret" : : "r"(frame) : "memory");
    __builtin_unreachable();
}
