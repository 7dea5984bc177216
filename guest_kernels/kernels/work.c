/* work.c: what programs and kernels do all day, one row for each kind: computing, memory, processes, pipes, files, and a mix of them.
 *
 * There are two processes at most, a parent and its child, each with a window of memory that it copies when it writes after a fork. A process is a
 * trap frame on a kernel stack; to switch is to return from a trap by the other's frame (trap.h). lib/rows.h says how the command line chooses rows.
 */
#include "work.h"
#include "disk_ide.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/memory.h"
#include "../lib/pages.h"
#include "../lib/rows.h"
#include "../lib/trap.h"

enum { PROCESSES = 2 };

struct process {
    enum { ABSENT, READY, WAITING, READING, EXITED } state;
    struct trap_frame *frame;
    struct address_space space;
    u8 *kernel_stack;
    u8 *pages[DATA_PAGES];  /* what its window shows */
    u32 own;                /* one bit for each page: nobody else has it */
    u32 status, word;       /* what it gave to CALL_EXIT; what waits in the pipe to it */
    int full;
};

/* What system calls write, in pages of its own: a page that a descriptor table shares with data is written under the eyes of a VMM. */
static union {
    struct {
        struct process processes[PROCESSES];
        struct process *current;
    };
    u8 page[PAGE_SIZE];
} own __attribute__((aligned(4096)));
#define current own.current
static struct process *const parent = own.processes, *const child = own.processes + 1;
static struct address_space kernel_space;
static u64 data_flag; /* of pages that are not code */
static u32 count;
__attribute__((noreturn)) void user_leave(u32 value); /* trap_entry.S */

static struct process *other(void) { return current == parent ? child : parent; }

/* --- memory of processes --- */

static void show(struct process *p, u32 page, u8 *memory)
{
    p->pages[page] = memory;
    p->own |= 1u << page;
    page_map(&p->space, WINDOW + page * PAGE_SIZE, (u32)memory, PAGE_WRITE | PAGE_USER | data_flag);
}

/* A write to a page that came by a fork: who still shares it gets a copy. */
static struct trap_frame *copy_on_write(struct trap_frame *frame)
{
    u32 address = read_cr2(), page = (address - WINDOW) / PAGE_SIZE;
    if (address < WINDOW || page >= DATA_PAGES || !(frame->error & FAULT_WRITE) || current->own >> page & 1)
        user_leave(0);
    if (other()->state != ABSENT && other()->pages[page] == current->pages[page]) {
        show(current, page, page_copy(current->pages[page]));
    } else {
        show(current, page, current->pages[page]);
    }
    invlpg((const void *)address);
    return frame;
}

static void forget_pages(struct process *p, const struct process *sharer)
{
    for (u32 page = 0; page < DATA_PAGES; page++)
        if (!sharer || p->pages[page] != sharer->pages[page])
            page_give(p->pages[page]);
}

/* --- switching --- */

static struct trap_frame *go_on(struct process *next)
{
    current = next;
    write_cr3(next->space.cr3);
    kernel_stack_set((u32)(next->frame + 1));
    return next->frame;
}

/* The other process goes on in the place of this one, which waits for it. */
static struct trap_frame *wait_in(int state)
{
    current->state = state;
    return go_on(other());
}

static struct trap_frame *fork(struct trap_frame *frame)
{
    *child = (struct process){.state = READY, .space = space_fork(&parent->space, DATA_PAGES), .kernel_stack = page_take()};
    memcpy(child->pages, parent->pages, sizeof child->pages);
    parent->own = 0;
    child->frame = (struct trap_frame *)(child->kernel_stack + PAGE_SIZE) - 1;
    *child->frame = *frame;
    child->frame->eax = 0;
    frame->eax = 1;
    write_cr3(parent->space.cr3); /* its entries have become read-only */
    return frame;
}

