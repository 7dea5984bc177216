/* cpu.h: the instructions that C cannot say, one function each, named as the manual names them. */
#pragma once
#include "types.h"

#define EFLAGS_TF (1u << 8)
#define EFLAGS_IF (1u << 9)
#define EFLAGS_DF (1u << 10)
#define EFLAGS_IOPL (3u << 12)
#define EFLAGS_ALWAYS (1u << 1)

#define CR0_PE (1u << 0)
#define CR0_MP (1u << 1)
#define CR0_EM (1u << 2)
#define CR0_TS (1u << 3)
#define CR0_NE (1u << 5)
#define CR0_WP (1u << 16)
#define CR0_PG (1u << 31)

#define CR4_PSE (1u << 4)
#define CR4_PAE (1u << 5)
#define CR4_PGE (1u << 7)

#define MSR_EFER 0xc0000080u
#define EFER_NXE (1u << 11)

static inline void outw(u16 port, u16 value) { asm volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }

static inline u8 inb(u16 port)
{
    u8 value;
    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void insw(u16 port, void *to, u32 words)
{
    asm volatile("cld; rep insw" : "+D"(to), "+c"(words) : "d"(port) : "memory", "cc");
}

static inline void outsw(u16 port, const void *from, u32 words)
{
    asm volatile("cld; rep outsw" : "+S"(from), "+c"(words) : "d"(port) : "memory", "cc");
}

struct cpuid {
    u32 eax, ebx, ecx, edx;
};

static inline struct cpuid cpuid(u32 leaf)
{
    struct cpuid r;
    asm volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(0));
    return r;
}

static inline u64 rdmsr(u32 msr)
{
    u64 value;
    asm volatile("rdmsr" : "=A"(value) : "c"(msr));
    return value;
}

static inline void wrmsr(u32 msr, u64 value) { asm volatile("wrmsr" : : "c"(msr), "A"(value) : "memory"); }

/* The operand of LGDT, LIDT, SGDT and SIDT: SDM 3A 2.4.1 "Global Descriptor Table Register (GDTR)". */
struct table_register {
    u16 limit;
    u32 base;
} __attribute__((packed));

static inline u16 smsw(void)
{
    u16 word;
    asm volatile("smsww %0" : "=m"(word));
    return word;
}

#define SEGMENT_REGISTER(name)                                                          \
    static inline u16 read_##name(void)                                                 \
    {                                                                                   \
        u16 selector;                                                                   \
        asm volatile("movw %%" #name ", %0" : "=r"(selector));                          \
        return selector;                                                                \
    }
SEGMENT_REGISTER(cs)
SEGMENT_REGISTER(ss)
SEGMENT_REGISTER(ds)
SEGMENT_REGISTER(es)
SEGMENT_REGISTER(fs)
SEGMENT_REGISTER(gs)

/* What only a kernel may do. A paravirtual one asks for it. */
#ifdef PARAVIRT
#include "../pv/cpu.h"
#else

static inline void outb(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }

/* Ports are always open to this kernel. */
static inline void ports_open(int open) { (void)open; }

static inline void cli(void) { asm volatile("cli" : : : "memory"); }
static inline void sti(void) { asm volatile("sti" : : : "memory"); }
/* STI holds interrupts off for one more instruction, so nothing can slip in between it and HLT. */
static inline void sti_hlt(void) { asm volatile("sti; hlt" : : : "memory"); }

/* It holds them off for the CLI. */
static inline void sti_cli(void) { asm volatile("sti; cli" : : : "memory"); }

static inline u32 read_eflags(void)
{
    u32 value;
    asm volatile("pushfl; popl %0" : "=r"(value));
    return value;
}

static inline void write_eflags(u32 value) { asm volatile("pushl %0; popfl" : : "r"(value) : "memory", "cc"); }

#define CONTROL_REGISTER(n)                                                             \
    static inline u32 read_cr##n(void)                                                  \
    {                                                                                   \
        u32 value;                                                                      \
        asm volatile("movl %%cr" #n ", %0" : "=r"(value) : : "memory");                 \
        return value;                                                                   \
    }                                                                                   \
    static inline void write_cr##n(u32 value) { asm volatile("movl %0, %%cr" #n : : "r"(value) : "memory"); }
CONTROL_REGISTER(0)
CONTROL_REGISTER(2)
CONTROL_REGISTER(3)
CONTROL_REGISTER(4)

static inline void clts(void) { asm volatile("clts" : : : "memory"); }
static inline void invlpg(const volatile void *address) { asm volatile("invlpg (%0)" : : "r"(address) : "memory"); }

static inline void lgdt(const struct table_register *r) { asm volatile("lgdt %0" : : "m"(*r)); }
static inline void lidt(const struct table_register *r) { asm volatile("lidt %0" : : "m"(*r)); }
static inline void sgdt(struct table_register *r) { asm volatile("sgdt %0" : "=m"(*r)); }
static inline void sidt(struct table_register *r) { asm volatile("sidt %0" : "=m"(*r)); }
static inline void ltr(u16 selector) { asm volatile("ltr %0" : : "r"(selector)); }
static inline void lldt(u16 selector) { asm volatile("lldt %0" : : "r"(selector)); }

static inline u16 str(void)
{
    u16 selector;
    asm volatile("strw %0" : "=m"(selector));
    return selector;
}

static inline u16 sldt(void)
{
    u16 selector;
    asm volatile("sldtw %0" : "=m"(selector));
    return selector;
}

#endif
