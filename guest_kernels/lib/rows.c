/* rows.c: chooses rows, warms up, measures, reports. */
#include "rows.h"
#include "console.h"
#include "cpu.h"
#include "memory.h"
#include "multiboot.h"
#include "report.h"

enum { WARM_UP = 256 };

static int measuring, marked;
static u64 began, ended;

static u64 time_stamp(void)
{
    u64 ticks;
    asm volatile("rdtsc" : "=A"(ticks));
    return ticks;
}

/* The byte goes out while warming up too, a zero then, so that the way here is warm as well. */
static __attribute__((noinline)) void mark(u8 byte)
{
    if (marked)
        outb(DEBUG_CONSOLE, measuring ? byte : 0);
}

void rows_begin(void)
{
    began = time_stamp();
    mark(MEASURE_BEGIN); /* what lies between the two is what a mark costs */
    mark(MEASURE_BEGIN);
}

void rows_end(void)
{
    mark(MEASURE_END);
    ended = time_stamp();
}

static u32 number_of(const char *text)
{
    u32 number = 0;
    for (; *text >= '0' && *text <= '9'; text++)
        number = number * 10 + (u32)(*text - '0');
    return number;
}

static u32 length_of_name(const char *list)
{
    u32 length = 0;
    while (list[length] && list[length] != ',')
        length++;
    return length;
}

/* Whether a list of names separated by commas holds this one. */
static int listed(const char *list, const char *name)
{
    for (;;) {
        u32 length = length_of_name(list);
        if (!memcmp(list, name, length) && !name[length])
            return 1;
        if (!list[length])
            return 0;
        list += length + 1;
    }
}

static u32 ticks_each(u32 n)
{
    u64 ticks = ended - began;
    u32 low = (u32)ticks, high = (u32)(ticks >> 32), rest;
    if (high >= n)
        return 0xffffffff;
    asm("divl %2" : "=a"(low), "=d"(rest) : "r"(n), "0"(low), "1"(high) : "cc");
    return low;
}

static void run(const struct row *row, u32 n)
{
    measuring = 0;
    int right = row->run(n < WARM_UP ? n : WARM_UP);
    measuring = 1;
    right &= row->run(n);
    report(right, "%s: %u", row->name, n);
    if (argument("ticks"))
        printf("%s: %u ticks each\n", row->name, ticks_each(n));
}

static int known(const struct row *rows, u32 count, const char *names)
{
    char name[16];
    for (u32 length; *names; names += length + !!names[length]) {
        length = length_of_name(names);
        u32 kept = length < sizeof name ? length : sizeof name - 1;
        memcpy(name, names, kept);
        name[kept] = 0;
        u32 i = 0;
        while (i < count && !listed(name, rows[i].name))
            i++;
        if (i == count) {
            report(0, "there is no row %s", name);
            return 0;
        }
    }
    return 1;
}

void rows_run(const struct row *rows, u32 count)
{
    static char chosen[200];
    char digits[12];
    marked = argument("marks");
    int some = argument_value("rows", chosen, sizeof chosen);
    u32 n = argument_value("n", digits, sizeof digits) ? number_of(digits) : 0;
    if (some && !known(rows, count, chosen))
        return;
    for (u32 i = 0; i < count; i++)
        if (!some || listed(chosen, rows[i].name))
            run(&rows[i], n ? n : rows[i].count);
}
