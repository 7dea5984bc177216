/* sensitive.c: a kernel that runs every sensitive instruction of the x86, in kernel and in user mode, and prints what it saw.
 *
 * One line for each form of each instruction in each mode: how far it came, the exception if there was one, and all that changed:
 * registers, flags, what was pushed, memory, and the privileged registers. Nothing is judged here: two machines are alike when they
 * print the same. The table of forms (sensitive_forms.S) lists the same instructions as bt/sensitive.py.
 */
#include "sensitive.h"
#include "../lib/console.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/memory.h"
#include "../lib/paging.h"
#include "../lib/report.h"
#include "../lib/trap.h"

#define BREAKPOINT_BYTE 0xcc /* all around the instruction: where a case ends */
/* RF in the image of EFLAGS that a fault pushes: QEMU 7.2 leaves it clear, a processor sets it (SDM 3A 17.3.1.1). */
#define EFLAGS_RF (1u << 16)

static struct registers before, after;
static struct {
    u32 vector, error, cr2;
} ended;
static u8 data_before[DATA_BYTES];

static struct trap_frame *case_ended(struct trap_frame *frame)
{
    after = (struct registers){
        .eax = frame->eax, .ecx = frame->ecx, .edx = frame->edx, .ebx = frame->ebx, .ebp = frame->ebp, .esi = frame->esi, .edi = frame->edi,
        .esp = from_user(frame) ? frame->esp : (u32)&frame->esp, .ss = from_user(frame) ? frame->ss : read_ss(),
        .eip = frame->eip, .eflags = frame->eflags, .cs = frame->cs, .ds = frame->ds, .es = frame->es, .fs = frame->fs, .gs = frame->gs,
    };
    ended.vector = frame->vector;
    ended.error = frame->error;
    ended.cr2 = read_cr2();
    case_leave();
}

/* Wakes HLT. */
static struct trap_frame *timer(struct trap_frame *frame)
{
    pic_end(IRQ_TIMER);
    return frame;
}

static u16 my_selector(u16 word, int user)
{
    switch (word) {
    case MY_CODE: return user ? USER_CODE : KERNEL_CODE;
    case MY_DATA: return user ? USER_DATA : KERNEL_DATA;
    case MY_OTHER_DATA: return user ? OTHER_USER_DATA : OTHER_KERNEL_DATA;
    default: return word;
    }
}

static u32 adapted(u32 value, int user) { return (u32)my_selector(value >> 16, user) << 16 | my_selector(value & 0xffff, user); }

static void lay_out(const struct form *form, int user)
{
    u8 *code = (u8 *)CODE, *data = (u8 *)DATA;
    u32 size = (u32)(form->end - form->code);
    memset(code, BREAKPOINT_BYTE, 256);
    memcpy(code, form->code, size);
    for (u32 i = 0; i + 1 < size; i++) {
        u16 word = (u16)(code[i] | code[i + 1] << 8), selector = my_selector(word, user);
        code[i] = selector & 0xff;
        code[i + 1] = selector >> 8;
    }
    for (u32 i = 0; i < DATA_BYTES; i++)
        data[i] = (u8)(0x60 + i);
    for (int i = 0; i < 2; i++)
        ((volatile u32 *)OPERAND)[i] = adapted(form->memory[i], user);
    for (int i = 0; i < 3; i++)
        ((volatile u32 *)STACK)[i] = adapted(form->stack[i], user);
    before = (struct registers){
        .eax = adapted(form->eax, user), .ecx = adapted(form->ecx, user), .edx = adapted(form->edx, user),
        .ebx = OPERAND, .esp = STACK, .ebp = TARGET, .esi = SOURCE, .edi = DESTINATION,
        .eip = CODE, .eflags = user ? form->eflags | EFLAGS_IF : form->eflags, .cs = my_selector(MY_CODE, user), .ss = my_selector(MY_DATA, user),
        .ds = my_selector(MY_DATA, user), .es = my_selector(MY_DATA, user), .fs = my_selector(MY_DATA, user), .gs = my_selector(MY_DATA, user),
    };
}

static void print_outcome(u32 size)
{
    static const char *const names[] = {"DE", "DB", "NMI", "BP", "OF", "BR", "UD", "NM", "DF", "CSO", "TS", "NP", "SS", "GP", "PF"};
    u32 at = after.eip - CODE;
    if (ended.vector == BREAKPOINT && at > size) { /* one of the breakpoints around the instruction */
        printf("+%x", at - 1);
        return;
    }
    if (ended.vector > PAGE_FAULT)
        printf("int %x", ended.vector);
    else
        printf("#%s", names[ended.vector]);
    if (ended.vector >= INVALID_TSS && ended.vector <= PAGE_FAULT)
        printf("(%x)", ended.error);
    if (ended.vector == PAGE_FAULT)
        printf(" cr2=%x", ended.cr2);
    printf(" +%x", at);
}

static void print_changes(void)
{
    static const char *const names[] = {"eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eip", "eflags", "cs", "ss", "ds", "es", "fs", "gs"};
    const u32 *old = (const u32 *)&before, *new = (const u32 *)&after;
    before.eip = after.eip; /* it is in the outcome */
    after.eflags &= ~EFLAGS_RF;
    for (u32 i = 0; i < sizeof names / sizeof *names; i++) {
        if (old[i] != new[i])
            printf(" %s=%x", names[i], new[i]);
    }
    if (after.esp < STACK && after.esp > STACK - 64) {
        printf(" pushed");
        for (u32 at = after.esp; at < STACK; at += 2)
            printf(" %04x", *(const volatile u16 *)at);
    }
    for (u32 i = 0; i < DATA_BYTES; i++) {
        u8 byte = ((const volatile u8 *)DATA)[i];
        if (byte != data_before[i])
            printf(" [%x]=%02x", DATA + i, byte);
    }
}

static void run(const struct form *form, int user)
{
    state_prepare();
    lay_out(form, user);
    if (form->prepare)
        form->prepare(&before, user);
    memcpy(data_before, (const void *)DATA, DATA_BYTES);
    state_remember();
    case_registers = before;
    case_run();
    if (form->mask)
        form->mask(&after);
    printf("%s %s: ", form->name, user ? "user" : "kernel");
    print_outcome((u32)(form->end - form->code));
    print_changes();
    state_print_changes();
    printf("\n");
}

void main(void)
{
    descriptors_setup();
    pic_setup();
    for (int vector = 0; vector < 256; vector++)
        trap_set((u8)vector, case_ended);
    trap_set(IRQ_VECTOR(IRQ_TIMER), timer);
    for (u8 vector = BREAKPOINT; vector <= OVERFLOW; vector++)
        gate_set(vector, SEGMENT_PRESENT | SEGMENT_DPL(3) | GATE_INTERRUPT);
    gate_set(SYSTEM_CALL, SEGMENT_PRESENT | SEGMENT_DPL(3) | GATE_INTERRUPT);
    struct address_space space = address_space_new(0);
    for (u32 page = CODE; page < STACK; page += PAGE_SIZE)
        page_map(&space, page, page, PAGE_WRITE | PAGE_USER);
    address_space_load(&space);
    state_setup();
    prepare_setup();
    for (const struct form *form = forms; form < forms_end; form++) {
        run(form, 0);
        run(form, 1);
    }
    finish();
}
