/* rings.c: a kernel with user processes: an address space each, system calls, and pre-emption by the timer.
 *
 * A process is a kernel stack with a trap frame at its top; to switch is to return from a trap by another process's frame (trap.h).
 * The kernel itself runs with interrupts off except where it idles. The FPU changes hands only when its next user touches it (CR0.TS, #NM).
 */
#include "rings.h"
#include "../lib/console.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/memory.h"
#include "../lib/multiboot.h"
#include "../lib/paging.h"
#include "../lib/report.h"
#include "../lib/trap.h"

enum { TIMER_HERTZ = 100, PREEMPTIONS_WANTED = 3 };

struct process {
    const char *what;
    void (*program)(void);
    u32 result_expected;

    enum { READY, SLEEPING, EXITED } state;
    struct trap_frame *frame;
    struct address_space space;
    u32 kernel_stack_top;
    u32 wake_tick;
    u32 rounds, wrong_results, broken, preemptions;
    int has_fpu_state;
    u8 fpu_state[108]; /* FNSAVE's: SDM 1 8.1.10 "Saving the x87 FPU's State with FSTENV/FNSTENV and FSAVE/FNSAVE" */
};

static struct process processes[PROCESSES] = {
    {.what = "checksum", .program = checksum_program, .result_expected = 0x5b24a61a},
    {.what = "primes", .program = primes_program, .result_expected = 550},
    {.what = "series", .program = series_program, .result_expected = 999000},
    {.what = "registers", .program = registers_program, .result_expected = 0},
};
static struct process idle; /* the context that main() runs in */
static struct process *current = &idle;
static struct process *fpu_owner;
static u32 alive = PROCESSES;
static volatile u32 ticks, idle_ticks;

/* --- switching --- */

static struct process *next_ready(void)
{
    u32 from = current == &idle ? 0 : (u32)(current - processes) + 1;
    for (u32 i = 0; i < PROCESSES; i++) {
        struct process *p = &processes[(from + i) % PROCESSES];
        if (p->state == READY)
            return p;
    }
    return &idle;
}

static struct trap_frame *switch_away(struct trap_frame *frame)
{
    current->frame = frame;
    struct process *next = next_ready();
    if (next == current)
        return frame;
    current = next;
    write_cr3(next->space.cr3);
    kernel_stack_set(next->kernel_stack_top);
    if (next == fpu_owner)
        clts();
    else
        write_cr0(read_cr0() | CR0_TS);
    return next->frame;
}

static struct trap_frame *give_fpu(struct trap_frame *frame)
{
    clts();
    if (fpu_owner)
        asm volatile("fnsave %0" : "=m"(fpu_owner->fpu_state));
    fpu_owner = current;
    if (current->has_fpu_state)
        asm volatile("frstor %0" : : "m"(current->fpu_state));
    else
        asm volatile("fninit");
    current->has_fpu_state = 1;
    return frame;
}

/* --- interrupts and system calls --- */

static struct trap_frame *tick(struct trap_frame *frame)
{
    ticks++;
    pic_end(IRQ_TIMER);
    for (struct process *p = processes; p < processes + PROCESSES; p++)
        if (p->state == SLEEPING && (int)(ticks - p->wake_tick) >= 0)
            p->state = READY;
    if (current == &idle)
        idle_ticks++;
    struct process *before = current;
    frame = switch_away(frame);
    if (current != before && before != &idle)
        before->preemptions++;
    return frame;
}

/* All go on until all have been pre-empted: with nobody else ready a process would never lose the CPU. */
static int all_preempted(void)
{
    for (const struct process *p = processes; p < processes + PROCESSES; p++)
        if (p->preemptions < PREEMPTIONS_WANTED)
            return 0;
    return 1;
}

static struct trap_frame *system_call(struct trap_frame *frame)
{
    switch ((enum system_call)frame->eax) {
    case CALL_RESULT:
        current->rounds++;
        current->wrong_results += frame->ebx != current->result_expected;
        frame->eax = !all_preempted();
        return frame;
    case CALL_BROKEN:
        current->broken |= 1 << (frame->ebx & 31);
        return frame;
    case CALL_SLEEP:
        current->state = SLEEPING;
        current->wake_tick = ticks + frame->ebx;
        return switch_away(frame);
    case CALL_EXIT:
        current->state = EXITED;
        alive--;
        return switch_away(frame);
    }
    frame->eax = (u32)-1;
    return frame;
}

