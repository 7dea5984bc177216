/* nano.h: what the rows share. */
#pragma once
#include "../lib/spaces.h"

extern struct address_space kernel_space;
/* User code: a system call, `n` more, and a last one. n lies at the top of its stack. */
void user_calls(void);
enum { CALL_FIRST = 1, CALL_NOTHING = 2, CALL_LAST = 3 };

int nano_ptemod_cold(u32 n);
int nano_ptemod_hot(u32 n);
int nano_ptemod_batch(u32 n);
int nano_invlpg(u32 n);
int nano_cr3wr(u32 n);
int nano_ctxswitch(u32 n);
/* Makes what the rows above need; the space that is in use from now on. */
const struct address_space *nano_memory_setup(void);
