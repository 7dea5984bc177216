/* smc.c: a kernel that modifies code: its own, with paging off and on, and that of user mode, from inside and from outside. */
#include "smc.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/memory.h"
#include "../lib/paging.h"
#include "../lib/report.h"
#include "../lib/trap.h"

#define STACK 0x40000000u
#define CODE 0x44000000u
#define ALIAS 0x48000000u

static struct address_space space;
static u8 *frames; /* the memory behind CODE and ALIAS */

static u8 *frames_alloc(void)
{
    u8 *first = page_alloc();
    for (u32 i = 1; i < CODE_PAGES; i++)
        page_alloc(); /* follows the one before */
    return first;
}

static void report_patches(const char *who, u32 (*run)(const struct patch *))
{
    for (const struct patch *p = patches; p < patches + patch_count; p++) {
        u32 result = run(p);
        if (result == p->expected)
            report(1, "%s: %s", who, p->what);
        else
            report(0, "%s: %s: %u instead of %u", who, p->what, result, p->expected);
    }
}

static u32 run_without_paging(const struct patch *p) { return p->run(frames, frames); }
static u32 run_in_kernel(const struct patch *p) { return p->run((u8 *)CODE, (u8 *)ALIAS); }

static u32 user_stack(u32 first, u32 second, u32 third)
{
    u32 *stack = (u32 *)(STACK + PAGE_SIZE - 64);
    stack[0] = first;
    stack[1] = second;
    stack[2] = third;
    return (u32)stack;
}

static u32 run_in_user(const struct patch *p) { return user_run((u32)user_call, user_stack((u32)p->run, CODE, ALIAS)); }

/* --- the kernel's own text --- */

/* mov eax, 1; ret, with names for its bytes. */
u32 patched_function(void);
extern u8 patched_immediate[];
asm(".text\n"
    ".globl patched_function\n"
    ".type patched_function, @function\n"
    "patched_function:\n"
    "   pushl %ebp\n"
    "   movl %esp, %ebp\n"
    "   .byte 0xb8\n"
    "patched_immediate: .long 1\n"
    "   popl %ebp\n"
    "   ret\n"
    ".size patched_function, . - patched_function\n");

/* A switch in the text, as kernels use for trace points: five bytes of NOP, or a jump. */
u32 switched_function(void);
extern u8 switch_site[], switch_target[];
asm(".globl switched_function\n"
    ".type switched_function, @function\n"
    "switched_function:\n"
    "   xorl %eax, %eax\n"
    "switch_site: .byte 0x0f, 0x1f, 0x44, 0x00, 0x00\n"
    "   ret\n"
    "switch_target:\n"
    "   incl %eax\n"
    "   ret\n"
    ".size switched_function, . - switched_function\n");

static void report_kernel_text(void)
{
    u32 sum = 0;
    for (u32 i = 1; i <= 10; i++) {
        *(volatile u32 *)patched_immediate = i;
        sum += patched_function();
    }
    report(sum == 55, "kernel: an immediate in the kernel's text");

    u32 off = switched_function();
    *(volatile u32 *)(switch_site + 1) = (u32)(switch_target - (switch_site + 5));
    *(volatile u8 *)switch_site = 0xe9;
    u32 on = switched_function();
    report(off == 0 && on == 1, "kernel: a NOP in the kernel's text becomes a jump");
}

/* --- by page tables --- */

static void put_constant(u8 *at, u32 value)
{
    at[0] = 0xb8; /* mov eax, value; ret */
    *(volatile u32 *)(at + 1) = value;
    at[5] = 0xc3;
}

static u32 call_in_kernel(void)
{
    u32 (*volatile function)(void) = (u32 (*)(void))CODE;
    return function();
}

static u32 call_in_user(void) { return user_run((u32)user_call, user_stack(CODE, 0, 0)); }

/* Another page of code appears at the same address. */
static void report_remapped(const char *who, u32 (*call)(void))
{
    u8 *second = page_alloc();
    u32 digits = 0;
    put_constant(frames, 1);
    put_constant(second, 2);
    for (int i = 0; i < 6; i++) {
        page_map(&space, CODE, (u32)(i & 1 ? second : frames), PAGE_WRITE | PAGE_USER);
        invlpg((void *)CODE);
        digits = digits * 10 + call();
    }
    report(digits == 121212, "%s: two pages of code in turn at one address", who);
    page_map(&space, CODE, (u32)frames, PAGE_WRITE | PAGE_USER);
    invlpg((void *)CODE);
}

/* The kernel writes what user mode runs, as a loader or a debugger does. */
static void report_patched_from_kernel(void)
{
    u32 sum = 0;
    for (u32 i = 1; i <= 40; i++) {
        put_constant(frames, i); /* through the kernel's own mapping */
        sum += call_in_user();
    }
    report(sum == 820, "user: code written by the kernel between system calls");
}

void main(void)
{
    descriptors_setup();
    pic_setup();
    gate_set(SYSTEM_CALL, SEGMENT_PRESENT | SEGMENT_DPL(3) | GATE_INTERRUPT);
    frames = frames_alloc();
    report_patches("no paging", run_without_paging);

    space = address_space_new(0);
    page_map(&space, STACK, (u32)page_alloc(), PAGE_WRITE | PAGE_USER);
    for (u32 at = 0; at < CODE_PAGES * PAGE_SIZE; at += PAGE_SIZE) {
        page_map(&space, CODE + at, (u32)frames + at, PAGE_WRITE | PAGE_USER);
        page_map(&space, ALIAS + at, (u32)frames + at, PAGE_WRITE | PAGE_USER);
    }
    address_space_load(&space);
    report_patches("kernel", run_in_kernel);
    report_kernel_text();
    report_remapped("kernel", call_in_kernel);
    report_patches("user", run_in_user);
    report_remapped("user", call_in_user);
    report_patched_from_kernel();
}