/* --- processes --- */

static void process_create(struct process *p)
{
    u8 *private_page = page_alloc();
    p->space = address_space_new(0);
    page_map(&p->space, PRIVATE_PAGE, (u32)private_page, PAGE_WRITE | PAGE_USER);
    ((struct private_page *)private_page)->process = (u32)(p - processes);

    p->kernel_stack_top = (u32)page_alloc() + PAGE_SIZE;
    p->frame = (struct trap_frame *)p->kernel_stack_top - 1;
    *p->frame = (struct trap_frame){
        .ds = USER_DATA, .es = USER_DATA, .cs = USER_CODE, .ss = USER_DATA,
        .eip = (u32)p->program, .esp = PRIVATE_END - 16, .eflags = EFLAGS_ALWAYS | EFLAGS_IF,
    };
    p->state = READY;
}

static void process_report(const struct process *p)
{
    report(p->rounds && !p->wrong_results, "%s: every round gave the right result", p->what);
    report(!p->broken, "%s: private page and IF survived", p->what);
    report(p->preemptions >= PREEMPTIONS_WANTED, "%s: was pre-empted", p->what);
}

/* --- what the kernel reads back of its own machine --- */

static void report_tables(void)
{
    struct table_register r;
    sgdt(&r);
    report(r.base == gdt_address() && r.limit == GDT_ENTRIES * 8 - 1, "SGDT gives what LGDT loaded");
    sidt(&r);
    report(r.base == idt_address() && r.limit == 256 * 8 - 1, "SIDT gives what LIDT loaded");
    report(str() == TASK_STATE, "STR gives what LTR loaded");
    report(sldt() == 0, "SLDT gives the null LDT");
    report((segment_get(TASK_STATE) >> 40 & 0xf) == (SYSTEM_TSS | 2), "LTR marked the TSS busy");
    report(read_cs() == KERNEL_CODE && read_ss() == KERNEL_DATA && read_ds() == KERNEL_DATA && read_es() == KERNEL_DATA,
           "CS, SS, DS, ES read as loaded");
    report(read_fs() == 0 && read_gs() == 0, "FS and GS read as null");
}

static u16 far_call_cs(void)
{
    u16 cs;
    asm volatile("lcall %1, $1f; jmp 2f\n"
                 "1: movw %%cs, %0; lret\n"
                 "2:"
                 : "=r"(cs)
                 : "i"(FIRST_FREE_SELECTOR)
                 : "memory");
    return cs;
}

static void report_segments(void)
{
    segment_set(FIRST_FREE_SELECTOR, 0, 0xffffffff, SEGMENT_PRESENT | SEGMENT_CODE);
    lgdt(&(struct table_register){GDT_ENTRIES * 8 - 1, gdt_address()});
    report(far_call_cs() == FIRST_FREE_SELECTOR && read_cs() == KERNEL_CODE, "far call to a second code segment and back");

    static const u32 words[2] = {0x600d0001, 0x600d0002};
    segment_set(FIRST_FREE_SELECTOR + 8, (u32)words, 7, SEGMENT_PRESENT | SEGMENT_DATA);
    u32 word;
    asm volatile("movl %1, %%fs; movl %%fs:4, %0; movl %2, %%fs" : "=&r"(word) : "r"(FIRST_FREE_SELECTOR + 8), "r"(0));
    report(word == words[1], "a data segment with a base");

    u32 rights = 0, limit = 0;
    u8 readable, writable;
    asm volatile("larl %1, %0" : "=r"(rights) : "r"(KERNEL_CODE) : "cc");
    asm volatile("lsll %1, %0" : "=r"(limit) : "r"(FIRST_FREE_SELECTOR + 8) : "cc");
    asm volatile("verr %w1; setz %0" : "=q"(readable) : "r"(KERNEL_CODE) : "cc");
    asm volatile("verw %w1; setz %0" : "=q"(writable) : "r"(KERNEL_CODE) : "cc");
    /* QEMU sets no accessed bit when CS is loaded. */
    report((rights | SEGMENT_ACCESSED << 8) == (0xc09b00 | KERNEL_LEVEL << 13) && limit == 7 && readable && !writable,
           "LAR, LSL, VERR and VERW show the kernel's descriptors");
}

