/* ukernel_user.c: all that is no business of a microkernel's, in user mode: the process that watches the others, the console driver, the
 * file server, the shell and its counter. */
#include "ukernel.h"
#include "../lib/cpu.h"
#include "services_files.h"
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
    u32 died = call(CALL_ASK, request == CONSOLE_WRITE ? CONSOLE : FILE_SERVER);
    return died ? SERVER_DIED : (enum status)message->status;
}

static void yield(void) { call(CALL_YIELD, 0); }

static void end(u32 right)
{
    for (;;)
        call(CALL_END, right);
}

/* Starts again whatever dies, and says so first. */
void init_program(void)
{
    for (;;) {
        u32 dead = call(CALL_WATCH, 0);
        say(PRIVATE(INIT), dead == FILE_SERVER ? "init: the file server has died: another one\n" : "init: somebody has died: again\n");
        call(CALL_START, dead);
    }
}

/* The driver of the serial line: the only process with IOPL 3, which is what port access takes in user mode. */
void console_program(void)
{
    enum { DATA = 0x3f8, LINE_STATUS = 0x3fd, TRANSMITTER_EMPTY = 0x20 };
    struct message *message = &PRIVATE(CONSOLE)->message;
    for (;;) {
        u32 client = call(CALL_RECEIVE, 0);
        for (const char *c = message->text; c < message->text + TEXT_BYTES && *c; c++) {
            if (*c == '\n') {
                while (!(inb(LINE_STATUS) & TRANSMITTER_EMPTY))
                    ;
                outb(DATA, '\r');
            }
            while (!(inb(LINE_STATUS) & TRANSMITTER_EMPTY))
                ;
            outb(DATA, (u8)*c);
        }
        message->status = DONE;
        call(CALL_REPLY, client);
    }
}

void files_program(void)
{
    struct private_page *mine = PRIVATE(FILE_SERVER);
    for (;;) {
        u32 client = call(CALL_RECEIVE, 0);
        files_answer((struct files *)mine->data, &mine->message, mine->stray);
        call(CALL_REPLY, client);
    }
}

void shell_program(void) { shell(PRIVATE(SHELL), PRIVATE(COUNTER)); }
void counter_program(void) { count(PRIVATE(COUNTER)); }
