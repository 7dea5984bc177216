/* services_shell.h: the shell and the counter, two threads in one address space: programs that know nothing of how the system is built.
 * Each system includes this into its user code and has `ask` do what asking is there. */
#pragma once
#include "services.h"

/* Has the message of this thread answered; returns its status. */
static enum status ask(struct message *message, enum request request);
static void yield(void);
static void end(u32 right) __attribute__((noreturn));

static inline void say(struct private_page *mine, const char *text)
{
    text_copy(mine->message.text, text, TEXT_BYTES);
    ask(&mine->message, CONSOLE_WRITE);
}

/* Asks again when the server has died under it: a new one will answer. */
static inline enum status ask_files(struct private_page *mine, enum request request, const char *name, const char *text)
{
    for (;;) {
        text_copy(mine->message.name, name, NAME_BYTES);
        text_copy(mine->message.text, text, TEXT_BYTES);
        enum status status = ask(&mine->message, request);
        if (status != SERVER_DIED || request == FILE_FAULT)
            return status;
        yield();
    }
}

static inline u32 expect(struct private_page *mine, int right, const char *what)
{
    char line[TEXT_BYTES];
    text_copy(line, right ? "shell: yes: " : "shell: NO: ", TEXT_BYTES);
    char *end = line;
    while (*end)
        end++;
    text_copy(end, what, (u32)(line + TEXT_BYTES - end));
    say(mine, line);
    return right != 0;
}

static inline int reads(struct private_page *mine, const char *text)
{
    return ask_files(mine, FILE_READ, "motd", "") == DONE && text_equal(mine->message.text, text);
}

static inline void shell(struct private_page *mine, struct private_page *counter)
{
    u32 right = 0;
    right += expect(mine, ask_files(mine, FILE_WRITE, "motd", "Hello, students!") == DONE, "a file is written\n");
    right += expect(mine, reads(mine, "Hello, students!"), "it reads as written\n");
    right += expect(mine, ask_files(mine, FILE_READ, "none", "") == NO_SUCH_FILE, "another one does not exist\n");
    if (mine->faults) {
        say(mine, "shell: now the file service goes astray\n");
        int died = ask_files(mine, FILE_FAULT, "", "") == SERVER_DIED;
        int lost = ask_files(mine, FILE_READ, "motd", "") == NO_SUCH_FILE; /* answered only by a new one, which init starts */
        right += expect(mine, died, "it died of that, and only it\n");
        right += expect(mine, lost, "a new one answers, with no files yet\n");
        right += expect(mine, ask_files(mine, FILE_WRITE, "motd", "Hello again") == DONE, "it takes a file\n");
        right += expect(mine, reads(mine, "Hello again"), "and gives it back\n");
    }
    u32 rounds = counter->rounds;
    while (counter->rounds - rounds < 2)
        yield();
    counter->enough = 1;
    right += expect(mine, !counter->wrong, "the counter was not disturbed\n");
    end(right);
}

/* Counts and checks its sums, all the time, beside whatever else happens. */
static inline void count(struct private_page *mine)
{
    while (!mine->enough) {
        u32 sum = 0;
        for (u32 n = 1; n <= 1000; n++)
            sum += n;
        if (sum != 500500)
            mine->wrong++;
        mine->rounds++;
    }
    for (;;)
        yield();
}
