/* smc.h: the patches that are tried in kernel mode and in user mode alike. */
#pragma once
#include "../lib/types.h"

#define CODE_PAGES 2u

/* One way of modifying code. `code` is CODE_PAGES pages that may be written and run, `alias` the same memory at another address (or the
 * same one while paging is off). What `run` returns must be `expected`. */
struct patch {
    const char *what;
    u32 (*run)(u8 *code, u8 *alias);
    u32 expected;
};
extern const struct patch patches[];
extern const u32 patch_count;

/* Where user mode starts: takes a patch's function, `code` and `alias` from its stack, calls it, and hands the result to INT 80h. */
void user_call(void);
