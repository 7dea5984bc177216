/* stale_code.c: an exercise. A function is written into memory, called, changed and called again (docs/EXERCISES.md, `--break no-invalidate`). */
#include "../lib/memory.h"
#include "../lib/report.h"

#define MOV_EAX 0xb8
#define RET 0xc3

void main(void)
{
    u8 *code = page_alloc();
    u32 (*function)(void) = (u32 (*)(void))code;
    code[0] = MOV_EAX;
    code[5] = RET;
    for (u32 answer = 41; answer <= 43; answer++) {
        memcpy(code + 1, &answer, sizeof answer);
        u32 got = function();
        report(got == answer, "the function returns %u, and it was told to return %u", got, answer);
    }
    finish();
}
