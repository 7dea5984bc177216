/* interrupts.h: the two 8259 interrupt controllers and the 8254 timer. */
#pragma once
#include "types.h"

#define IRQ_VECTOR(irq) (0x20 + (irq))
#define IRQ_TIMER 0
#define IRQ_DISK 14

/* Put IRQ 0 to 15 on vectors 20h to 2Fh, all masked. */
void pic_setup(void);
void pic_unmask(u8 irq);
void pic_mask(u8 irq);
/* End of interrupt: lets the controller send the next one. */
void pic_end(u8 irq);

/* Timer channel 0: interrupts at about `hertz` (19 or more). */
void pit_setup(u32 hertz);
