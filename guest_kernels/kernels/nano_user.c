/* nano_user.c: the user mode half of the row `syscall`. */
#include "nano.h"

/* What lies between the first call's return and the last one's entry is as much as one call, so n - 1 stand between them. */
asm(".text\n"
    ".globl user_calls\n"
    ".type user_calls, @function\n"
    "user_calls:\n"
    "   popl %ebx\n"
    "   movl $1, %eax\n" /* CALL_FIRST */
    "   int $0x80\n"
    "   jmp 2f\n"
    "1: movl $2, %eax\n" /* CALL_NOTHING */
    "   int $0x80\n"
    "2: decl %ebx\n"
    "   jnz 1b\n"
    "   movl $3, %eax\n" /* CALL_LAST */
    "   int $0x80\n"
    "   jmp .\n"
    ".size user_calls, . - user_calls\n");
