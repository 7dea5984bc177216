/* interrupts.h: the two 8259 interrupt controllers and the 8254 timer. */
#pragma once
#include "cpu.h"
#include "types.h"

#define IRQ_VECTOR(irq) (0x20 + (irq))
#define IRQ_TIMER 0
#define IRQ_DISK 14

/* Put IRQ 0 to 15 on vectors 20h to 2Fh, all masked. */
void pic_setup(void);
void pic_unmask(u8 irq);
void pic_mask(u8 irq);
/* Whether an interrupt of that line (0 to 7) waits to be let in. */
#ifdef PARAVIRT
int pic_waiting(u8 irq);
void irq_bind(u8 irq, u32 port); /* from now on that event channel is the line */
#else
static inline int pic_waiting(u8 irq)
{
    outb(0x20, 0x0a); /* 8259A OCW3: read the interrupt request register */
    return inb(0x20) >> irq & 1;
}
#endif
/* End of interrupt: lets the controller send the next one. */
void pic_end(u8 irq);

/* Timer channel 0: interrupts at about `hertz` (19 or more). */
void pit_setup(u32 hertz);
