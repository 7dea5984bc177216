/* multiboot.h: what the boot loader tells the kernel. */
#pragma once
#include "types.h"

/* The first C function, called by boot.S: starts the console, remembers the information, runs main() and ends the run. */
__attribute__((noreturn)) void kernel_start(u32 magic, const void *information);
/* The kernel itself, written by each kernel. */
void main(void);

/* Whether the command line holds `word` as a whole word. */
int argument(const char *word);
/* Copy the text after "name=" into `to` (at most `size` bytes with the final zero); 0 when the name is not there. */
int argument_value(const char *name, char *to, u32 size);
