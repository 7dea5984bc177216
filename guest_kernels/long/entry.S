/* entry.S: where a 64-bit kernel starts: the multiboot header, the switch to long mode, and the call of main().
 *
 * A multiboot loader starts a kernel in 32-bit protected mode (lib/boot.S). Long mode is entered by turning paging on while EFER.LME is set:
 * SDM 3A 9.8.5 "Initializing IA-32e Mode Operation". The first gibibyte is mapped to itself, for the kernel only.
 */
#include "selectors.h"

#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 0x00000003      /* modules page-aligned; tell us the memory */

#define PRESENT_WRITABLE 3
#define USER 4
#define LARGE 0x80
#define EFER 0xc0000080

        .section .multiboot, "a"
        .balign 4
        .long   MULTIBOOT_MAGIC
        .long   MULTIBOOT_FLAGS
        .long   -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

        .text
        .code32
        .globl  start
        .type   start, @function
start:
        movl    $boot_stack_top, %esp
        pushl   $0
        popfl
        movl    %eax, %edi              /* magic and information: the first two parameters of a 64-bit function */
        movl    %ebx, %esi
        movl    $0x80000000, %eax
        cpuid
        cmpl    $0x80000001, %eax
        jb      no_long_mode
        movl    $0x80000001, %eax
        cpuid
        btl     $29, %edx
        jnc     no_long_mode

        movl    $pointers + PRESENT_WRITABLE + USER, top_table /* other pages below it may be the user's */
        movl    $directory + PRESENT_WRITABLE, pointers
        movl    $PRESENT_WRITABLE | LARGE, %eax
        xorl    %ecx, %ecx
1:      movl    %eax, directory(, %ecx, 8)
        addl    $0x200000, %eax
        incl    %ecx
        cmpl    $512, %ecx
        jb      1b

        movl    %cr4, %eax
        orl     $1 << 5, %eax           /* PAE */
        movl    %eax, %cr4
        movl    $top_table, %eax
        movl    %eax, %cr3
        movl    $EFER, %ecx
        rdmsr
        orl     $1 << 11 | 1 << 8 | 1, %eax /* NXE, LME, SCE */
        wrmsr
        movl    %cr0, %eax
        orl     $1 << 31 | 1 << 16, %eax /* PG, WP */
        movl    %eax, %cr0
        lgdt    gdt_register
        ljmp    $KERNEL_CODE, $long_start

no_long_mode:
        movl    $message, %esi
        movl    $0x3f8, %edx
2:      lodsb
        testb   %al, %al
        jz      3f
        outb    %al, %dx
        jmp     2b
3:      movb    $1, %al
        outb    %al, $0xf4
4:      cli
        hlt
        jmp     4b
        .size   start, . - start

        .code64
        .type   long_start, @function
long_start:
        movl    $KERNEL_DATA, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        xorl    %eax, %eax
        movl    %eax, %fs
        movl    %eax, %gs
        movq    $boot_stack_top, %rsp
        xorl    %ebp, %ebp              /* the back-trace ends here */
        call    kernel_start            /* multiboot.c; does not return */
        .size   long_start, . - long_start

        .section .rodata
message:
        .asciz  "FAIL: the CPU has no long mode\r\n"
        .balign 4
gdt_register:
        .word   gdt_end - gdt - 1
        .long   gdt

        .data
        .balign 8
        .globl  gdt
gdt:
        .quad   0
        .quad   0x00af9b000000ffff      /* KERNEL_CODE: 64-bit */
        .quad   0x00cf93000000ffff      /* KERNEL_DATA */
        .quad   0x00cffb000000ffff      /* USER_CODE_32: SYSRET wants the three of the user in this order */
        .quad   0x00cff3000000ffff      /* USER_DATA */
        .quad   0x00affb000000ffff      /* USER_CODE: 64-bit */
        .quad   0, 0                    /* TASK_STATE: trap.c */
gdt_end:

        .bss
        .balign 4096
        .globl  top_table
top_table:
        .skip   4096
pointers:
        .skip   4096
directory:
        .skip   4096
boot_stack:
        .skip   16384
boot_stack_top:

        .section .note.GNU-stack, "", @progbits
