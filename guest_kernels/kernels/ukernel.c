/* ukernel.c: a microkernel: address spaces, threads, messages, and nothing else. Drivers and files are servers in user mode (ukernel_user.c):
 * a server that goes astray hits the walls of its own address space, dies, and is started again. mono is the same system in one kernel. */
#include "ukernel.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/memory.h"
#include "../lib/multiboot.h"
#include "../lib/report.h"
#include "threads.h"

static struct thread threads[THREADS] = {
    [INIT] = {.name = "init", .program = init_program, .in_space_of = INIT},
    [CONSOLE] = {.name = "console", .program = console_program, .in_space_of = CONSOLE, .extra_flags = EFLAGS_IOPL},
    [FILE_SERVER] = {.name = "files", .program = files_program, .in_space_of = FILE_SERVER},
    [SHELL] = {.name = "shell", .program = shell_program, .in_space_of = SHELL},
    [COUNTER] = {.name = "counter", .program = counter_program, .in_space_of = SHELL},
};
static u32 dead = THREADS; /* who died last and has not been told of; THREADS: nobody */
static int faults;

static u32 number_of(const struct thread *thread) { return (u32)(thread - threads); }

/* A thread of a process begins: what the kernel tells it lies in its page. */
static void start(struct thread *thread)
{
    thread_start(thread);
    thread->page->stray = idt_address();
    thread->page->faults = (u32)faults;
}

/* --- messages: the sender waits until it has its answer --- */

static void deliver(struct thread *from, struct thread *to)
{
    memcpy(&to->page->message, &from->page->message, sizeof(struct message));
    from->state = AWAITING_REPLY;
    to->state = READY;
    to->frame->eax = number_of(from);
}

static struct trap_frame *ask(struct trap_frame *frame, u32 to)
{
    frame->eax = SERVER_DIED;
    if (to >= THREADS || &threads[to] == current || threads[to].state == ENDED)
        return frame;
    frame->eax = DONE;
    current->partner = to;
    current->state = SENDING;
    if (threads[to].state == RECEIVING)
        deliver(current, &threads[to]);
    return switch_away(frame);
}

static struct trap_frame *receive(struct trap_frame *frame)
{
    current->frame = frame;
    for (struct thread *thread = threads; thread < threads + THREADS; thread++)
        if (thread->state == SENDING && &threads[thread->partner] == current) {
            deliver(thread, current);
            return frame;
        }
    current->state = RECEIVING;
    return switch_away(frame);
}

static struct trap_frame *reply(struct trap_frame *frame, u32 to)
{
    if (to < THREADS && threads[to].state == AWAITING_REPLY && &threads[threads[to].partner] == current) {
        memcpy(&threads[to].page->message, &current->page->message, sizeof(struct message));
        threads[to].state = READY;
    }
    return frame;
}

/* --- the death of a thread, and who is told --- */

static struct trap_frame *watch(struct trap_frame *frame)
{
    current->state = WATCHING;
    frame->eax = dead;
    if (dead == THREADS)
        return switch_away(frame);
    dead = THREADS;
    current->state = READY;
    return frame;
}

static struct trap_frame *fault(struct trap_frame *frame)
{
    if (!from_user(frame)) {
        report(0, "vector %u in the kernel", frame->vector);
        finish();
    }
    current->state = ENDED;
    for (struct thread *thread = threads; thread < threads + THREADS; thread++)
        if ((thread->state == SENDING || thread->state == AWAITING_REPLY) && &threads[thread->partner] == current) {
            thread->state = READY;
            thread->frame->eax = SERVER_DIED;
        }
    dead = number_of(current);
    if (threads[INIT].state == WATCHING) {
        threads[INIT].state = READY;
        threads[INIT].frame->eax = dead;
        dead = THREADS;
    }
    return switch_away(frame);
}

/* --- the run --- */

static __attribute__((noreturn)) void end_of_run(u32 right)
{
    u32 others = 0;
    for (struct thread *thread = threads; thread < threads + THREADS; thread++)
        others += thread != &threads[FILE_SERVER] && (thread->started != 1 || thread->state == ENDED);
    report(right == (faults ? 8u : 4u), "the shell's work is done");
    report(threads[FILE_SERVER].started == 1 + (u32)faults, "the file server was started %u times", threads[FILE_SERVER].started);
    report(!others, "no other process died");
    finish();
}

static struct trap_frame *system_call(struct trap_frame *frame)
{
    u32 value = frame->ebx;
    switch ((enum system_call)frame->eax) {
    case CALL_ASK:
        return ask(frame, value);
    case CALL_RECEIVE:
        return receive(frame);
    case CALL_REPLY:
        return reply(frame, value);
    case CALL_YIELD:
        return switch_away(frame);
    case CALL_WATCH:
        return current == &threads[INIT] ? watch(frame) : frame;
    case CALL_START:
        if (current == &threads[INIT] && value < THREADS && threads[value].state == ENDED)
            start(&threads[value]);
        return frame;
    case CALL_END:
        if (current == &threads[SHELL])
            end_of_run(value);
        return frame;
    }
    return frame;
}

void main(void)
{
    faults = !argument("whole");
    descriptors_setup();
    pic_setup();
    for (u8 vector = 0; vector < 20; vector++)
        trap_set(vector, fault);
    gate_set(SYSTEM_CALL, SEGMENT_PRESENT | SEGMENT_DPL(3) | GATE_INTERRUPT);
    trap_set(SYSTEM_CALL, system_call);
    threads_setup(threads, THREADS);
    for (struct thread *thread = threads; thread < threads + THREADS; thread++)
        start(thread);
    threads_run();
}
