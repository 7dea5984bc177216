/* work_user.c: the programs that run in user mode. They share this code; what they write lies in their own pages and on their stack. */
#include "work.h"
#include "../lib/memory.h"

enum { WRITTEN_PAGES = 4, NUMBERS = 200 };
#define MINE(page) ((volatile u32 *)(WINDOW + (page)*PAGE_SIZE))

static u32 call(enum system_call number, u32 value)
{
    u32 result;
    asm volatile("int $0x80" : "=a"(result) : "a"(number), "b"(value) : "memory");
    return result;
}

static void done(int right)
{
    call(CALL_END, (u32)right);
    for (;;)
        ;
}

/* A child that writes to some of the pages that it has from its parent, and exits. */
void forkwait_program(void)
{
    u32 n = call(CALL_COUNT, 0), right = 0;
    *MINE(0) = 7;
    call(CALL_BEGIN, 0);
    for (u32 i = 0; i < n; i++) {
        if (call(CALL_FORK, 0) == 0) {
            u32 found = *MINE(0);
            for (u32 page = 0; page < WRITTEN_PAGES; page++)
                *MINE(page) = i;
            call(CALL_EXIT, found + i);
        }
        right += call(CALL_WAIT, 0) == 7 + i && *MINE(0) == 7;
    }
    done(right == n);
}

/* A word to the other process, and its answer. */
void pipe_program(void)
{
    u32 n = call(CALL_COUNT, 0), right = 0;
    if (call(CALL_FORK, 0) == 0)
        for (;;)
            call(CALL_WRITE, call(CALL_READ, 0) + 1);
    call(CALL_BEGIN, 0);
    for (u32 i = 0; i < n; i++) {
        call(CALL_WRITE, i);
        right += call(CALL_READ, 0) == i + 1;
    }
    done(right == n);
}

/* How many primes there are below NUMBERS. */
static u32 primes(void)
{
    u32 found = 0;
    for (u32 number = 2; number < NUMBERS; number++) {
        u32 d = 2;
        while (d * d <= number && number % d)
            d++;
        found += d * d > number;
    }
    return found;
}

/* A child that computes, writes, tells its parent by the pipe and exits; system calls in between. */
void mix_program(void)
{
    u32 n = call(CALL_COUNT, 0), right = 0;
    call(CALL_BEGIN, 0);
    for (u32 i = 0; i < n; i++) {
        if (call(CALL_FORK, 0) == 0) {
            for (u32 word = 0; word < PAGE_SIZE / 4; word++)
                MINE(1)[word] = word ^ i;
            call(CALL_WRITE, primes() + (MINE(1)[100] ^ i));
            call(CALL_EXIT, i);
        }
        for (u32 calls = 0; calls < 8; calls++)
            call(CALL_NOTHING, 0);
        u32 answer = call(CALL_READ, 0);
        right += call(CALL_WAIT, 0) == i && answer == 46 + 100 && primes() == 46;
    }
    done(right == n);
}
