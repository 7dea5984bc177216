/* types.h: the integers of the hardware. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

_Static_assert(sizeof(u32) == 4 && sizeof(u64) == 8 && sizeof(void *) == sizeof(long), "an x86 compiler");

/* Where a loader has put a text: 32 bits in 64-bit code too. */
#ifdef __x86_64__
typedef u32 text_address;
#else
typedef const char *text_address;
#endif
