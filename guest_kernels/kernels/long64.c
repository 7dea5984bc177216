/* long64.c: a 64-bit kernel with a user mode: exceptions, four-level page tables, system calls by INT and SYSCALL, and the timer. */
#include "../lib/console.h"
#include "../lib/cpu.h"
#include "../lib/interrupts.h"
#include "../lib/multiboot.h"
#include "../lib/report.h"
#include "../long/cpu.h"
#include "../long/paging.h"
#include "../long/selectors.h"
#include "../long/trap.h"
#include "long64.h"

enum { TIMER_HERTZ = 200 };

extern u8 user_start[], user_end[];
#define PROGRAM(name) extern u8 user_##name[]
PROGRAM(calls); PROGRAM(spins); PROGRAM(hlt); PROGRAM(write_kernel); PROGRAM(read_high); PROGRAM(not_canonical); PROGRAM(gate);
PROGRAM(execute_data); PROGRAM(undefined); PROGRAM(swapgs); PROGRAM(read_cr8); PROGRAM(narrow);

/* --- exceptions, each provoked by one instruction, behind which the handler goes on --- */

static struct trap_frame caught;
static u64 caught_cr2, caught_on_stack; /* where the frame was */
u64 resume_at, resume_rsp;              /* for the kernel's own; users say in RBX where to go on */

static void catch(struct trap_frame *frame)
{
    caught = *frame;
    caught_cr2 = read_long_cr2();
    caught_on_stack = (u64)frame;
    if (frame->cs & 3) {
        frame->rip = frame->rbx;
        return;
    }
    frame->rip = resume_at;
    frame->rsp = resume_rsp;
}

#define PROVOKE(instruction, ...)                                                                                         \
    ({                                                                                                                    \
        caught.vector = ~0ull;                                                                                            \
        asm volatile("movq $1f, resume_at; movq %%rsp, resume_rsp; " instruction "\n1:"                                   \
                     : : __VA_ARGS__ : "rax", "rcx", "rdx", "memory", "cc");                                              \
    })

static int was(u64 vector, u64 error) { return caught.vector == vector && caught.error == error; }

static void exceptions(void)
{
    for (u8 vector = 0; vector < 32; vector++)
        trap_set(vector, catch);
    PROVOKE("xorl %%edx, %%edx; xorl %%eax, %%eax; divl %%eax", "r"(0));
    report(was(0, 0), "#DE: division by zero");
    PROVOKE("ud2", "r"(0));
    report(was(6, 0), "#UD: ud2");
    report(caught.cs == KERNEL_CODE && caught.ss == KERNEL_DATA, "the frame has CS and SS, from the kernel too");
    report(((caught_on_stack + sizeof caught) & 15) == 0, "the stack was aligned first");
    PROVOKE("int3", "r"(0));
    report(was(3, 0), "#BP: int3");
    PROVOKE("movq (%0), %%rax", "r"(0x0000800000000000ull));
    report(was(13, 0), "#GP: an address that is not canonical");
    PROVOKE("movl $0x48, %%eax; movl %%eax, %%ds", "r"(0));
    report(was(13, 0x48), "#GP: a selector beyond the GDT");
    PROVOKE("movq (%0), %%rax", "r"(0xffff900000000010ull));
    report(was(14, 0) && caught_cr2 == 0xffff900000000010ull, "#PF: a read of an absent page in the upper half");
    PROVOKE("movq %%rax, (%0)", "r"(0xffff900000000020ull));
    report(was(14, 2) && caught_cr2 == 0xffff900000000020ull, "#PF: a write there");
    trap_stack(6, 1);
    PROVOKE("ud2", "r"(0));
    report(was(6, 0) && caught_on_stack + sizeof caught == interrupt_stack_top(), "a gate with a stack of its own");
    trap_stack(6, 0);
}

/* --- registers --- */

static void registers(void)
{
    report((read_msr(MSR_EFER) & (EFER_LMA | EFER_LME)) == (EFER_LMA | EFER_LME), "EFER says that long mode is active");
    u64 product, upper;
    asm("mulq %3" : "=a"(product), "=d"(upper) : "a"(0x123456789abcdef1ull), "r"(0xfedcba9876543210ull));
    report(product == 0x224a4396cc6d0110ull && upper == 0x121fa00ad77d7423ull, "64-bit multiplication");
    static u64 words[3] = {0x1111, 0x2222, 0x3333};
    write_msr(MSR_FS_BASE, (u64)&words[0]);
    write_msr(MSR_GS_BASE, (u64)&words[1]);
    u64 held = read_msr(MSR_KERNEL_GS_BASE);
    write_msr(MSR_KERNEL_GS_BASE, (u64)&words[2]);
    report(read_fs_word() == 0x1111 && read_gs_word() == 0x2222, "FS and GS have the bases of their MSRs");
    swapgs();
    report(read_gs_word() == 0x3333 && read_msr(MSR_KERNEL_GS_BASE) == (u64)&words[1], "SWAPGS exchanges the bases");
    swapgs();
    write_msr(MSR_KERNEL_GS_BASE, held);
    write_long_cr8(5);
    report(read_long_cr8() == 5, "CR8 is the task priority");
    write_long_cr8(0);
}

/* --- page tables --- */

static u8 page_a[4096] __attribute__((aligned(4096))), page_b[4096] __attribute__((aligned(4096)));

