/* code.c: code that changes: by itself, through another mapping, by another process, by the file system, by a change of rights. */
#include "linux.h"
#include <linux/memfd.h>

#define EVERYTHING (PROT_READ | PROT_WRITE | PROT_EXEC)
enum { ROUNDS = 200 };

extern const u8 own_next[], own_next_end[], own_loop[], own_loop_end[];

/* mov $value, %eax; ret */
static void put(u32 address, u32 value)
{
    volatile u8 *at = (u8 *)address;
    at[0] = 0xb8, at[5] = 0xc3;
    *(volatile u32 *)(at + 1) = value;
}

static u32 run(u32 address)
{
    return ((u32(*)(void))address)();
}

static u32 run_with(u32 address, u32 value)
{
    return ((u32(*)(u32))address)(value);
}

static int shared_file(void)
{
    int file = (int)system_call(__NR_memfd_create, "code", 0);
    system_call(__NR_ftruncate, file, 2 * PAGE_SIZE);
    return file;
}

/* Each way returns how often what was run was what had been written. */
static u32 in_place(void)
{
    u32 right = 0;
    map(ALIAS, PAGE_SIZE, EVERYTHING, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1);
    for (u32 i = 0; i < ROUNDS; i++) {
        put(ALIAS + 64 * (i % 3), i);
        right += run(ALIAS + 64 * (i % 3)) == i;
    }
    return right;
}

static u32 next_instruction(void)
{
    u32 right = 0;
    memcpy((void *)(ALIAS + 0x200), own_next, own_next_end - own_next);
    for (u32 i = 0; i < ROUNDS; i++)
        right += run_with(ALIAS + 0x200, i) == i;
    return right;
}

static u32 a_loop(void)
{
    memcpy((void *)(ALIAS + 0x400), own_loop, own_loop_end - own_loop);
    return run_with(ALIAS + 0x400, ROUNDS); /* the sum of what each round wrote for the next */
}

static u32 over_a_border(void)
{
    u32 right = 0, at = ALIAS + PAGE_SIZE - 3;
    map(ALIAS, 2 * PAGE_SIZE, EVERYTHING, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1);
    put(at, 0);
    for (u32 i = 0; i < ROUNDS; i++) {
        *(volatile u8 *)(at + 1 + i % 4) = (u8)i;
        right += run(at) == *(volatile u32 *)(at + 1);
    }
    return right;
}

static u32 two_mappings(void)
{
    u32 right = 0;
    int file = shared_file();
    map(ALIAS, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file);
    map(ALIAS + PAGE_SIZE, PAGE_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, file);
    for (u32 i = 0; i < ROUNDS; i++) {
        put(ALIAS + 64 * (i % 3), i);
        right += run(ALIAS + PAGE_SIZE + 64 * (i % 3)) == i;
    }
    system_call(__NR_close, file);
    return right;
}

static u32 another_process(void)
{
    u32 right = 0;
    u8 byte = 0;
    int there[2], back[2];
    system_call(__NR_pipe, there);
    system_call(__NR_pipe, back);
    put(ALIAS, 0);
    int child = fork();
    if (child == 0) {
        for (u32 i = 0; i < ROUNDS; i++) {
            put(ALIAS, i);
            system_call(__NR_write, there[1], &byte, 1);
            system_call(__NR_read, back[0], &byte, 1);
        }
        leave(0);
    }
    for (u32 i = 0; i < ROUNDS; i++) {
        system_call(__NR_read, there[0], &byte, 1);
        right += run(ALIAS + PAGE_SIZE) == i;
        system_call(__NR_write, back[1], &byte, 1);
    }
    wait_for(child);
    return right;
}

static u32 through_the_file(void)
{
    u32 right = 0;
    int file = shared_file();
    static u8 text[6];
    map(ALIAS, PAGE_SIZE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file);
    for (u32 i = 0; i < ROUNDS; i++) {
        put((u32)text, i);
        system_call(__NR_lseek, file, 0, 0);
        system_call(__NR_write, file, text, sizeof text);
        right += run(ALIAS) == i;
    }
    system_call(__NR_close, file);
    return right;
}

