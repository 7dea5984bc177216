/* signals.c: handlers entered and left: frames of both kinds, stacks, masks, and returns to contexts that cannot be. */
#include "linux.h"

volatile u32 alarms;
extern const u8 register_loop[], string_loop[], skipped[];

static volatile u32 depth, deepest, direction;

static void count_alarm(int number)
{
    (void)number;
    alarms++;
}

void start_alarms(u32 microseconds)
{
    u32 timer[4] = {0, microseconds, 0, microseconds}; /* struct itimerval of this ABI */
    alarms = 0;
    handle(SIGALRM, count_alarm, SA_ONSTACK | SA_RESTART);
    system_call(__NR_setitimer, 0, timer, 0);
}

void stop_alarms(void)
{
    start_alarms(0);
}

static void raise(int number)
{
    system_call(__NR_kill, system_call(__NR_getpid), number);
}

static void plain(int number)
{
    u32 flags;
    asm volatile("pushf; pop %0" : "=r"(flags));
    direction = flags & 0x400;
    if (++depth > deepest)
        deepest = depth;
    if (number == SIGUSR2)
        raise(SIGCHLD);
    depth--;
}

/* Registers and direction flag over a handler that is entered from a system call, with a frame of the old kind. */
static void frames(void)
{
    u32 before, after, result;
    handle(SIGUSR2, plain, 0);
    handle(SIGCHLD, plain, SA_SIGINFO);
    u32 own = (u32)system_call(__NR_getpid);
    asm volatile("pushl $0x602; popf; pushf; pop %1; int $0x80; pushf; pop %2; cld"
                 : "=a"(result), "=&D"(before), "=&S"(after)
                 : "0"(__NR_kill), "b"(own), "c"(SIGUSR2)
                 : "memory");
    printf("handlers: depth %u, direction %x in them, flags %x and %x around, result %d\n", deepest, direction, before, after, (int)result);
    handle(SIGCHLD, SIG_DFL, 0);
}

static int skip(struct sigcontext_32 *at)
{
    meddle = 0;
    at->ip += 2;
    at->ax = 0x1234;
    at->flags |= 0x8d5;
    return 1;
}

static const struct bad {
    const char *what;
    u32 cs, ss, ds, es, gs, flags, ip;
} bad_returns[] = {
    {"return with cs null", 0, USER_DS, USER_DS, USER_DS, 0, 0x202, 0},
    {"return with cs of the kernel", KERNEL_CS, USER_DS, USER_DS, USER_DS, 0, 0x202, 0},
    {"return with cs of data", USER_DS, USER_DS, USER_DS, USER_DS, 0, 0x202, 0},
    {"return with cs beyond the GDT", 0x1003, USER_DS, USER_DS, USER_DS, 0, 0x202, 0},
    {"return with cs in no LDT", LDT_SELECTOR(1), USER_DS, USER_DS, USER_DS, 0, 0x202, 0},
    {"return with ss null", USER_CS, 0, USER_DS, USER_DS, 0, 0x202, 0},
    {"return with ss of code", USER_CS, USER_CS, USER_DS, USER_DS, 0, 0x202, 0},
    {"return with ss in no LDT", USER_CS, LDT_SELECTOR(1), USER_DS, USER_DS, 0, 0x202, 0},
    {"return with ds of the kernel", USER_CS, USER_DS, KERNEL_CS, USER_DS, 0, 0x202, 0},
    {"return with es beyond the GDT", USER_CS, USER_DS, USER_DS, 0x1003, 0, 0x202, 0},
    {"return with gs in no LDT", USER_CS, USER_DS, USER_DS, USER_DS, LDT_SELECTOR(1), 0x202, 0},
    {"return with every flag", USER_CS, USER_DS, USER_DS, USER_DS, 0, 0xfffffeff, 0},
    {"return with a step", USER_CS, USER_DS, USER_DS, USER_DS, 0, 0x302, 0},
    {"return to the kernel", USER_CS, USER_DS, USER_DS, USER_DS, 0, 0x202, KERNEL},
    {"return to address 0", USER_CS, USER_DS, USER_DS, USER_DS, 0, 0x202, 4},
};
static const struct bad *bad;

static int spoil(struct sigcontext_32 *at)
{
    meddle = 0;
    at->ip = bad->ip ? bad->ip : at->ip + 2;
    at->cs = bad->cs, at->ss = bad->ss, at->ds = bad->ds, at->es = bad->es, at->gs = bad->gs;
    at->flags = bad->flags;
    return 1;
}

static void returns(void)
{
    meddle = skip;
    attempt(skipped);
    print_caught("return behind the instruction, registers changed", (u32)skipped);
    for (bad = bad_returns; bad < bad_returns + sizeof bad_returns / sizeof *bad_returns; bad++) {
        meddle = spoil;
        attempt(skipped);
        print_caught(bad->what, (u32)skipped);
    }
}

static int pipe_to[2];

static void write_byte(int number)
{
    (void)number;
    system_call(__NR_write, pipe_to[1], "x", 1);
}

/* A read that a signal interrupts: ended, or begun anew. */
static void interrupted_calls(void)
{
    u8 byte;
    system_call(__NR_pipe, pipe_to);
    start_alarms(20000); /* one after the other: the first may come before the read has begun */
    handle(SIGALRM, count_alarm, 0);
    long ended = system_call(__NR_read, pipe_to[0], &byte, 1);
    handle(SIGALRM, write_byte, SA_RESTART);
    printf("interrupted reads: %d", (int)ended);
    printf(", begun anew: %d\n", (int)system_call(__NR_read, pipe_to[0], &byte, 1));
    stop_alarms();
}

static int ends_by(void (*act)(void))
{
    int child = fork();
    if (child == 0) {
        static const u8 numbers[] = {SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV};
        for (u32 i = 0; i < sizeof numbers; i++)
            handle(numbers[i], SIG_DFL, 0);
        act();
        leave(0);
    }
    return wait_for(child);
}

static void undefined(void) { asm volatile("ud2"); }
static void divides(void) { asm volatile("xorl %%ecx, %%ecx; divl %%ecx" ::: "eax", "ecx", "edx"); }
static void traps(void) { asm volatile("int3"); }
static void jumps(void) { asm volatile("jmp *%0" ::"r"(16)); }
static void loses_stack(void) { asm volatile("movl $16, %esp; pushl $1"); }

void signals(void)
{
    frames();
    returns();
    interrupted_calls();
    start_alarms(10000);
    attempt(register_loop);
    print_caught("registers over alarms", (u32)register_loop);
    start_alarms(10000);
    attempt(string_loop);
    print_caught("string instructions over alarms", (u32)string_loop);
    stop_alarms();
    printf("children end by signals: %d %d %d %d %d\n", ends_by(undefined), ends_by(divides), ends_by(traps), ends_by(jumps), ends_by(loses_stack));
}
