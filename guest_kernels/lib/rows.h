/* rows.h: a kernel that measures: a list of rows, of which the command line chooses some, each a piece of work done so many times.
 *
 *   rows=syscall,cr3wr   only these; left out: all
 *   n=1000               so many times, for every row; left out: what each row has
 *   ticks                print how many ticks of the time-stamp counter one took
 *   marks                say on the debug console, port E9h, where what is measured begins and ends: byte MEASURE_BEGIN twice, so
 *                        that what saying it costs is known too, and MEASURE_END
 *
 * Each row is done once to warm up and then to be measured. Who counts from outside needs the marks; QEMU has that port too (-debugcon).
 */
#pragma once
#include "types.h"

enum { DEBUG_CONSOLE = 0xe9, MEASURE_BEGIN = 2, MEASURE_END = 3 };

struct row {
    const char *name;
    u32 count;
    /* Does the work n times between rows_begin() and rows_end(); whether it came out right. */
    int (*run)(u32 n);
};

void rows_begin(void);
void rows_end(void);
/* Runs the rows that the command line chooses and reports each; an unknown name is a failure. */
void rows_run(const struct row *rows, u32 count);
