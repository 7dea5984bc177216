/* multiboot.c: the way from the boot loader to main(), and the command line
 * (Multiboot Specification 0.6.96, 3.3 "Boot information format"). */
#include "multiboot.h"
#include "console.h"
#include "report.h"

#define LOADED_BY_MULTIBOOT 0x2badb002
#define HAS_COMMAND_LINE (1u << 2)

struct multiboot_information {
    u32 flags, mem_lower, mem_upper, boot_device;
    text_address command_line;
};

/* A copy, because the loader may have put the original anywhere, also where we later map something else. */
static char command_line[256];

static void copy_text(char *to, const char *from, u32 size)
{
    while (--size && *from)
        *to++ = *from++;
    *to = 0;
}

void kernel_start(u32 magic, const void *information)
{
    const struct multiboot_information *info = information;
    serial_setup();
    if (magic != LOADED_BY_MULTIBOOT) {
        report(0, "loaded by a multiboot loader");
        finish();
    }
    if (info->flags & HAS_COMMAND_LINE)
        copy_text(command_line, (const char *)(unsigned long)info->command_line, sizeof command_line);
    main();
    finish();
}

/* The rest of the word at `text` after `prefix`; null when the word does not start with it. */
static const char *after_prefix(const char *text, const char *prefix)
{
    while (*prefix)
        if (*text++ != *prefix++)
            return 0;
    return text;
}

static int ends_word(char c) { return c == ' ' || c == 0; }

static const char *next_word(const char *text)
{
    while (!ends_word(*text))
        text++;
    while (*text == ' ')
        text++;
    return text;
}

int argument(const char *word)
{
    for (const char *at = command_line; *at; at = next_word(at)) {
        const char *rest = after_prefix(at, word);
        if (rest && ends_word(*rest))
            return 1;
    }
    return 0;
}

int argument_value(const char *name, char *to, u32 size)
{
    for (const char *at = command_line; *at; at = next_word(at)) {
        const char *value = after_prefix(at, name);
        if (!value || *value++ != '=')
            continue;
        while (--size && !ends_word(*value))
            *to++ = *value++;
        *to = 0;
        return 1;
    }
    return 0;
}
