/* rings_user.c: four programs that run in user mode. Each computes the same thing over and over, until the kernel, which knows the
 * result, has seen it pre-empted often enough. They share this code; what they write lies in their private page and on their stack. */
#include "rings.h"

#define MINE ((volatile struct private_page *)PRIVATE_PAGE)

static u32 call(enum system_call number, u32 value)
{
    u32 result;
    asm volatile("int $0x80" : "=a"(result) : "a"(number), "b"(value) : "memory");
    return result;
}

/* POPF in user mode with IOPL 0 leaves IF alone, silently (SDM 2B "POPF"): a program can't turn interrupts off. */
static int interrupts_stay_on(void)
{
    u32 flags;
    asm volatile("pushfl; popl %0; andl $~0x200, %0; pushl %0; popfl; pushfl; popl %0" : "=r"(flags) : : "cc");
    return (flags & 0x200) != 0;
}

/* The life of every program. */
static void repeat(u32 process, u32 (*compute)(void))
{
    do {
        u32 result = compute();
        MINE->rounds++;
        if (MINE->process != process)
            call(CALL_BROKEN, 1);
        if (!interrupts_stay_on())
            call(CALL_BROKEN, 2);
        if (!call(CALL_RESULT, result))
            break;
    } while (1);
    call(CALL_SLEEP, 2);
    call(CALL_EXIT, 0);
}

/* CRC-32 (the polynomial of Ethernet), bit by bit, of 4,096 bytes of a simple random sequence. */
static u32 checksum(void)
{
    u32 crc = 0xffffffff, random = 1;
    for (int i = 0; i < 4096; i++) {
        random = random * 1664525 + 1013904223;
        crc ^= random >> 24;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc;
}

/* How many primes there are below 4,000, by division. */
static u32 primes(void)
{
    u32 found = 0;
    for (u32 n = 2; n < 4000; n++) {
        u32 d = 2;
        while (d * d <= n && n % d)
            d++;
        found += d * d > n;
    }
    return found;
}

/* 1/(1*2) + 1/(2*3) + ... + 1/(999*1000) = 1 - 1/1000, in millionths, on the FPU. */
static u32 series(void)
{
    double sum = 0;
    for (int k = 1; k < 1000; k++)
        sum += 1.0 / ((double)k * (k + 1));
    return (u32)(int)(sum * 1e6 + 0.5);
}

/* Spins with a pattern in every general register, all eight FPU registers, the FPU control word, DF and CF, then looks whether they are
 * still there: 0 when they are. */
u32 spin_with_patterns(void);
asm(".text\n"
    ".globl spin_with_patterns\n"
    ".type spin_with_patterns, @function\n"
    "spin_with_patterns:\n"
    "   pushal\n"
    "   fninit\n"
    "   pushl $0x0f7f\n"          /* round to zero, extended precision, all exceptions masked */
    "   fldcw (%esp)\n"
    "   fld1; fldpi; fldl2t; fldl2e; fldlg2; fldln2; fldz; fld1\n"
    "   movl $0x11111111, %eax; movl $0x22222222, %ebx; movl $0x33333333, %edx\n"
    "   movl $0x44444444, %esi; movl $0x55555555, %edi; movl $0x66666666, %ebp\n"
    "   movl $60000, %ecx\n"
    "   std; stc\n"
    "1: leal -1(%ecx), %ecx\n"    /* LEA and JECXZ leave the flags alone */
    "   jecxz 2f\n"
    "   jmp 1b\n"
    "2: jnc 9f\n"
    "   pushfl; testl $0x400, (%esp); leal 4(%esp), %esp; jz 9f\n"
    "   cld\n"
    "   cmpl $0x11111111, %eax; jne 9f\n"
    "   cmpl $0x22222222, %ebx; jne 9f\n"
    "   cmpl $0x33333333, %edx; jne 9f\n"
    "   cmpl $0x44444444, %esi; jne 9f\n"
    "   cmpl $0x55555555, %edi; jne 9f\n"
    "   cmpl $0x66666666, %ebp; jne 9f\n"
    "   fnstcw (%esp); cmpw $0x0f7f, (%esp); jne 9f\n"
    "   fld1;   fcompp; fnstsw %ax; testb $0x40, %ah; jz 9f\n" /* C3: equal */
    "   fldz;   fcompp; fnstsw %ax; testb $0x40, %ah; jz 9f\n"
    "   fldln2; fcompp; fnstsw %ax; testb $0x40, %ah; jz 9f\n"
    "   fldlg2; fcompp; fnstsw %ax; testb $0x40, %ah; jz 9f\n"
    "   fldl2e; fcompp; fnstsw %ax; testb $0x40, %ah; jz 9f\n"
    "   fldl2t; fcompp; fnstsw %ax; testb $0x40, %ah; jz 9f\n"
    "   fldpi;  fcompp; fnstsw %ax; testb $0x40, %ah; jz 9f\n"
    "   fld1;   fcompp; fnstsw %ax; testb $0x40, %ah; jz 9f\n"
    "   addl $4, %esp\n"
    "   popal\n"
    "   xorl %eax, %eax\n"
    "   ret\n"
    "9: cld\n"
    "   addl $4, %esp\n"
    "   popal\n"
    "   movl $1, %eax\n"
    "   ret\n"
    ".size spin_with_patterns, . - spin_with_patterns\n");

void checksum_program(void) { repeat(0, checksum); }
void primes_program(void) { repeat(1, primes); }
void series_program(void) { repeat(2, series); }
void registers_program(void) { repeat(3, spin_with_patterns); }