static struct trap_frame *wait(struct trap_frame *frame)
{
    if (child->state != EXITED)
        return wait_in(WAITING);
    frame->eax = child->status;
    forget_pages(child, parent);
    space_free(&child->space);
    page_give(child->kernel_stack);
    child->state = ABSENT;
    return frame;
}

static struct trap_frame *leave(u32 status)
{
    child->state = EXITED;
    child->status = status;
    struct trap_frame *frame = go_on(parent);
    if (parent->state != WAITING)
        return frame;
    parent->state = READY;
    return wait(frame);
}

/* --- the pipes: room for one word in each direction --- */

static struct trap_frame *pipe_write(struct trap_frame *frame)
{
    struct process *reader = other();
    reader->word = frame->ebx;
    reader->full = 1;
    if (reader->state == READING) {
        reader->frame->eax = reader->word;
        reader->full = 0;
        reader->state = READY;
    }
    return frame;
}

static struct trap_frame *pipe_read(struct trap_frame *frame)
{
    if (!current->full)
        return wait_in(READING);
    current->full = 0;
    frame->eax = current->word;
    return frame;
}

static struct trap_frame *system_call(struct trap_frame *frame)
{
    current->frame = frame;
    switch ((enum system_call)frame->eax) {
    case CALL_COUNT:
        frame->eax = count;
        return frame;
    case CALL_BEGIN:
        rows_begin();
        return frame;
    case CALL_END:
        rows_end();
        user_leave(frame->ebx);
    case CALL_FORK:
        return fork(frame);
    case CALL_EXIT:
        return leave(frame->ebx);
    case CALL_WAIT:
        return wait(frame);
    case CALL_WRITE:
        return pipe_write(frame);
    case CALL_READ:
        return pipe_read(frame);
    case CALL_NOTHING:
        return frame;
    }
    frame->eax = (u32)-1;
    return frame;
}

/* --- a row in user mode --- */

static int user_row(void (*program)(void), u32 n)
{
    count = n;
    *parent = (struct process){.state = READY, .space = space_new(&kernel_space)};
    for (u32 page = 0; page < DATA_PAGES; page++)
        show(parent, page, page_take());
    current = parent;
    write_cr3(parent->space.cr3);
    int right = (int)user_run((u32)program, STACK_END - 16);
    write_cr3(kernel_space.cr3);
    if (child->state != ABSENT) {
        forget_pages(child, parent);
        space_free(&child->space);
        page_give(child->kernel_stack);
        child->state = ABSENT;
    }
    forget_pages(parent, 0);
    space_free(&parent->space);
    return right;
}

static int forkwait(u32 n) { return user_row(forkwait_program, n); }
static int pipe(u32 n) { return user_row(pipe_program, n); }
static int mix(u32 n) { return user_row(mix_program, n); }

static const struct row rows[] = {
    {"compute", 5, work_compute},
    {"stream", 5, work_stream},
    {"sort", 5, work_sort},
    {"forkwait", 10, forkwait},
    {"pipe", 50, pipe},
    {"mix", 5, mix},
    {"file", 2, work_file},
};

/* The GDT into a page of its own, as real kernels (and the flavour for Xen) have it: what traps write would lie beside it. */
static void gdt_move(void)
{
    const u32 size = GDT_ENTRIES * sizeof(u64);
    if (gdt_address() % PAGE_SIZE)
        lgdt(&(struct table_register){(u16)(size - 1), (u32)memcpy(page_take(), (const void *)gdt_address(), size)});
}

void main(void)
{
    descriptors_setup();
    gdt_move();
    pic_setup();
    gate_set(SYSTEM_CALL, SEGMENT_PRESENT | SEGMENT_DPL(3) | GATE_INTERRUPT);
    trap_set(SYSTEM_CALL, system_call);
    trap_set(PAGE_FAULT, copy_on_write);
    kernel_space = space_of_kernel(&data_flag);
    address_space_load(&kernel_space);
    ide_setup();
    rows_run(rows, sizeof rows / sizeof *rows);
}
