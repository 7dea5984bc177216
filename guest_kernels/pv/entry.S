/* entry.S: where a paravirtual kernel starts, what it tells the domain builder, and the way back from traps.
 *
 * The builder reads the notes, loads the ELF segments, maps all of that at VIRT_BASE and jumps here at CPL 1 with paging on: ESI is the address
 * of the start info page, ESP that of a page of stack.
 */
#include "../lib/selectors.h"

        .macro  note type:req, words:vararg
        .balign 4
        .long   4, 2f - 1f, \type
        .asciz  "Xen"
1:      \words
2:      .balign 4
        .endm

        .section .note.Xen, "a", @note
        note    1, .long start                  /* entry */
        note    2, .long hypercall_page
        note    3, .long 0                      /* virtual base: everything is at its physical address */
        note    4, .long 0                      /* what the file's physical addresses lie above ours */
        note    5, .asciz "xen-3.0"
        note    6, .asciz "bundled"
        note    9, .asciz "yes"                 /* PAE */

        .text
        .globl  start
        .type   start, @function
start:
        movl    $boot_stack_top, %esp
        xorl    %ebp, %ebp                      /* the back-trace ends here */
        cld
        pushl   %esi
        call    paravirt_start                  /* start.c; does not return */
        .size   start, . - start

/* Upcalls come as a vector of their own. */
        .globl  upcall_entry
        .type   upcall_entry, @function
upcall_entry:
        pushl   $0
        pushl   $UPCALL_VECTOR
        jmp     trap_common
        .size   upcall_entry, . - upcall_entry

/* IRET, with the upcall mask as IF in the frame says. When an event came meanwhile the VMM does both at once. */
        .globl  paravirt_iret
        .type   paravirt_iret, @function
paravirt_iret:
        testl   $0x200, 8(%esp)
        jz      1f
        movb    $0, %ss:shared_info + 1
        testb   $1, %ss:shared_info
        jnz     2f
        iret
1:      movb    $1, %ss:shared_info + 1
        iret
2:      movb    $1, %ss:shared_info + 1
        jmp     hypercall_page + 32 * 23
        .size   paravirt_iret, . - paravirt_iret

        .section .text.hypercalls, "ax"
        .balign 4096
        .globl  hypercall_page
hypercall_page:
        .skip   4096

        .bss
        .balign 4096
        .globl  shared_info                     /* another page is mapped here */
shared_info:
        .skip   4096
boot_stack:
        .skip   16384
boot_stack_top:

        .section .note.GNU-stack, "", @progbits
