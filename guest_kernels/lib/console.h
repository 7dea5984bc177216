/* console.h: text out on the first serial port. */
#pragma once
#include "types.h"

/* Set up the 16550 at 3F8h: 115200 baud, 8 bits, no parity, FIFO on, no interrupts. */
void serial_setup(void);
/* Send one byte, waiting until the transmitter has room. A '\n' goes out as "\r\n". */
void serial_write(char c);
/* %s %c %d %u %x %%, with an optional zero-padded width such as %08x. */
void printf(const char *format, ...) __attribute__((format(printf, 1, 2)));
void vprintf(const char *format, __builtin_va_list arguments);
