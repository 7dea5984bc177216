/* interrupts.c: programs the 8259A pair (Intel 8259A data sheet, "Initialization Command Words")
 * and the 8254 (data sheet, "Mode 2: Rate Generator"). */
#include "interrupts.h"
#include "cpu.h"

enum {
    MASTER = 0x20, MASTER_DATA = 0x21,
    SLAVE = 0xa0, SLAVE_DATA = 0xa1,
    ICW1_EDGE_CASCADE_ICW4 = 0x11,
    ICW4_8086 = 0x01,
    CASCADE_IRQ = 2,
    END_OF_INTERRUPT = 0x20,

    TIMER_CHANNEL_0 = 0x40, TIMER_CONTROL = 0x43,
    CHANNEL_0_BOTH_BYTES_RATE = 0x34,
    TIMER_HERTZ = 1193182,
};

static u16 masked = 0xffff;

static void write_masks(void)
{
    outb(MASTER_DATA, masked & 0xff);
    outb(SLAVE_DATA, masked >> 8);
}

void pic_setup(void)
{
    outb(MASTER, ICW1_EDGE_CASCADE_ICW4);
    outb(SLAVE, ICW1_EDGE_CASCADE_ICW4);
    outb(MASTER_DATA, IRQ_VECTOR(0));
    outb(SLAVE_DATA, IRQ_VECTOR(8));
    outb(MASTER_DATA, 1 << CASCADE_IRQ); /* the master hears of a mask of inputs, */
    outb(SLAVE_DATA, CASCADE_IRQ);       /* the slave of its number */
    outb(MASTER_DATA, ICW4_8086);
    outb(SLAVE_DATA, ICW4_8086);
    write_masks();
}

void pic_unmask(u8 irq)
{
    masked &= ~(1 << irq);
    if (irq >= 8)
        masked &= ~(1 << CASCADE_IRQ);
    write_masks();
}

void pic_mask(u8 irq)
{
    masked |= 1 << irq;
    write_masks();
}

void pic_end(u8 irq)
{
    if (irq >= 8)
        outb(SLAVE, END_OF_INTERRUPT);
    outb(MASTER, END_OF_INTERRUPT);
}

void pit_setup(u32 hertz)
{
    u32 divisor = TIMER_HERTZ / hertz;
    outb(TIMER_CONTROL, CHANNEL_0_BOTH_BYTES_RATE);
    outb(TIMER_CHANNEL_0, divisor & 0xff);
    outb(TIMER_CHANNEL_0, divisor >> 8);
}
