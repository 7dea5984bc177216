/* scribble_user.c: two programs that check what they have, one that does damage, and one for when nobody has anything to do. What the kernel tells a
 * thread lies in its page: `rounds` is how many ticks there are between two rounds of damage, 0 for none. */
#include "scribble.h"

static inline u32 call(enum system_call number, u32 value)
{
    u32 result;
    asm volatile("int $0x80" : "=a"(result) : "a"(number), "b"(value) : "memory");
    return result;
}

static inline u32 next_random(u32 random) { return random * 1664525 + 1013904223; }

void idle_program(void)
{
    for (;;)
        call(CALL_WAIT, 0);
}

/* Keeps 32 KiB of numbers, and looks whether they are still there. */
void pattern_program(void)
{
    u32 *words = (u32 *)PATTERN_AT;
    for (u32 i = 0, random = 1; i < PATTERN_BYTES / 4; i++)
        words[i] = random = next_random(random);
    for (;;) {
        u32 wrong = 0;
        for (u32 i = 0, random = 1; i < PATTERN_BYTES / 4; i++) {
            random = next_random(random);
            wrong += words[i] != random;
        }
        call(CALL_CHECKED, wrong);
        call(CALL_SLEEP, PRIVATE(PATTERN)->rounds);
    }
}

/* Computes something whose result is known. */
void sums_program(void)
{
    for (;;) {
        u32 sum = 0;
        for (u32 n = 1; n <= 1000; n++)
            sum += n * n;
        call(CALL_CHECKED, sum != 333833500);
        call(CALL_SLEEP, PRIVATE(SUMS)->rounds);
    }
}

void scribbler_program(void)
{
    for (;;) {
        call(CALL_SLEEP, PRIVATE(SCRIBBLER)->rounds);
        call(CALL_SCRIBBLE, 0);
    }
}
