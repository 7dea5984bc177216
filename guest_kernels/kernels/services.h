/* services.h: what programs ask of an operating system, the same in ukernel, where servers in user mode answer, and in mono, where the
 * kernel does. A program's code lies in kernels/NAME_user.c; all that it writes lies in its private page. */
#pragma once
#include "../lib/types.h"

enum request { FILE_WRITE, FILE_READ, FILE_FAULT, CONSOLE_WRITE };
enum status { DONE, NO_SUCH_FILE, NO_ROOM, SERVER_DIED };

#define NAME_BYTES 12
#define TEXT_BYTES 64

/* Request and answer. It stands at the start of a thread's private page, where the kernel finds it. */
struct message {
    u32 request, status;
    char name[NAME_BYTES];
    char text[TEXT_BYTES];
};

/* The private page of a thread: its message, what the kernel tells it, its data, and at the end its stack. The threads of one address
 * space see each other's pages. */
struct private_page {
    struct message message;
    u32 stray;             /* where the fault that is injected writes to: the kernel's interrupt table */
    u32 faults;            /* whether one is to be injected */
    volatile u32 rounds;   /* of the counter */
    volatile u32 wrong, enough;
    u8 data[2048];
};

#define PRIVATE_PAGE 0x40000000u
#define PRIVATE(thread) ((struct private_page *)(PRIVATE_PAGE + (thread)*4096))

/* Text without a library, for code that is the kernel's in one system and a program's in the other. */
static inline void text_copy(char *to, const char *from, u32 bytes)
{
    while (--bytes && *from)
        *to++ = *from++;
    *to = 0;
}

static inline int text_equal(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}
