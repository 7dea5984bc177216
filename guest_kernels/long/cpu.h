/* cpu.h: the instructions that C cannot say, in 64-bit code. Those that both kinds of code have are in lib/cpu.h. */
#pragma once
#include "../lib/types.h"

#define MSR_STAR 0xc0000081u
#define MSR_LSTAR 0xc0000082u
#define MSR_SFMASK 0xc0000084u
#define MSR_FS_BASE 0xc0000100u
#define MSR_GS_BASE 0xc0000101u
#define MSR_KERNEL_GS_BASE 0xc0000102u
#define EFER_SCE (1u << 0)
#define EFER_LME (1u << 8)
#define EFER_LMA (1u << 10)

/* The operand of LIDT in 64-bit code: SDM 3A 2.4.3 "IDTR Interrupt Descriptor Table Register". */
struct long_table_register {
    u16 limit;
    u64 base;
} __attribute__((packed));

static inline u64 read_msr(u32 msr)
{
    u32 low, high;
    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (u64)high << 32 | low;
}

static inline void write_msr(u32 msr, u64 value)
{
    asm volatile("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

#define LONG_CONTROL_REGISTER(n)                                                        \
    static inline u64 read_long_cr##n(void)                                             \
    {                                                                                   \
        u64 value;                                                                      \
        asm volatile("movq %%cr" #n ", %0" : "=r"(value) : : "memory");                 \
        return value;                                                                   \
    }                                                                                   \
    static inline void write_long_cr##n(u64 value) { asm volatile("movq %0, %%cr" #n : : "r"(value) : "memory"); }
LONG_CONTROL_REGISTER(0)
LONG_CONTROL_REGISTER(2)
LONG_CONTROL_REGISTER(3)
LONG_CONTROL_REGISTER(4)
LONG_CONTROL_REGISTER(8)

static inline void load_idt(const struct long_table_register *r) { asm volatile("lidt %0" : : "m"(*r)); }
static inline void load_task(u16 selector) { asm volatile("ltr %0" : : "r"(selector)); }
static inline void swapgs(void) { asm volatile("swapgs" : : : "memory"); }
static inline void invalidate(const volatile void *address) { asm volatile("invlpg (%0)" : : "r"(address) : "memory"); }

static inline u64 read_gs_word(void)
{
    u64 value;
    asm volatile("movq %%gs:0, %0" : "=r"(value));
    return value;
}

static inline u64 read_fs_word(void)
{
    u64 value;
    asm volatile("movq %%fs:0, %0" : "=r"(value));
    return value;
}
