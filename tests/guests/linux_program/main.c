/* main.c: the program: its parts, and what they share. What it prints is the same on every machine with the same kernel. */
#include "linux.h"

struct kernel_sigaction {
    void *handler;
    u32 flags;
    void *restorer;
    u32 mask[2];
};

struct caught caught;
int (*meddle)(struct sigcontext_32 *at);
extern u8 attempt_over[];
static u32 user_cs, user_ds; /* what the kernel gave us */

static char line[512];
static u32 length;

void serial_write(char c)
{
    line[length++] = c;
    if (c == '\n' || length == sizeof line) {
        system_call(__NR_write, 1, line, length);
        length = 0;
    }
}

void *map(u32 address, u32 bytes, int protection, int flags, int file)
{
    return (void *)system_call(__NR_mmap2, address, bytes, protection, flags, file, 0);
}

int fork(void)
{
    return (int)system_call(__NR_fork);
}

void leave(int status)
{
    system_call(__NR_exit_group, status);
    for (;;)
        ;
}

int wait_for(int child)
{
    int status = -1;
    system_call(__NR_wait4, child, &status, 0, 0);
    return status & 0x7f ? -(status & 0x7f) : status >> 8;
}

void handle(int number, void *handler, u32 flags)
{
    struct kernel_sigaction action = {handler, flags, 0, {0, 0}};
    system_call(__NR_rt_sigaction, number, &action, 0, sizeof action.mask);
}

static void note(int number, siginfo_t *info, struct ucontext *context)
{
    struct sigcontext_32 *at = (struct sigcontext_32 *)&context->uc_mcontext;
    caught.number = number;
    caught.code = info->si_code;
    caught.address = info->si_code > 0 ? (u32)info->si_addr : 0;
    caught.at = *at;
    if (meddle && meddle(at))
        return;
    at->ip = (u32)attempt_over;
    at->flags = 0x202;
    at->cs = user_cs;
    at->ss = at->ds = at->es = user_ds;
    at->fs = at->gs = 0;
    at->sp = STACK_TOP;
}

void catch_all(void)
{
    static const u8 numbers[] = {SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGUSR1, SIGSEGV};
    for (u32 i = 0; i < sizeof numbers; i++)
        handle(numbers[i], note, SA_SIGINFO | SA_ONSTACK | SA_NODEFER);
}

void print_caught(const char *what, u32 code)
{
    const struct sigcontext_32 *at = &caught.at;
    const struct {
        const char *name;
        u32 now, before;
    } registers[] = {
        {"eax", at->ax, START_EAX}, {"ebx", at->bx, START_EBX}, {"ecx", at->cx, START_ECX}, {"edx", at->dx, START_EDX}, {"esi", at->si, START_ESI},
        {"edi", at->di, START_EDI}, {"ebp", at->bp, START_EBP}, {"esp", at->sp, STACK_TOP}, {"cs", at->cs, user_cs},    {"ss", at->ss, user_ds},
        {"ds", at->ds, user_ds},    {"es", at->es, user_ds},    {"fs", at->fs, 0},          {"gs", at->gs, 0},
    };
    printf("%s:", what);
    if (at->ip == (u32)attempt_passed + 1) {
        printf(" passes");
    } else {
        printf(" signal %d.%d trap %u error %x", caught.number, caught.code, at->trapno, at->err);
        printf(" eip %d address %x", (int)(at->ip - code), caught.address);
    }
    printf(" flags %x", at->flags & ~0x10000); /* RF stands in the frames of some faults */
    for (u32 i = 0; i < sizeof registers / sizeof *registers; i++)
        if (registers[i].now != registers[i].before)
            printf(" %s=%x", registers[i].name, registers[i].now);
    if (at->trapno == 14)
        printf(" cr2=%x", at->cr2);
    printf("\n");
}

/* The kernel's page for users says how it wants to be called: auxv's AT_SYSINFO. */
static void find_fast_call(u32 *stack)
{
    enum { AT_SYSINFO = 32 };
    u32 *at = stack + 1 + stack[0] + 1;
    while (*at++)
        ;
    for (; at[0]; at += 2)
        if (at[0] == AT_SYSINFO)
            fast_call_entry = at[1];
}

/* All parts, or those that are named. */
static const struct {
    const char *name;
    void (*act)(void);
} parts[] = {
    {"faults", faults}, {"signals", signals},        {"segments", segments}, {"code", code},
    {"calls", calls},   {"floating", floating_point}, {"tracing", tracing},
};

static int is(const char *name, const char *other)
{
    while (*name && *name == *other)
        name++, other++;
    return *name == *other;
}

int main(u32 *stack)
{
    int reserved = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    const char *const *arguments = (void *)(stack + 2);
    if (stack[0] > 1 && is(arguments[0], "fresh")) {
        fresh();
        return 0;
    }
    system_call(__NR_personality, 0); /* the shell may have us execute whatever we can read */
    find_fast_call(stack);
    asm("mov %%cs, %0; mov %%ds, %1" : "=r"(user_cs), "=r"(user_ds));
    map(DATA, PAGE_SIZE, PROT_READ | PROT_WRITE, reserved, -1);
    map(CONSTANT, PAGE_SIZE, PROT_READ, reserved, -1);
    map(FRESH, PAGE_SIZE, PROT_READ | PROT_WRITE, reserved, -1);
    map(BORDER, PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, reserved, -1);
    map(STACK, STACK_TOP - STACK + PAGE_SIZE, PROT_READ | PROT_WRITE, reserved, -1);
    map(SIGNAL_STACK, SIGNAL_STACK_SIZE, PROT_READ | PROT_WRITE, reserved, -1);
    stack_t own = {(void *)SIGNAL_STACK, 0, SIGNAL_STACK_SIZE};
    system_call(__NR_sigaltstack, &own, 0);
    catch_all();
    for (u32 i = 0; i < sizeof parts / sizeof *parts; i++) {
        int wanted = stack[0] < 2;
        for (u32 n = 0; n + 1 < stack[0]; n++)
            wanted |= is(arguments[n], parts[i].name);
        if (wanted) {
            printf("%s: all of them\n", parts[i].name);
            parts[i].act();
        }
    }
    return 0;
}