static u32 rights_change(void)
{
    u32 right = 0;
    map(ALIAS, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1);
    for (u32 i = 0; i < ROUNDS; i++) {
        put(ALIAS, i);
        system_call(__NR_mprotect, ALIAS, PAGE_SIZE, PROT_READ | PROT_EXEC);
        right += run(ALIAS) == i;
        system_call(__NR_mprotect, ALIAS, PAGE_SIZE, PROT_READ | PROT_WRITE);
    }
    return right;
}

static u32 mapped_anew(void)
{
    u32 right = 0;
    for (u32 i = 0; i < ROUNDS; i++) {
        map(ALIAS, PAGE_SIZE, EVERYTHING, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1);
        right += *(volatile u32 *)ALIAS == 0;
        put(ALIAS, i);
        right += run(ALIAS) == i;
        system_call(__NR_munmap, ALIAS, PAGE_SIZE);
    }
    return right;
}

static u32 moved(void)
{
    u32 right = 0;
    map(ALIAS, PAGE_SIZE, EVERYTHING, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1);
    map(ALIAS + 0x2000, PAGE_SIZE, EVERYTHING, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1);
    put(ALIAS, 1), put(ALIAS + 0x2000, 2);
    for (u32 i = 0; i < 50; i++) { /* the two pages change places by way of a third */
        static const u32 from[3] = {0, 0x2000, 0x4000}, to[3] = {0x4000, 0, 0x2000};
        for (u32 n = 0; n < 3; n++)
            system_call(__NR_mremap, ALIAS + from[n], PAGE_SIZE, PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, ALIAS + to[n]);
        right += run(ALIAS) == 1 + !(i & 1) && run(ALIAS + 0x2000) == 1 + (i & 1);
    }
    return right;
}

static u32 copied_on_write(void)
{
    u32 right = 0;
    put(ALIAS, 77);
    for (u32 i = 0; i < 20; i++) {
        int child = fork();
        if (child == 0) {
            int kept = run(ALIAS) == 77;
            put(ALIAS, i);
            leave(kept + (run(ALIAS) == i));
        }
        right += wait_for(child) == 2 && run(ALIAS) == 77;
    }
    return right;
}

static const u8 returns_42[] = {0xb8, 42, 0, 0, 0, 0xe9, 0, 0, 0, 0}; /* mov $42, %eax; jmp attempt_passed */

static void data_that_becomes_code(void)
{
    map(ALIAS, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1);
    memcpy((void *)ALIAS, returns_42, sizeof returns_42);
    *(volatile u32 *)(ALIAS + 6) = (u32)attempt_passed - (ALIAS + 10);
    attempt((void *)ALIAS);
    print_caught("a function in data", ALIAS);
    system_call(__NR_mprotect, ALIAS, PAGE_SIZE, PROT_READ | PROT_EXEC);
    attempt((void *)ALIAS);
    print_caught("the same made executable", ALIAS);
    system_call(__NR_mprotect, ALIAS, PAGE_SIZE, PROT_NONE);
    attempt((void *)ALIAS);
    print_caught("the same made nothing", ALIAS);
}

static u32 deep(u32 levels)
{
    volatile u8 much[4096];
    much[0] = (u8)levels;
    return levels ? deep(levels - 1) + (much[0] == (u8)levels) : 0;
}

void code(void)
{
    static const struct {
        const char *what;
        u32 (*act)(void);
    } ways[] = {
        {"in place", in_place},
        {"the next instruction", next_instruction},
        {"a loop, to the sum of", a_loop},
        {"over a border", over_a_border},
        {"two mappings", two_mappings},
        {"another process", another_process},
        {"through the file", through_the_file},
        {"rights change", rights_change},
        {"mapped anew", mapped_anew},
        {"moved", moved},
        {"copied on write", copied_on_write},
    };
    for (u32 i = 0; i < sizeof ways / sizeof *ways; i++)
        printf("code that changes, %s: %u\n", ways[i].what, ways[i].act());
    data_that_becomes_code();
    printf("a stack that grows: %u\n", deep(200));
}
