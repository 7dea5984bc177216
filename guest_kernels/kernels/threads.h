/* threads.h: threads in address spaces, switched by the timer and by whoever has to wait. ukernel and mono have this in common. */
#pragma once
#include "../lib/paging.h"
#include "../lib/trap.h"
#include "services.h"

struct thread {
    const char *name;
    void (*program)(void);
    u32 in_space_of;  /* the index of the thread whose address space it lives in; its own for one that has one to itself */
    u32 extra_flags;  /* of EFLAGS */

    enum { NOT_STARTED, READY, SENDING, AWAITING_REPLY, RECEIVING, WATCHING, SLEEPING, ENDED } state;
    struct trap_frame *frame;
    struct address_space space;
    u32 kernel_stack_top;
    struct private_page *page; /* as the kernel sees it */
    u32 partner, started, wake; /* wake: the tick until which it sleeps */
};

extern struct thread *current;
extern volatile u32 ticks; /* of 10 ms */

/* Make the address spaces, pages and stacks of `count` threads and begin to switch between those that are started. */
void threads_setup(struct thread *threads, u32 count);
/* Let a thread begin at its program's start, with an empty page. */
void thread_start(struct thread *thread);
/* The trap frame to resume when the current thread, interrupted with `frame`, cannot or need not go on: the next ready thread's. */
struct trap_frame *switch_away(struct trap_frame *frame);
/* Go on with the first ready thread. Never returns. */
__attribute__((noreturn)) void threads_run(void);
