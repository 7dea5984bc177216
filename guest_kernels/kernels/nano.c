/* nano.c: nanobenchmarks: what each privileged thing costs that a kernel does often, one row for each.
 *
 * After K. Adams and O. Agesen, "A Comparison of Software and Hardware Techniques for x86 Virtualization" (ASPLOS 2006), section 6.2
 * "Nanobenchmarks", with rows of our own. lib/rows.h says how the command line chooses.
 */
#include "nano.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/memory.h"
#include "../lib/pages.h"
#include "../lib/rows.h"
#include "../lib/trap.h"

enum { TIMER_HERTZ = 1000, FAULTING_BYTES = 2, POST_CODE = 0x80, LAST_CODE = 0x5a };
#define NOBODYS 0x60000000u
#define USER_STACK (WINDOW + PAGE_SIZE * (WINDOW_PAGES - 1))

struct address_space kernel_space;
static u32 *user_stack;
/* What traps write, in a page of its own: a page that a descriptor table shares with data is written under the eyes of a VMM. */
static union {
    struct {
        u32 calls, faults, ticks;
    };
    u8 page[PAGE_SIZE];
} volatile seen __attribute__((aligned(4096)));
__attribute__((noreturn)) void user_leave(u32 value); /* trap_entry.S */

/* --- traps --- */

static struct trap_frame *system_call(struct trap_frame *frame)
{
    seen.calls++;
    if (frame->eax == CALL_FIRST)
        rows_begin();
    if (frame->eax == CALL_LAST) {
        rows_end();
        user_leave(0);
    }
    return frame;
}

/* Goes on behind the faulting instruction. */
static struct trap_frame *skip(struct trap_frame *frame)
{
    seen.faults++;
    frame->eip += FAULTING_BYTES;
    return frame;
}

static struct trap_frame *tick(struct trap_frame *frame)
{
    seen.ticks++;
    pic_end(IRQ_TIMER);
    return frame;
}

/* --- rows --- */

static int null(u32 n)
{
    rows_begin();
    for (u32 i = 0; i < n; i++)
        asm volatile("");
    rows_end();
    return 1;
}

static int syscall(u32 n)
{
    seen.calls = 0;
    user_stack[PAGE_SIZE / 4 - 4] = n;
    user_run((u32)user_calls, USER_STACK + PAGE_SIZE - 16);
    return seen.calls == n + 1;
}

static int in(u32 n)
{
    u8 value = 0;
    ports_open(1);
    asm volatile("outb %0, %1" : : "a"((u8)LAST_CODE), "Nd"((u16)POST_CODE));
    rows_begin();
    for (u32 i = 0; i < n; i++)
        value = inb(POST_CODE);
    rows_end();
    ports_open(0);
    return value == LAST_CODE || value == 0xff; /* not all machines remember it */
}

static int out(u32 n)
{
    ports_open(1);
    rows_begin();
    for (u32 i = 0; i < n; i++)
        asm volatile("outb %0, %1" : : "a"((u8)LAST_CODE), "Nd"((u16)POST_CODE));
    rows_end();
    ports_open(0);
    return 1;
}

static int cli_sti(u32 n)
{
    rows_begin();
    for (u32 i = 0; i < n; i++) {
        sti();
        cli();
    }
    rows_end();
    return !(read_eflags() & EFLAGS_IF);
}

static int pushf_popf(u32 n)
{
    rows_begin();
    for (u32 i = 0; i < n; i++)
        write_eflags(read_eflags());
    rows_end();
    return !(read_eflags() & EFLAGS_IF);
}

static __attribute__((noinline)) void nothing(void) { asm volatile(""); }

static int callret(u32 n)
{
    rows_begin();
    for (u32 i = 0; i < n; i++)
        nothing();
    rows_end();
    return 1;
}

