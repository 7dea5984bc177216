/* serial.c: the 16550 UART, polled (National Semiconductor PC16550D data sheet, 8.0 "Registers"). */
#include "console.h"
#include "cpu.h"

enum {
    COM1 = 0x3f8,
    DATA = COM1 + 0,            /* with DLAB set: divisor, low byte */
    INTERRUPT_ENABLE = COM1 + 1, /* with DLAB set: divisor, high byte */
    FIFO_CONTROL = COM1 + 2,
    LINE_CONTROL = COM1 + 3,
    MODEM_CONTROL = COM1 + 4,
    LINE_STATUS = COM1 + 5,

    DLAB = 0x80,
    EIGHT_BITS = 0x03,
    FIFO_ON_AND_CLEAR = 0x07,
    DTR_AND_RTS = 0x03,
    TRANSMITTER_EMPTY = 0x20,
};

void serial_setup(void)
{
    outb(INTERRUPT_ENABLE, 0);
    outb(LINE_CONTROL, DLAB);
    outb(DATA, 1); /* 115200 / 1 */
    outb(INTERRUPT_ENABLE, 0);
    outb(LINE_CONTROL, EIGHT_BITS);
    outb(FIFO_CONTROL, FIFO_ON_AND_CLEAR);
    outb(MODEM_CONTROL, DTR_AND_RTS);
}

static void send(u8 byte)
{
    while (!(inb(LINE_STATUS) & TRANSMITTER_EMPTY))
        ;
    outb(DATA, byte);
}

void serial_write(char c)
{
    if (c == '\n')
        send('\r');
    send((u8)c);
}
