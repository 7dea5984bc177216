/* faults.c: every exception that a user's instruction can raise, as the signal that the kernel makes of it. */
#include "linux.h"

extern const struct snippet fault_snippets[], fault_snippets_end[];

static void prepare(void)
{
    *(volatile u32 *)DATA = 1;
    (void)*(volatile u32 *)CONSTANT;
    memset((void *)(DATA + PAGE_SIZE - 16), 0x5a, 16);
    memcpy((void *)(BORDER + PAGE_SIZE - 3), "\xb8\x01\x02", 3); /* mov $..., %eax without its end */
}

void faults(void)
{
    for (const struct snippet *snippet = fault_snippets; snippet < fault_snippets_end; snippet++) {
        prepare();
        attempt(snippet->code);
        print_caught(snippet->what, (u32)snippet->code);
    }
}
