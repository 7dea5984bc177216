/* mono.c: the system of ukernel in one kernel: console and files are functions that a system call reaches. Shorter and faster, and when the
 * file service goes astray nothing stands between it and the kernel's own tables: the whole system is gone. */
#include "mono.h"
#include "../lib/console.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/multiboot.h"
#include "../lib/report.h"
#include "services_files.h"
#include "threads.h"

static struct thread threads[THREADS] = {
    [SHELL] = {.name = "shell", .program = shell_program, .in_space_of = SHELL},
    [COUNTER] = {.name = "counter", .program = counter_program, .in_space_of = SHELL},
};
static struct files files;

static void answer(struct message *message)
{
    if (message->request == CONSOLE_WRITE) {
        for (const char *c = message->text; c < message->text + TEXT_BYTES && *c; c++)
            serial_write(*c);
        message->status = DONE;
    } else
        files_answer(&files, message, idt_address());
}

static struct trap_frame *system_call(struct trap_frame *frame)
{
    switch ((enum system_call)frame->eax) {
    case CALL_ASK:
        answer(&current->page->message);
        return frame;
    case CALL_YIELD:
        return switch_away(frame);
    case CALL_END:
        report(frame->ebx == 4, "the shell's work is done");
        finish();
    }
    return frame;
}

void main(void)
{
    descriptors_setup();
    pic_setup();
    gate_set(SYSTEM_CALL, SEGMENT_PRESENT | SEGMENT_DPL(3) | GATE_INTERRUPT);
    trap_set(SYSTEM_CALL, system_call);
    threads_setup(threads, THREADS);
    for (struct thread *thread = threads; thread < threads + THREADS; thread++) {
        thread_start(thread);
        thread->page->faults = !argument("whole");
    }
    threads_run();
}
