/* real16.c: goes down to real mode, up to long mode and back to where it started, printing at each step (real16_modes.S), and checks what each saw. */
#include "real16.h"
#include "../lib/console.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/memory.h"
#include "../lib/report.h"

enum { TIMER_HERTZ = 200, PRESENT_WRITABLE = 3, LARGE = 0x80 };
#define EFER_LME (1u << 8)
#define EFER_LMA (1u << 10)

void round_trip(u32 tables);
extern u8 low_start[], low_end[];

/* Four-level page tables: the first 2 MiB where they are, and once more 512 GiB further on. */
static u64 top[512] __attribute__((aligned(4096))), pointers[512] __attribute__((aligned(4096))), directory[512] __attribute__((aligned(4096)));

static int has_long_mode(void)
{
    return cpuid(0x80000000).eax >= 0x80000001 && cpuid(0x80000001).edx >> 29 & 1;
}

void main(void)
{
    if (!has_long_mode()) {
        report(0, "the CPU has no long mode");
        return;
    }
    descriptors_setup();
    pic_setup();
    pit_setup(TIMER_HERTZ);
    pic_unmask(IRQ_TIMER);
    top[0] = top[1] = (u32)pointers | PRESENT_WRITABLE;
    pointers[0] = (u32)directory | PRESENT_WRITABLE;
    directory[0] = PRESENT_WRITABLE | LARGE;
    memcpy((void *)LOW, low_start, (u32)(low_end - low_start));

    round_trip((u32)top);

    pic_mask(IRQ_TIMER);
    const volatile u32 *result = (const volatile u32 *)RESULTS;
    report((result[REAL_CR0] & (CR0_PE | CR0_PG)) == 0, "real mode: CR0.PE is clear");
    report(result[REAL_INTERRUPTS] == 42, "real mode: INT goes through the vector table and returns");
    report(result[REAL_SEGMENTED] == 0xfeedbeef, "real mode: a segment begins at 16 times its number");
    report(result[REAL_WRAPPED] == 0xfffe0001, "real mode: a push at SP 0 wraps to the end of the segment");
    report(result[REAL_DIVIDE] == result[REAL_DIVIDE_AT], "real mode: a division by zero pushes its own CS:IP");
    report(result[REAL_TICKS] >= 3, "real mode: the timer interrupts HLT");
    report((result[LONG_EFER] & (EFER_LME | EFER_LMA)) == (EFER_LME | EFER_LMA), "64-bit mode: EFER.LMA is set");
    report(result[LONG_LOW] == 0x22222211 && result[LONG_HIGH] == 0x22222222, "64-bit mode: 64-bit sums");
    report(result[LONG_FAR] == 0xfeedbeef, "64-bit mode: addresses beyond 4 GiB");
    report(result[NARROW_SUM] == 0x22222211, "compatibility mode: 32-bit sums");
    report((result[AFTER_EFER] & (EFER_LME | EFER_LMA)) == EFER_LME, "paging off: EFER.LMA is clear, LME is not");
    report((result[AGAIN_CR0] & (CR0_PE | CR0_PG)) == 0, "real mode again: CR0.PE is clear");
    report(read_cs() == KERNEL_CODE && (read_cr0() & CR0_PE), "back where it began");
}