static void pages(void)
{
    volatile u32 *high = (volatile u32 *)0xffff900000000000ull;
    *(u32 *)page_a = 0xaaaa;
    *(u32 *)page_b = 0xbbbb;
    volatile u64 *entry = page_map((u64)high, (u64)page_a, PAGE_WRITABLE);
    report(*high == 0xaaaa, "a page in the upper half");
    report((*entry & (PAGE_ACCESSED | PAGE_DIRTY)) == PAGE_ACCESSED, "a read sets A and not D");
    *high = 0xcccc;
    report((*entry & PAGE_DIRTY) && *(volatile u32 *)page_a == 0xcccc, "a write sets D");
    *entry = (u64)page_b | PAGE_PRESENT;
    invalidate((void *)high);
    report(*high == 0xbbbb, "INVLPG shows a remapped page");
    PROVOKE("movl %%eax, (%0)", "r"(high));
    report(was(14, 3), "#PF: a write to a read-only page");
    *entry = (u64)page_b | PAGE_PRESENT | PAGE_WRITABLE | PAGE_NX;
    invalidate((void *)high);
    *(volatile u8 *)high = 0xc3;
    PROVOKE("call *%0", "r"(high));
    report(was(14, 0x11) && caught.rip == (u64)high, "#PF: a fetch from a page without the right to execute");
    *entry = (u64)page_b | PAGE_PRESENT | PAGE_WRITABLE;
    invalidate((void *)high);
    PROVOKE("call *%0", "r"(high));
    report(caught.vector == ~0ull, "code runs there once it may");
    *entry = (u64)page_b | PAGE_PRESENT | 1ull << 51;
    invalidate((void *)high);
    PROVOKE("movl (%0), %%eax", "r"(high));
    report(caught.vector == 14 && (caught.error & 8), "#PF: a reserved bit");
    page_map(0xffffa00000000000ull, 0, PAGE_WRITABLE | PAGE_LARGE);
    report(*(volatile u32 *)(0xffffa00000000000ull + (u64)page_a) == 0xcccc, "a page of 2 MiB");
}

/* --- user mode --- */

static volatile u64 ticks, user_ticks;

static u64 call(u64 number, u64 argument)
{
    switch (number) {
    case CALL_DOUBLE: return 2 * argument;
    case CALL_TICKS: return user_ticks;
    case CALL_LEAVE: user_leave(argument);
    }
    return ~0ull;
}

static void call_by_gate(struct trap_frame *frame) { frame->rax = call(frame->rax, frame->rdi); }

/* SYSCALL has exchanged GS's base, which leaving by it does not undo. */
static u64 run_user(const u8 *program)
{
    u64 result = user_enter(USER_BASE + (u64)(program - user_start), USER_STACK_TOP);
    swapgs();
    return result;
}

static void user_may_not(const u8 *program, u64 vector, u64 error, u64 cr2, const char *what)
{
    caught.vector = ~0ull;
    run_user(program);
    report(was(vector, error) && caught.cs == USER_CODE && caught.ss == USER_DATA && (vector != 14 || caught_cr2 == cr2), "user: %s", what);
}

static void users(void)
{
    static u8 stack[4096] __attribute__((aligned(4096)));
    for (u64 at = 0; user_start + at < user_end; at += 4096)
        page_map(USER_BASE + at, (u64)user_start + at, PAGE_USER);
    page_map(USER_DATA_PAGE, (u64)stack, PAGE_USER | PAGE_WRITABLE | PAGE_NX);
    system_call = call;
    trap_set(CALL_VECTOR, call_by_gate);
    report(run_user(user_calls) == 0, "user: system calls by INT and by SYSCALL");
    user_may_not(user_hlt, 13, 0, 0, "hlt");
    user_may_not(user_swapgs, 13, 0, 0, "swapgs");
    user_may_not(user_read_cr8, 13, 0, 0, "mov from cr8");
    run_user(user_gate);
    report(caught.vector == 13 && (caught.error & 7) == 2, "user: int 20h, a gate of the kernel's"); /* QEMU 7.2 says 40h */
    user_may_not(user_undefined, 6, 0, 0, "ud2");
    user_may_not(user_not_canonical, 13, 0, 0, "an address that is not canonical");
    user_may_not(user_write_kernel, 14, 7, 0x100000, "a write to the kernel's memory");
    user_may_not(user_read_high, 14, 4, 0xffffffff80000000ull, "a read of the upper half");
    user_may_not(user_execute_data, 14, 0x15, USER_DATA_PAGE, "a jump into its stack");
    report(run_user(user_narrow) == (0xffffffffull ^ 0x1111111122222222ull), "user: 32-bit code, and a system call from it");
}

/* --- the timer --- */

static void tick(struct trap_frame *frame)
{
    ticks++;
    user_ticks += frame->cs == USER_CODE;
    pic_end(IRQ_TIMER);
}

static void timer(void)
{
    pit_setup(TIMER_HERTZ);
    trap_set(IRQ_VECTOR(IRQ_TIMER), tick);
    pic_unmask(IRQ_TIMER);
    while (ticks < 3)
        sti_hlt();
    cli();
    report(1, "the timer wakes the kernel from HLT");
    report(run_user(user_spins) == 1, "user: interrupted three times, with its registers kept");
    pic_mask(IRQ_TIMER);
}

void main(void)
{
    traps_setup();
    pic_setup(); /* firmware leaves the timer on vector 8 */
    registers();
    exceptions();
    pages();
    users();
    timer();
}