static void report_control_registers(void)
{
    report((read_cr0() & (CR0_PE | CR0_PG | CR0_WP)) == (CR0_PE | CR0_PG | CR0_WP), "CR0 has PE, PG and WP");
    report((smsw() & 1) == 1, "SMSW has PE");
    report(read_cr3() == idle.space.cr3, "CR3 reads as loaded");
    write_cr0(read_cr0() | CR0_TS);
    int set = (read_cr0() & CR0_TS) != 0;
    clts();
    report(set && !(read_cr0() & CR0_TS), "CLTS clears CR0.TS");
}

static void report_invlpg(void)
{
    volatile u32 *window = (volatile u32 *)0x50000000;
    u32 *first = page_alloc(), *second = page_alloc();
    *first = 1;
    *second = 2;
    page_map(&idle.space, (u32)window, (u32)first, PAGE_WRITE);
    u32 before = *window;
    page_map(&idle.space, (u32)window, (u32)second, PAGE_WRITE);
    invlpg(window);
    report(before == 1 && *window == 2, "INVLPG shows a remapped page");
    *window = 3;
    report(*second == 3 && *first == 1, "a store goes to the new page");
}

/* --- interrupts in kernel mode --- */

static void report_flags(void)
{
    write_eflags(EFLAGS_ALWAYS);
    int off = !(read_eflags() & EFLAGS_IF);
    sti();
    int on = (read_eflags() & EFLAGS_IF) != 0;
    u32 flags = read_eflags();
    cli();
    int off_again = !(read_eflags() & EFLAGS_IF);
    write_eflags(flags);
    int restored = (read_eflags() & EFLAGS_IF) != 0;
    write_eflags(EFLAGS_ALWAYS | EFLAGS_IOPL);
    u32 iopl = read_eflags() & EFLAGS_IOPL;
    write_eflags(EFLAGS_ALWAYS);
    report(off && on && off_again && restored, "CLI, STI, PUSHF and POPF agree about IF");
    report(iopl == EFLAGS_IOPL, "POPF changes IOPL at CPL 0");
}

static void report_interrupts(void)
{
    u32 start = ticks;
    sti();
    while (ticks - start < 2)
        ;
    cli();
    report(1, "the timer interrupts a busy kernel loop");

    while (!pic_waiting(IRQ_TIMER))
        ;
    start = ticks;
    for (volatile int i = 0; i < 100; i++)
        ;
    report(ticks == start, "CLI holds a waiting interrupt off");
    sti_cli();
    report(ticks == start, "STI holds it off for one more instruction");
    sti();
    while (ticks == start)
        ;
    cli();
    report(1, "STI lets it in");
}

void main(void)
{
    descriptors_setup();
    pic_setup(); /* all masked: firmware left its timer running, and report_flags() sets IF */
    report_tables();
    report_segments();

    idle.space = address_space_new(0);
    idle.kernel_stack_top = 0; /* never used: what interrupts the idle context does not change the stack */
    address_space_load(&idle.space);
    report_control_registers();
    report_invlpg();
    report_flags();

    for (struct process *p = processes; p < processes + PROCESSES; p++)
        p->state = EXITED; /* not yet created: the timer must not switch to them */
    gate_set(SYSTEM_CALL, SEGMENT_PRESENT | SEGMENT_DPL(3) | GATE_INTERRUPT);
    trap_set(SYSTEM_CALL, system_call);
    trap_set(NO_FPU, give_fpu);
    trap_set(IRQ_VECTOR(IRQ_TIMER), tick);
    pit_setup(TIMER_HERTZ);
    pic_unmask(IRQ_TIMER);
    report_interrupts();

    idle_ticks = 0;
    for (struct process *p = processes; p < processes + PROCESSES; p++)
        process_create(p);
    while (alive)
        sti_hlt();
    cli();
    pic_mask(IRQ_TIMER);

    for (struct process *p = processes; p < processes + PROCESSES; p++)
        process_report(p);
    report(idle_ticks > 0, "the kernel idled while all processes slept");
}
