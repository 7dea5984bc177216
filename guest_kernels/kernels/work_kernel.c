/* work_kernel.c: rows that need nothing but the CPU and memory; each time is some ten thousand instructions. */
#include "work.h"
#include "../lib/rows.h"

enum { CHECKED = 512, STREAMED = 4096, SORTED = 512 };

static u32 from[STREAMED], other[STREAMED], to[STREAMED];

/* Simple and always the same: Numerical Recipes' "quick and dirty" generator. */
static u32 random_next(u32 *state) { return *state = *state * 1664525 + 1013904223; }

u32 work_checksum(const u8 *bytes, u32 count)
{
    u32 crc = 0xffffffff;
    while (count--) {
        crc ^= *bytes++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc;
}

int work_compute(u32 n)
{
    static u8 bytes[CHECKED];
    u32 state = 1, right = 0;
    for (u32 i = 0; i < CHECKED; i++)
        bytes[i] = (u8)(random_next(&state) >> 24);
    u32 expected = work_checksum(bytes, CHECKED);
    rows_begin();
    for (u32 i = 0; i < n; i++)
        right += work_checksum(bytes, CHECKED) == expected;
    rows_end();
    return right == n;
}

/* One array from two others (the "triad" of J. McCalpin's STREAM). */
int work_stream(u32 n)
{
    for (u32 i = 0; i < STREAMED; i++) {
        from[i] = i;
        other[i] = 2 * i;
        to[i] = 0;
    }
    rows_begin();
    for (u32 i = 0; i < n; i++) {
        for (u32 word = 0; word < STREAMED; word++)
            to[word] = from[word] + 3 * other[word];
        asm volatile("" : : : "memory");
    }
    rows_end();
    u32 right = 0;
    for (u32 i = 0; i < STREAMED; i++)
        right += to[i] == 7 * i;
    return right == STREAMED;
}

static void sort(u32 *low, u32 *high)
{
    while (low < high) {
        u32 pivot = low[(high - low) / 2], *left = low, *right = high, kept;
        while (left <= right) {
            while (*left < pivot)
                left++;
            while (*right > pivot)
                right--;
            if (left <= right) {
                kept = *left;
                *left++ = *right;
                *right-- = kept;
            }
        }
        sort(low, right);
        low = left;
    }
}

int work_sort(u32 n)
{
    u32 right = 0;
    rows_begin();
    for (u32 i = 0; i < n; i++) {
        u32 state = i;
        for (u32 word = 0; word < SORTED; word++)
            to[word] = random_next(&state);
        sort(to, to + SORTED - 1);
        u32 word = 1;
        while (word < SORTED && to[word - 1] <= to[word])
            word++;
        right += word == SORTED;
    }
    rows_end();
    return right == n;
}
