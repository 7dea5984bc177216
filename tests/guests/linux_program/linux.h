/* linux.h: what a program without a C library needs of 32-bit Linux, and how its parts provoke signals. */
#pragma once
#include <asm/sigcontext.h>
#include <asm/signal.h>
#include <asm/siginfo.h>
#include <asm/ucontext.h>
#include <asm/ldt.h>
#include <asm/unistd.h>
#include <linux/mman.h>
#include "../../../guest_kernels/lib/console.h"
#include "../../../guest_kernels/lib/memory.h"

#include "addresses.h"

long system_call(long number, ...);
/* The same by whatever instruction the kernel's page for users has for it. */
long fast_call(long number, ...);
extern u32 fast_call_entry;

void *map(u32 address, u32 bytes, int protection, int flags, int file);
int fork(void);
/* Ends a child; the parent's `wait_for` returns what it was given. */
void leave(int status) __attribute__((noreturn));
int wait_for(int child);

/* A handler in the kernel's form. flags: SA_SIGINFO and the like. */
void handle(int number, void *handler, u32 flags);

/* What the first signal of an attempt brought. */
struct caught {
    int number, code;
    u32 address;
    struct sigcontext_32 at;
};
extern struct caught caught;

/* Called in the handler once `caught` is there, before the attempt is ended; may change the context and return 1 to go on with it. */
extern int (*meddle)(struct sigcontext_32 *at);

/* Runs code with known registers on a stack of its own until it raises a signal or comes to `attempt_passed`. */
void attempt(const void *code);
extern u8 attempt_passed[];
/* Handlers for every signal that an attempt may raise. */
void catch_all(void);

/* A piece of code of a table in assembly, and what it is called. */
struct snippet {
    const void *code;
    const char *what;
};

/* SIGALRM again and again, counted. */
void start_alarms(u32 microseconds), stop_alarms(void);
extern volatile u32 alarms;

/* One line: the signal, its context, and each register that is not as it was. */
void print_caught(const char *what, u32 code);

/* What a program begins with, in a new one. */
void fresh(void);

/* The parts of the program. */
void faults(void), signals(void), segments(void), code(void);
void calls(void), floating_point(void), tracing(void);
