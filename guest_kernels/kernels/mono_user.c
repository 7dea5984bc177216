/* mono_user.c: the shell and its counter, the only things outside the kernel. */
#include "mono.h"
#include "services_shell.h"

static inline u32 call(enum system_call number, u32 value)
{
    u32 result;
    asm volatile("int $0x80" : "=a"(result) : "a"(number), "b"(value) : "memory");
    return result;
}

static enum status ask(struct message *message, enum request request)
{
    message->request = request;
    call(CALL_ASK, 0);
    return (enum status)message->status;
}

static void yield(void) { call(CALL_YIELD, 0); }

static void end(u32 right)
{
    for (;;)
        call(CALL_END, right);
}

void shell_program(void) { shell(PRIVATE(SHELL), PRIVATE(COUNTER)); }
void counter_program(void) { count(PRIVATE(COUNTER)); }
