/* interrupts.c: event channels in the place of interrupt lines, the virtual timer in the place of the 8254. */
#include "../lib/interrupts.h"
#include "../lib/cpu.h"
#include "../lib/trap.h"

enum { LINES = 16 };

static u32 port_of[LINES];    /* 0: not bound */
static u16 unmasked;
static u64 period, deadline; /* of the timer */
static void timer_next(void);
struct trap_frame *trap_dispatch(struct trap_frame *frame); /* trap.c */

/* An upcall: every pending channel is an interrupt of its line. */
static struct trap_frame *events(struct trap_frame *frame)
{
    do {
        shared_info.cpu[0].pending = 0;
        asm volatile("" : : : "memory");
        shared_info.cpu[0].selector = 0;
        for (u32 irq = 0; irq < LINES; irq++) {
            u32 port = port_of[irq], bit = 1u << (port & 31);
            if (!port || shared_info.mask[port / 32] & bit || !(shared_info.pending[port / 32] & bit))
                continue;
            shared_info.pending[port / 32] &= ~bit;
            if (irq == IRQ_TIMER)
                timer_next();
            frame->vector = IRQ_VECTOR(irq);
            frame = trap_dispatch(frame);
        }
    } while (shared_info.cpu[0].pending);
    return frame;
}

void pic_setup(void)
{
    for (u32 i = 0; i < 32; i++)
        shared_info.mask[i] = 0xffffffff;
    trap_set(UPCALL_VECTOR, events);
}

static void unmask_port(u32 port) { hypercall(EVENT_CHANNEL_OP, UNMASK, (u32)&port, 0, 0, 0); }

void irq_bind(u8 irq, u32 port)
{
    port_of[irq] = port;
    if (unmasked & 1 << irq)
        unmask_port(port);
}

void pic_unmask(u8 irq)
{
    unmasked |= 1 << irq;
    if (port_of[irq])
        unmask_port(port_of[irq]);
}

void pic_mask(u8 irq)
{
    unmasked &= ~(1 << irq);
    if (port_of[irq])
        shared_info.mask[port_of[irq] / 32] |= 1u << (port_of[irq] & 31);
}

void pic_end(u8 irq) { (void)irq; }

int pic_waiting(u8 irq) { return port_of[irq] && shared_info.pending[port_of[irq] / 32] >> (port_of[irq] & 31) & 1; }

/* Nanoseconds since the domain's start, as of the last event. */
static u64 now(void) { return (u64)shared_info.cpu[0].time[5] << 32 | shared_info.cpu[0].time[4]; }

static void timer_next(void)
{
    deadline = deadline + period > now() ? deadline + period : now() + period;
    hypercall(SET_TIMER_OP, (u32)deadline, (u32)(deadline >> 32), 0, 0, 0);
}

void pit_setup(u32 hertz)
{
    struct {
        u32 virq, cpu, port;
    } bind = {VIRQ_TIMER, 0, 0};
    hypercall(EVENT_CHANNEL_OP, BIND_VIRQ, (u32)&bind, 0, 0, 0);
    irq_bind(IRQ_TIMER, bind.port);
    period = 1000000000u / hertz;
    deadline = now();
    timer_next();
}
