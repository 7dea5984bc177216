/* trap.c: where every trap arrives in C, and who gets it. */
#include "trap.h"
#include "catch.h"
#include "console.h"
#include "cpu.h"
#include "report.h"

u32 user_enter(u32 eip, u32 esp); /* trap_entry.S */
__attribute__((noreturn)) void user_leave(u32 value);
struct trap_frame *trap_dispatch(struct trap_frame *frame);

struct caught caught;
u32 catch_resume, catch_at, catch_after, catch_esp;
static int user_running;
static trap_function *functions[256];

void trap_set(u8 vector, trap_function *function) { functions[vector] = function; }

static void remember(const struct trap_frame *frame)
{
    caught = (struct caught){
        .vector = frame->vector, .error = frame->error, .eip = frame->eip, .cr2 = read_cr2(), .user = (u32)from_user(frame),
        .eax = frame->eax, .ecx = frame->ecx, .esi = frame->esi, .edi = frame->edi, .eflags = frame->eflags,
    };
}

static struct trap_frame *unexpected(struct trap_frame *frame)
{
    report(0, "unexpected trap: vector %u error %x eip %08x cr2 %08x from %s", frame->vector, frame->error, frame->eip, read_cr2(),
           from_user(frame) ? "user" : "kernel");
    finish();
}

struct trap_frame *trap_dispatch(struct trap_frame *frame)
{
    trap_function *function = functions[frame->vector & 0xff];
    if (function)
        return function(frame);
    if (from_user(frame) && user_running) {
        user_running = 0;
        if (frame->vector == SYSTEM_CALL)
            user_leave(frame->eax);
        remember(frame);
        user_leave(0);
    }
    if (!from_user(frame) && catch_resume) {
        remember(frame);
        frame->eip = catch_resume;
        catch_resume = 0;
        return frame;
    }
    return unexpected(frame);
}

u32 user_run(u32 eip, u32 esp)
{
    caught.vector = NOTHING_CAUGHT;
    user_running = 1;
    return user_enter(eip, esp);
}
