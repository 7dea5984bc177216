/* report.c: counts passes and failures, and ends the run through the debug-exit port. */
#include "report.h"
#include "console.h"
#include "cpu.h"

enum { DEBUG_EXIT = 0xf4, MOST_FAILURES = 127 }; /* QEMU makes its exit status (value << 1) | 1, which has 8 bits */

static u32 passed, failed;

void report(int pass, const char *what, ...)
{
    if (pass)
        passed++;
    else
        failed++;
    printf(pass ? "PASS: " : "FAIL: ");
    __builtin_va_list arguments;
    __builtin_va_start(arguments, what);
    vprintf(what, arguments);
    __builtin_va_end(arguments);
    printf("\n");
}

void finish(void)
{
    if (passed + failed)
        printf("%u passed, %u failed\n", passed, failed);
    debug_exit(failed < MOST_FAILURES ? (u8)failed : MOST_FAILURES);
}

void debug_exit(u8 status)
{
    outb(DEBUG_EXIT, status);
    for (;;) /* a machine without that port: stop for good */
        asm volatile("cli; hlt");
}
