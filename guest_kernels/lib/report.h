/* report.h: what a test kernel says about itself, and how it ends. */
#pragma once
#include "types.h"

/* Print "PASS: what" or "FAIL: what" and count it. `what` is a printf format. */
void report(int pass, const char *what, ...) __attribute__((format(printf, 2, 3)));
/* Print the counts, when there were any reports, and end the run: status 0 when all passed. */
__attribute__((noreturn)) void finish(void);
/* End the run with `status` on the debug-exit port. */
__attribute__((noreturn)) void debug_exit(u8 status);
