/* memory.c: string instructions under their C names, and the simplest allocator of pages there is. */
#include "memory.h"

extern u8 kernel_end_address[]; /* link.ld */

void *memcpy(void *to, const void *from, u32 bytes)
{
    void *start = to;
    asm volatile("cld; rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory", "cc");
    return start;
}

void *memset(void *to, int value, u32 bytes)
{
    void *start = to;
    asm volatile("cld; rep stosb" : "+D"(to), "+c"(bytes) : "a"(value) : "memory", "cc");
    return start;
}

int memcmp(const void *a, const void *b, u32 bytes)
{
    const u8 *x = a, *y = b;
    for (; bytes; bytes--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

#ifndef PARAVIRT /* there the domain builder has put things behind the kernel: pv/start.c */
void *page_alloc(void)
{
    static u8 *next = kernel_end_address;
    void *page = next;
    next += PAGE_SIZE;
    return memset(page, 0, PAGE_SIZE);
}
#endif
