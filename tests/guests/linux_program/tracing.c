/* tracing.c: a program that another one steps through, stops at breakpoints, looks into and changes. */
#include "linux.h"
#include <asm/ptrace.h>
#include <linux/ptrace.h>

extern const u8 stepped[], stepped_calls[], looped[], looped_at[];

static int child;

static long trace(long request, u32 address, u32 data)
{
    return system_call(__NR_ptrace, request, child, address, data);
}

/* Waits until the child stops; returns the signal, or -1 when it has ended. */
static int stop_of_child(void)
{
    int status = 0;
    system_call(__NR_wait4, child, &status, 0, 0);
    return (status & 0xff) == 0x7f ? status >> 8 & 0xff : -1;
}

static u32 look(u32 address)
{
    u32 word = 0;
    trace(PTRACE_PEEKDATA, address, (u32)&word);
    return word;
}

static struct pt_regs registers(void)
{
    struct pt_regs found;
    trace(PTRACE_GETREGS, 0, (u32)&found);
    return found;
}

/* A child that makes an attempt, stopped before it. */
static void start(const void *code)
{
    child = fork();
    if (child == 0) {
        system_call(__NR_ptrace, PTRACE_TRACEME, 0, 0, 0);
        system_call(__NR_kill, system_call(__NR_getpid), SIGSTOP);
        attempt(code);
        leave(0);
    }
    stop_of_child();
}

static void end(void)
{
    trace(PTRACE_KILL, 0, 0);
    stop_of_child();
}

/* Runs the child to an address by a breakpoint there. */
static void run_to(u32 address)
{
    u32 word = look(address);
    trace(PTRACE_POKETEXT, address, (word & ~0xff) | 0xcc);
    trace(PTRACE_CONT, 0, 0);
    int number = stop_of_child();
    trace(PTRACE_POKETEXT, address, word);
    struct pt_regs at = registers();
    if (number != SIGTRAP || (u32)at.eip != address + 1)
        printf("stopped by %d at %x instead of %x\n", number, (u32)at.eip, address);
    at.eip = (long)address;
    trace(PTRACE_SETREGS, 0, (u32)&at);
}

/* Every stop on the way through a piece of code: where, and which signal if not SIGTRAP. */
static void step_through(const char *what, const u8 *code, u32 most)
{
    start(code);
    run_to((u32)code);
    printf("%s:", what);
    u32 flags = 0;
    for (u32 n = 0; n < most; n++) {
        trace(PTRACE_SINGLESTEP, 0, 0);
        int number = stop_of_child();
        if (number < 0)
            break;
        struct pt_regs at = registers();
        flags |= (u32)at.eflags & 0x100;
        if ((u32)at.eip >= (u32)attempt_passed && (u32)at.eip < (u32)attempt_passed + 2)
            break;
        printf(" %d", (int)((u32)at.eip - (u32)code));
        if (number != SIGTRAP) {
            printf("(%d)", number);
            break;
        }
    }
    struct pt_regs at = registers();
    printf(", edx %x, trap flag %x\n", (int)at.edx == child ? 0 : (u32)at.edx, flags);
    end();
}

/* Each system call stops on the way in and out; one is made another, one's result is changed. */
static void system_calls(void)
{
    start(stepped_calls);
    printf("traced calls:");
    for (u32 n = 0; n < 6; n++) {
        trace(PTRACE_SYSCALL, 0, 0);
        if (stop_of_child() != SIGTRAP)
            break;
        struct pt_regs at = registers();
        printf(" %d/%d", (int)at.orig_eax, (int)at.eax == (int)child ? 1 : (int)at.eax);
        if (n == 2)
            trace(PTRACE_POKEUSR, 4 * ORIG_EAX, 5000);
        if (n == 5)
            trace(PTRACE_POKEUSR, 4 * EAX, 123456);
    }
    run_to((u32)attempt_passed);
    struct pt_regs at = registers();
    printf(", then %d %d %d\n", (int)at.ebx == child, (int)at.ecx, (int)at.edx);
    end();
}

static void breakpoints(void)
{
    u32 hits = 0, sum = 0;
    start(looped);
    for (; hits < 10; hits++) { /* the breakpoint goes so that the instruction can run, and comes back behind it */
        run_to((u32)looped_at);
        sum += (u32)registers().ecx;
        trace(PTRACE_SINGLESTEP, 0, 0);
        stop_of_child();
    }
    run_to((u32)attempt_passed);
    printf("breakpoints: %u hits, sum %u, eax %u\n", hits, sum, (u32)registers().eax);
    end();
}

static void changes(void)
{
    start(looped);
    run_to((u32)looped_at);
    struct pt_regs at = registers();
    printf("refused:");
    static const struct {
        u32 index, value;
    } wrong[] = {{CS, 0}, {CS, KERNEL_CS}, {SS, 0}, {SS, 0x68}, {DS, KERNEL_CS}, {GS, 0x1000}, {EFL, 0xffffffff}};
    for (u32 i = 0; i < sizeof wrong / sizeof *wrong; i++)
        printf(" %d", (int)trace(PTRACE_POKEUSR, 4 * wrong[i].index, wrong[i].value));
    printf(", flags %x\n", (u32)registers().eflags & ~0x10000u);
    at.ecx = 1, at.eax = 1000;
    trace(PTRACE_SETREGS, 0, (u32)&at);

    u32 image[128] __attribute__((aligned(16)));
    printf("floating point: %d", (int)trace(PTRACE_GETFPXREGS, 0, (u32)image));
    image[40] = 0xabcd;
    printf(" %d", (int)trace(PTRACE_SETFPXREGS, 0, (u32)image));
    run_to((u32)attempt_passed);
    at = registers();
    printf(", eax %u edx %x\n", (u32)at.eax, (u32)at.edx);
    end();
}

void tracing(void)
{
    step_through("steps", stepped, 100);
    step_through("steps through calls", stepped_calls, 100);
    system_calls();
    breakpoints();
    changes();
}
