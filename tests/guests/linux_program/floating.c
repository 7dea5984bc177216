/* floating.c: the state of FPU and SSE over switches of processes, signals, forks and execs, and what they compute. */
#include "linux.h"

/* Fills all registers from a number, then makes a system call or waits for alarms as often as told; returns how many registers are as they were. */
u32 keep_registers(u32 seed, u32 calls, u32 until);
extern const u8 read_xmm0[];

static void spoil_registers(int number)
{
    (void)number;
    alarms++;
    asm volatile("fninit; fldpi; fldl2e; pcmpeqd %xmm0, %xmm0; pcmpeqd %xmm7, %xmm7");
}

static void processes(void)
{
    int children[3];
    u32 right = 0;
    for (u32 n = 0; n < 3; n++) {
        children[n] = fork();
        if (children[n] == 0)
            leave((int)keep_registers(1000 * n + 1, 100, 0));
    }
    for (u32 n = 0; n < 3; n++)
        right += (u32)wait_for(children[n]);
    printf("registers over switches: %u of 48\n", right);
}

static void over_signals(void)
{
    start_alarms(10000);
    handle(SIGALRM, spoil_registers, SA_ONSTACK);
    printf("registers over signals: %u of 16\n", keep_registers(7, 0, 10));
    stop_alarms();
    int child = fork();
    if (child == 0)
        leave((int)keep_registers(9, 5, 0));
    printf("registers in a child: %d of 16\n", wait_for(child));
}

/* The frame of a signal has the state; what is written there is loaded. */
static int look_at_frame(struct sigcontext_32 *at)
{
    const struct _fpstate_32 *state = (void *)at->fpstate;
    u32 *xmm0 = (u32 *)&state->_xmm[0];
    printf("frame: cw %x sw %x tag %x mxcsr %x, xmm0 %x", state->cw & 0xffff, state->sw & 0xffff, state->tag & 0xffff, state->mxcsr, xmm0[0]);
    xmm0[0] = 0x600d;
    at->ip += 2;
    meddle = 0;
    return 1;
}

static void frames(void)
{
    meddle = look_at_frame;
    attempt(read_xmm0);
    printf(", then %x\n", caught.at.ax);
}

static void show(const char *what, const void *result, u32 words)
{
    const u32 *word = result;
    printf("%s:", what);
    while (words--)
        printf(" %08x", *word++);
    printf("\n");
}

static void arithmetic(void)
{
    static const float four[4] __attribute__((aligned(16))) = {1.5f, -2.25f, 1e10f, 3e-39f};
    static const double numbers[2] = {2.0, -1e300};
    u32 words[8] __attribute__((aligned(16)));
    asm volatile("fninit; fldl %1; fsqrt; fstpt %0" : "=m"(words) : "m"(numbers[0]));
    show("sqrt", words, 2);
    asm volatile("fldl %1; fldl %2; fdivp; fstpl %0" : "=m"(words) : "m"(numbers[0]), "m"(numbers[1]));
    show("quotient", words, 2);
    asm volatile("fldl %1; fldl %1; fmulp; fstps %0" : "=m"(words) : "m"(numbers[1]));
    show("too large for a float", words, 1);
    asm volatile("fnclex; fldl %1; fistpl %0" : "=m"(words) : "m"(numbers[1]));
    show("too large for an integer", words, 1);
    asm volatile("fldpi; fldl %1; 1: fprem; fnstsw %%ax; sahf; jp 1b; fstpl %0; fstp %%st" : "=m"(words) : "m"(numbers[1]) : "eax");
    show("remainder", words, 2);
    asm volatile("movaps %1, %%xmm1; mulps %%xmm1, %%xmm1; movaps %%xmm1, %0" : "=m"(words) : "m"(four));
    show("squares", words, 4);
    asm volatile("movaps %1, %%xmm1; rsqrtps %%xmm1, %%xmm2; cmpltps %%xmm2, %%xmm1; movaps %%xmm1, %0" : "=m"(words) : "m"(four));
    show("less", words, 4);
    asm volatile("cvttsd2si %1, %%eax; movl %%eax, %0" : "=m"(words) : "m"(numbers[1]) : "eax");
    show("truncated", words, 1);
    asm volatile("movaps %1, %%xmm1; pshufd $0x1b, %%xmm1, %%xmm1; paddw %%xmm1, %%xmm1; movaps %%xmm1, %0" : "=m"(words) : "m"(four));
    show("shuffled", words, 4);
}

/* What a program begins with; `main` is called with an argument then. */
void fresh(void)
{
    u32 image[128] __attribute__((aligned(16)));
    asm volatile("fxsave %0" : "=m"(image));
    printf("a program begins with cw %x sw %x tag %x", image[0] & 0xffff, image[0] >> 16, image[1] & 0xff);
    printf(" mxcsr %x xmm0 %x st0 %x\n", image[6], image[40], image[8]);
}

static void over_exec(void)
{
    static const char *const arguments[] = {"/proc/self/exe", "fresh", 0};
    asm volatile("fninit; fldpi; pcmpeqd %xmm0, %xmm0");
    int child = fork();
    if (child == 0) {
        system_call(__NR_execve, arguments[0], arguments, 0);
        leave(1);
    }
    wait_for(child);
}

void floating_point(void)
{
    processes();
    over_signals();
    frames();
    arithmetic();
    over_exec();
}
