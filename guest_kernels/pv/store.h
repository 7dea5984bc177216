/* store.h: the tree of names and values by which a domain finds its devices. */
#pragma once
#include "../lib/types.h"

/* The value of a path, as text of at most `size` bytes with the final zero; 0 when there is none. */
int store_read(const char *path, char *value, u32 size);
void store_write(const char *path, const char *value);
/* "a", "b" and "c" one behind the other, in a place that the next call reuses. */
const char *joined(const char *a, const char *b, const char *c);
/* Text of a number, in a place that the next call reuses; and the number of a text. */
const char *decimal(u32 number);
u32 number_of(const char *text);
