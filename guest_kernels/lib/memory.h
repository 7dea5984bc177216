/* memory.h: bytes moved and compared, and physical pages handed out. */
#pragma once
#include "types.h"

#define PAGE_SIZE 4096u

void *memcpy(void *to, const void *from, u32 bytes);
void *memset(void *to, int value, u32 bytes);
int memcmp(const void *a, const void *b, u32 bytes);

/* One zeroed physical page, from the end of the kernel upward; never given back. Its address is also where the kernel sees it. */
void *page_alloc(void);
