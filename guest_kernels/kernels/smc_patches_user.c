/* smc_patches_user.c: ways of modifying code, each a function whose result tells whether the new code ran.
 *
 * They lie in the user section: the kernel calls them and user mode runs them. The code they write is so short that it stands here as bytes.
 * SDM 3A 9.1.3 "Handling Self- and Cross-Modifying Code": a jump, or a serializing instruction, between the store and the new code.
 */
#include "smc.h"

typedef u32 function(void);

static function *callable(u8 *code)
{
    asm volatile("" : "+r"(code) : : "memory"); /* the compiler must have stored the code by now, and must not know what it calls */
    return (function *)code;
}

static u8 *emit_byte(u8 *at, u8 byte)
{
    *at++ = byte;
    return at;
}

static u8 *emit_word(u8 *at, u32 word)
{
    *(volatile u32 *)at = word;
    return at + 4;
}

/* mov eax, value; ret */
static void emit_constant(u8 *at, u32 value)
{
    at = emit_byte(at, 0xb8);
    at = emit_word(at, value);
    emit_byte(at, 0xc3);
}

static u32 patch_immediate(u8 *code, u8 *alias)
{
    (void)alias;
    u32 sum = 0;
    emit_constant(code, 0);
    for (u32 i = 1; i <= 100; i++) {
        emit_word(code + 1, i);
        sum += callable(code)();
    }
    return sum;
}

/* mov dword [next + 1], value; jmp next; next: mov eax, 1; ret */
static u32 patch_next_instruction(u8 *code, u8 *alias)
{
    (void)alias;
    u32 sum = 0;
    for (u32 value = 10; value < 13; value++) {
        u8 *at = code;
        at = emit_byte(at, 0xc7);
        at = emit_byte(at, 0x05);
        at = emit_word(at, (u32)code + 13);
        at = emit_word(at, value);
        at = emit_byte(at, 0xeb);
        at = emit_byte(at, 0x00);
        emit_constant(at, 1);
        sum = sum * 100 + callable(code)();
    }
    return sum;
}

/* xor eax, eax; mov ecx, 10; again: add eax, 1; inc byte [the 1]; loop again; ret */
static u32 patch_own_loop(u8 *code, u8 *alias)
{
    (void)alias;
    static const u8 head[] = {0x31, 0xc0, 0xb9, 10, 0, 0, 0, 0x83, 0xc0, 1, 0xfe, 0x05};
    u8 *at = code;
    for (u32 i = 0; i < sizeof head; i++)
        at = emit_byte(at, head[i]);
    at = emit_word(at, (u32)code + 9);
    at = emit_byte(at, 0xe2);
    at = emit_byte(at, (u8)(7 - 18));
    emit_byte(at, 0xc3);
    return callable(code)();
}

static u32 patch_through_alias(u8 *code, u8 *alias)
{
    u32 sum = 0;
    emit_constant(code, 1);
    for (u32 i = 0; i < 50; i++) {
        sum += callable(code)();
        emit_word(alias + 1, i + 2);
        u32 leaf = 0; /* another linear address: the manual wants a serializing instruction */
        asm volatile("cpuid" : "+a"(leaf) : : "ebx", "ecx", "edx", "memory");
    }
    return sum;
}

/* inc dword [counter]; mov eax, [counter]; ret, with the counter on the same page */
static u32 data_beside_code(u8 *code, u8 *alias)
{
    (void)alias;
    u8 *counter = code + 0x800, *at = code;
    emit_word(counter, 0);
    at = emit_byte(at, 0xff);
    at = emit_byte(at, 0x05);
    at = emit_word(at, (u32)counter);
    at = emit_byte(at, 0xa1);
    at = emit_word(at, (u32)counter);
    emit_byte(at, 0xc3);
    u32 last = 0;
    for (int i = 0; i < 400; i++)
        last = callable(code)();
    return last;
}

static void copy_code(u8 *to, const u8 *from, u32 bytes)
{
    asm volatile("cld; rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory", "cc");
}

static u32 copied_functions(u8 *code, u8 *alias)
{
    (void)alias;
    static const u8 five[] = {0x6a, 5, 0x58, 0xc3};              /* push 5; pop eax; ret */
    static const u8 seven[] = {0x31, 0xc0, 0x04, 7, 0x90, 0xc3}; /* xor eax, eax; add al, 7; nop; ret */
    u32 digits = 0;
    for (int i = 0; i < 3; i++) {
        copy_code(code, five, sizeof five);
        digits = digits * 10 + callable(code)();
        copy_code(code, seven, sizeof seven);
        digits = digits * 10 + callable(code)();
    }
    return digits;
}

/* The instruction starts on one page; its immediate, which changes, lies on the next. */
static u32 patch_over_page_end(u8 *code, u8 *alias)
{
    (void)alias;
    u8 *at = code + 4095;
    u32 sum = 0;
    emit_constant(at, 1);
    for (u32 i = 0; i < 20; i++) {
        sum += callable(at)();
        emit_word(at + 1, i * 3);
    }
    return sum;
}

/* What a small compiler does: new code all over the page, again and again. */
static u32 rewrite_page(u8 *code, u8 *alias)
{
    (void)alias;
    u32 sum = 0;
    for (u32 generation = 0; generation < 30; generation++)
        for (u32 slot = 0; slot < 8; slot++) {
            u8 *at = code + slot * 64;
            emit_constant(at, generation * slot);
            sum += callable(at)();
        }
    return sum;
}

/* call callee; ret: the code that runs stays, what it calls is replaced. */
static u32 patch_callee(u8 *code, u8 *alias)
{
    (void)alias;
    u8 *callee = code + 0x400, *at = code;
    at = emit_byte(at, 0xe8);
    at = emit_word(at, (u32)(callee - (code + 5)));
    emit_byte(at, 0xc3);
    u32 digits = 0;
    for (u32 i = 1; i < 8; i++) {
        emit_constant(callee, i);
        digits = digits * 10 + callable(code)();
    }
    return digits;
}

const struct patch patches[] = {
    {"an immediate changed 100 times", patch_immediate, 5050},
    {"the instruction after a jump, changed just before it", patch_next_instruction, 101112},
    {"a loop that changes its own body", patch_own_loop, 55},
    {"code changed through another mapping", patch_through_alias, 1275},
    {"data on the code's page, 400 stores", data_beside_code, 400},
    {"a function copied over another", copied_functions, 575757},
    {"an instruction over the end of a page", patch_over_page_end, 514},
    {"a page rewritten 30 times", rewrite_page, 12180},
    {"the callee of running code", patch_callee, 1234567},
};
const u32 patch_count = sizeof patches / sizeof *patches;

asm(".globl user_call\n"
    "user_call:\n"
    "   popl %eax\n"
    "   call *%eax\n"
    "   int $0x80\n");