void nano_iret(void); /* a return from a trap that never was, to its caller */
#define WORD_OF(macro) TEXT_OF(macro)
#define TEXT_OF(...) #__VA_ARGS__
asm(".globl nano_iret\n"
    ".type nano_iret, @function\n"
    "nano_iret:\n"
    "   popl %eax\n"
    "   pushl $2\n" /* EFLAGS: the bit that is always 1 */
    "   pushl %cs\n"
    "   pushl %eax\n"
    "   " WORD_OF(RETURN_FROM_TRAP) "\n"
    ".size nano_iret, . - nano_iret\n");

static int iret(u32 n)
{
    rows_begin();
    for (u32 i = 0; i < n; i++)
        asm volatile("call nano_iret" : : : "eax", "memory", "cc");
    rows_end();
    return !(read_eflags() & EFLAGS_IF);
}

static int cr0rd(u32 n)
{
    u32 all = CR0_PG;
    rows_begin();
    for (u32 i = 0; i < n; i++)
        all &= read_cr0();
    rows_end();
    return all == CR0_PG;
}

static int cpuid_row(u32 n)
{
    u32 most = 0;
    rows_begin();
    for (u32 i = 0; i < n; i++)
        most |= cpuid(0).eax;
    rows_end();
    return most > 0;
}

static int pgfault(u32 n)
{
    seen.faults = 0;
    rows_begin();
    for (u32 i = 0; i < n; i++)
        asm volatile(".byte 0x8a, 0x03" : : "b"(NOBODYS) : "eax", "memory"); /* movb (%ebx), %al */
    rows_end();
    return seen.faults == n;
}

static int divzero(u32 n)
{
    seen.faults = 0;
    rows_begin();
    for (u32 i = 0; i < n; i++)
        asm volatile(".byte 0xf7, 0xf1" : : "c"(0) : "eax", "edx", "cc"); /* divl %ecx */
    rows_end();
    return seen.faults == n;
}

static int hlt_wake(u32 n)
{
    static int running; /* the timer disturbs other rows, so it starts here; a paravirtual kernel can bind it only once */
    if (!running)
        pit_setup(TIMER_HERTZ);
    running = 1;
    pic_unmask(IRQ_TIMER);
    u32 before = seen.ticks;
    rows_begin();
    for (u32 i = 0; i < n; i++) {
        sti_hlt();
        cli();
    }
    rows_end();
    pic_mask(IRQ_TIMER);
    return seen.ticks - before >= n;
}

static const struct row rows[] = {
    {"null", 10000, null},
    {"syscall", 200, syscall},
    {"in", 1000, in},
    {"out", 1000, out},
    {"cli_sti", 10000, cli_sti},
    {"pushf_popf", 10000, pushf_popf},
    {"callret", 10000, callret},
    {"iret", 500, iret},
    {"cr3wr", 200, nano_cr3wr},
    {"cr0rd", 10000, cr0rd},
    {"cpuid", 500, cpuid_row},
    {"pgfault", 200, pgfault},
    {"divzero", 200, divzero},
    {"ptemod_cold", 200, nano_ptemod_cold},
    {"ptemod_hot", 2000, nano_ptemod_hot},
    {"ptemod_batch", 50, nano_ptemod_batch},
    {"invlpg", 200, nano_invlpg},
    {"ctxswitch", 200, nano_ctxswitch},
    {"hlt_wake", 10, hlt_wake},
};

void main(void)
{
    descriptors_setup();
    pic_setup();
    gate_set(SYSTEM_CALL, SEGMENT_PRESENT | SEGMENT_DPL(3) | GATE_INTERRUPT);
    trap_set(SYSTEM_CALL, system_call);
    trap_set(PAGE_FAULT, skip);
    trap_set(DIVIDE_ERROR, skip);
    trap_set(IRQ_VECTOR(IRQ_TIMER), tick);
    kernel_space = address_space_new(0);
    address_space_load(&kernel_space);
    user_stack = page_take();
    page_map(nano_memory_setup(), USER_STACK, (u32)user_stack, PAGE_WRITE | PAGE_USER);
    rows_run(rows, sizeof rows / sizeof *rows);
}
