/* segments.c: the LDT and thread-local segments: loads that fault, 16-bit code and stacks, and what each process has for itself. */
#include "linux.h"
#include <linux/sched.h>

extern const struct snippet segment_snippets[], segment_snippets_end[];
extern const u8 code_16[];
long thread(u32 flags, void *stack, struct user_desc *tls, void (*start)(void));

enum { DATA_SEGMENT, STACK_SEGMENT, CODE_SEGMENT = 2 }; /* the contents of a struct user_desc */

static long describe(u32 entry, u32 base, u32 limit, u32 contents, int wide, int absent)
{
    struct user_desc segment = {.entry_number = entry, .base_addr = base, .limit = limit, .seg_32bit = wide, .contents = contents};
    segment.seg_not_present = absent;
    return system_call(__NR_modify_ldt, 1, &segment, sizeof segment);
}

static u32 through_fs(u32 selector)
{
    u32 found;
    asm volatile("movl %1, %%fs; movl %%fs:0, %0; movl %2, %%fs" : "=r"(found) : "r"(selector), "r"(0));
    return found;
}

static int keep_on(struct sigcontext_32 *at)
{
    meddle = 0;
    at->ip += 2;
    return 1;
}

static void snippets(void)
{
    for (const struct snippet *snippet = segment_snippets; snippet < segment_snippets_end; snippet++) {
        *(volatile u32 *)DATA = 0x600d;
        attempt(snippet->code);
        print_caught(snippet->what, (u32)snippet->code);
    }
}

static void read_back(void)
{
    u32 table[16] = {0};
    long bytes = system_call(__NR_modify_ldt, 0, table, sizeof table);
    printf("LDT: %d bytes", (int)bytes);
    for (u32 i = 0; i < 12; i++)
        printf(" %08x", table[i]);
    printf("\n");
}

/* A segment that moves under a selector. */
static void moving(void)
{
    u32 right = 0;
    for (u32 i = 0; i < 100; i++) {
        *(volatile u32 *)(DATA + 4 * i) = i;
        describe(LDT_MOVING, DATA + 4 * i, 0xfff, DATA_SEGMENT, 1, 0);
        right += through_fs(LDT_SELECTOR(LDT_MOVING)) == i;
    }
    describe(8191, DATA + 8, 0xfff, DATA_SEGMENT, 1, 0);
    printf("moving segment: %u right, the last of an LDT: %u\n", right, through_fs(LDT_SELECTOR(8191)));
}

static u32 thread_segment(u32 base)
{
    static u32 entry = -1;
    struct user_desc segment = {.entry_number = entry, .base_addr = base, .limit = 0xfffff, .seg_32bit = 1, .limit_in_pages = 1, .useable = 1};
    long result = system_call(__NR_set_thread_area, &segment);
    entry = segment.entry_number;
    return result ? (u32)result : TLS_SELECTOR(entry);
}

static u32 through_gs(void)
{
    u32 found;
    asm volatile("movl %%gs:0, %0" : "=r"(found));
    return found;
}

static void load_gs(u32 selector)
{
    asm volatile("movl %0, %%gs" ::"r"(selector));
}

/* Processes that take turns, each with its own LDT and TLS, keep their own. */
static void processes(void)
{
    int children[3], right = 0;
    for (u32 n = 0; n < 3; n++) {
        children[n] = fork();
        if (children[n])
            continue;
        int mine = 1;
        volatile u32 *own = (u32 *)DATA;
        own[0] = 100 + n, own[1 + n] = 200 + n;
        load_gs(thread_segment(DATA));
        for (int i = 0; i < 50; i++) {
            describe(LDT_MOVING, DATA + 4 + 4 * n, 0xfff, DATA_SEGMENT, 1, 0);
            u32 selector = LDT_SELECTOR(LDT_MOVING), found;
            asm volatile("movl %1, %%fs; int $0x80; movl %%fs:0, %0" : "=r"(found) : "r"(selector), "a"(__NR_sched_yield));
            mine &= found == 200 + n && through_gs() == 100 + n;
        }
        leave(mine);
    }
    for (u32 n = 0; n < 3; n++)
        right += wait_for(children[n]);
    printf("processes with segments of their own: %d right\n", right);
}

static volatile u32 thread_results[2];

static void thread_body(void)
{
    u32 number = through_gs(), right = 0;
    for (int i = 0; i < 50; i++) {
        system_call(__NR_sched_yield);
        right += through_gs() == number;
    }
    thread_results[number] = right;
    system_call(__NR_exit, 0);
}

static void threads(void)
{
    static u32 local[2] = {0, 1};
    static u8 stacks[2][4096];
    int numbers[2];
    for (u32 n = 0; n < 2; n++) {
        struct user_desc tls = {.entry_number = 6, .base_addr = (u32)&local[n], .limit = 0xfffff, .seg_32bit = 1, .limit_in_pages = 1, .useable = 1};
        numbers[n] = (int)thread(CLONE_VM | CLONE_SETTLS | SIGCHLD, stacks[n] + sizeof stacks[n], &tls, thread_body);
    }
    for (u32 n = 0; n < 2; n++)
        wait_for(numbers[n]);
    printf("threads: %u and %u right\n", thread_results[0], thread_results[1]);
}

void segments(void)
{
    long results[5] = {
        describe(LDT_DATA, DATA, 0xfff, DATA_SEGMENT, 1, 0), describe(LDT_ABSENT_CODE, 0, 0xfffff, CODE_SEGMENT, 1, 1),
        describe(LDT_ABSENT_DATA, 0, 0xfffff, DATA_SEGMENT, 1, 1), describe(LDT_CODE_16, (u32)code_16, 0xffff, CODE_SEGMENT, 0, 0),
        describe(LDT_STACK_16, STACK_16_BASE, 0xffff, DATA_SEGMENT, 0, 0),
    };
    printf("modify_ldt: %d %d %d %d %d\n", (int)results[0], (int)results[1], (int)results[2], (int)results[3], (int)results[4]);
    start_alarms(10000);
    snippets();
    stop_alarms();
    extern const u8 stack_16_kept[];
    meddle = keep_on;
    attempt(stack_16_kept);
    print_caught("return to a 16-bit stack", (u32)stack_16_kept);
    moving();
    read_back();

    *(volatile u32 *)DATA = 11, *(volatile u32 *)(DATA + 4) = 22;
    u32 selector = thread_segment(DATA);
    load_gs(selector);
    u32 first = through_gs();
    thread_segment(DATA + 4);
    printf("thread segment: selector %x, %u, then %u\n", selector, first, through_gs());
    processes();
    threads();
    load_gs(0);
}
