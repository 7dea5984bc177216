/* printf.c: the part of printf that small kernels need. */
#include "console.h"

static void print_string(const char *s)
{
    while (*s)
        serial_write(*s++);
}

static void print_number(u32 value, u32 radix, int width)
{
    char digits[32];
    int n = 0;
    do {
        digits[n++] = "0123456789abcdef"[value % radix];
        value /= radix;
    } while (value);
    for (int i = n; i < width; i++)
        serial_write('0');
    while (n)
        serial_write(digits[--n]);
}

static void print_signed(int value, int width)
{
    if (value < 0)
        serial_write('-');
    print_number(value < 0 ? 0u - (u32)value : (u32)value, 10, width);
}

void vprintf(const char *format, __builtin_va_list arguments)
{
    for (; *format; format++) {
        if (*format != '%') {
            serial_write(*format);
            continue;
        }
        int width = 0;
        for (format++; *format >= '0' && *format <= '9'; format++)
            width = width * 10 + *format - '0';
        switch (*format) {
        case 's': print_string(__builtin_va_arg(arguments, const char *)); break;
        case 'c': serial_write((char)__builtin_va_arg(arguments, int)); break;
        case 'd': print_signed(__builtin_va_arg(arguments, int), width); break;
        case 'u': print_number(__builtin_va_arg(arguments, u32), 10, width); break;
        case 'x': print_number(__builtin_va_arg(arguments, u32), 16, width); break;
        case '%': serial_write('%'); break;
        default: return; /* a mistake in the format: better silent than wrong */
        }
    }
}

void printf(const char *format, ...)
{
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    vprintf(format, arguments);
    __builtin_va_end(arguments);
}
