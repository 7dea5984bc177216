/* boot.S: where a kernel starts: the multiboot header, a stack, and the call of main().
 *
 * A multiboot 1 loader finds the header in the first 8 KiB of the file, loads the ELF segments, and jumps to `start` in 32-bit
 * protected mode: paging off, interrupts off, flat segments of unknown selectors, EAX = magic, EBX = address of the information.
 * (Multiboot Specification 0.6.96, 3.1 "OS image format" and 3.2 "Machine state".)
 */
#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 0x00000003      /* modules page-aligned; tell us the memory */

        .section .multiboot, "a"
        .balign 4
        .long   MULTIBOOT_MAGIC
        .long   MULTIBOOT_FLAGS
        .long   -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

        .text
        .globl  start
        .type   start, @function
start:
        movl    $boot_stack_top, %esp
        pushl   $0                      /* start from known flags: IF, DF, TF, IOPL, NT all clear */
        popfl
        xorl    %ebp, %ebp              /* the back-trace ends here */
        pushl   %ebx
        pushl   %eax
        call    kernel_start            /* multiboot.c; does not return */
        .size   start, . - start

        .bss
        .balign 4096
boot_stack:
        .skip   16384
        .globl  boot_stack_top
boot_stack_top:

        .section .note.GNU-stack, "", @progbits
