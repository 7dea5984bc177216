/* spaces.h: address spaces that come and go: the kernel's half shared by all, and a window of pages of their own. */
#pragma once
#include "paging.h"

#define WINDOW 0x40000000u
#define WINDOW_PAGES 512u

/* The kernel's own space, not loaded yet. Where the CPU has NX, and the command line has no "noexec=off", its tables are PAE's, only code may be
 * executed, and *data becomes the flag that pages of data have; else 0. */
struct address_space space_of_kernel(u64 *data);
/* A space with an empty window. `kernel` was made by space_of_kernel or address_space_new. */
struct address_space space_new(const struct address_space *kernel);
/* A space whose window shows the first `pages` pages of the parent's; read-only from now on in both, so that who writes first gets a copy. */
struct address_space space_fork(const struct address_space *parent, u32 pages);
/* Give back the tables of a space that is not in use; what its window shows is its owner's. */
void space_free(const struct address_space *space);
/* Write `count` entries that follow one another in one table, from `first` on: all at once where writing has to be asked for.
 * The caller does INVLPG or loads CR3. */
void entries_write(const struct address_space *space, volatile void *first, const u64 *values, u32 count);
