/* faults_snippets.S: user code that faults, each piece beside what must come of it.
 *
 * `expect` opens a piece and adds its row to the table; the label 2 is where EIP must point: at the instruction for a fault, after it
 * for a trap. A piece that does not fault falls into its INT 80h.
 */
#include "faults.h"
#include "../lib/selectors.h"

#define IDT_ERROR(vector) ((vector) * 8 + 2) /* SDM 3A 6.13 "Error Code": bit 1 says that the index is one of the IDT */

#define DIVIDE_ERROR 0
#define BREAKPOINT 3
#define OVERFLOW 4
#define BOUND_RANGE 5
#define INVALID_OPCODE 6
#define NOT_PRESENT 11
#define GENERAL_PROTECTION 13

.macro expect vector, error, what:vararg
        .pushsection .rodata.snippets
        .long   1f, 2f, \vector, \error, 3f
        .popsection
        .pushsection .rodata.strings
3:      .asciz  \what
        .popsection
        .pushsection .user, "ax"
1:
.endm

.macro done
        int     $0x80
        .popsection
.endm

        .section .rodata.snippets, "a"
        .balign 4
        .globl  user_snippets
user_snippets:

expect DIVIDE_ERROR, 0, "user: division by zero"
        xorl    %ecx, %ecx
2:      divl    %ecx
        done
expect BREAKPOINT, 0, "user: int3"
        int3
2:      done
expect OVERFLOW, 0, "user: into"
        movb    $127, %al
        addb    $1, %al
        into
2:      done
expect BOUND_RANGE, 0, "user: bound"
        pushl   $5
        pushl   $1
        movl    $6, %eax
2:      bound   %eax, (%esp)
        done
expect INVALID_OPCODE, 0, "user: ud2"
2:      ud2
        done
expect INVALID_OPCODE, 0, "user: mov to CS"
2:      .byte   0x8e, 0xc8
        done

expect GENERAL_PROTECTION, 0, "user: hlt"
2:      hlt
        done
expect GENERAL_PROTECTION, 0, "user: cli"
2:      cli
        done
expect GENERAL_PROTECTION, 0, "user: sti"
2:      sti
        done
expect GENERAL_PROTECTION, 0, "user: clts"
2:      clts
        done
expect GENERAL_PROTECTION, 0, "user: read of CR0"
2:      movl    %cr0, %eax
        done
expect GENERAL_PROTECTION, 0, "user: write of CR3"
2:      movl    %eax, %cr3
        done
expect GENERAL_PROTECTION, 0, "user: lmsw"
2:      lmsw    %ax
        done
expect GENERAL_PROTECTION, 0, "user: lgdt"
2:      lgdt    (%esp)
        done
expect GENERAL_PROTECTION, 0, "user: lidt"
2:      lidt    (%esp)
        done
expect GENERAL_PROTECTION, 0, "user: lldt"
        xorl    %eax, %eax
2:      lldt    %ax
        done
expect GENERAL_PROTECTION, 0, "user: ltr"
        movl    $TASK_STATE, %eax
2:      ltr     %ax
        done
expect GENERAL_PROTECTION, 0, "user: invlpg"
2:      invlpg  (%esp)
        done
expect GENERAL_PROTECTION, 0, "user: wbinvd"
2:      wbinvd
        done
expect GENERAL_PROTECTION, 0, "user: rdmsr"
        movl    $0x10, %ecx
2:      rdmsr
        done
expect GENERAL_PROTECTION, 0, "user: wrmsr"
        movl    $0x10, %ecx
2:      wrmsr
        done

expect GENERAL_PROTECTION, IDT_ERROR(14), "user: int 14, a gate of DPL 0"
2:      int     $14
        done
expect GENERAL_PROTECTION, IDT_ERROR(KERNEL_GATE), "user: int 91h, a gate of DPL 0"
2:      int     $KERNEL_GATE
        done
expect NOT_PRESENT, IDT_ERROR(ABSENT_GATE), "user: int 90h, a gate that is not present"
2:      int     $ABSENT_GATE
        done
expect GENERAL_PROTECTION, ERROR_OF(KERNEL_DATA), "user: kernel data into DS"
        movl    $KERNEL_DATA, %eax
2:      movl    %eax, %ds
        done
expect GENERAL_PROTECTION, ERROR_OF(KERNEL_DATA), "user: kernel data into SS"
        movl    $KERNEL_DATA, %eax
2:      movl    %eax, %ss
        done
expect GENERAL_PROTECTION, BEYOND_TABLE, "user: a selector beyond the GDT into ES"
        movl    $BEYOND_TABLE, %eax
2:      movl    %eax, %es
        done
expect NOT_PRESENT, ABSENT_DATA, "user: a segment that is not present into FS"
        movl    $ABSENT_DATA, %eax
2:      movl    %eax, %fs
        done
expect GENERAL_PROTECTION, ERROR_OF(KERNEL_CODE), "user: far jump to kernel code"
2:      ljmp    $KERNEL_CODE, $0
        done
expect GENERAL_PROTECTION, ERROR_OF(KERNEL_CODE), "user: far return to kernel code"
        pushl   $KERNEL_CODE
        pushl   $0
2:      lret
        done
expect GENERAL_PROTECTION, ERROR_OF(KERNEL_CODE), "user: iret to kernel code"
        pushfl
        pushl   $KERNEL_CODE
        pushl   $0
2:      iret
        done

        .globl  user_snippets_end
user_snippets_end:
        .globl  io_snippets
io_snippets:

expect GENERAL_PROTECTION, 0, "user: in"
        movl    $0x71, %edx
2:      inb     %dx, %al
        done
expect GENERAL_PROTECTION, 0, "user: out"
        movl    $0x80, %edx
2:      outb    %al, %dx
        done
expect GENERAL_PROTECTION, 0, "user: in from an immediate port"
2:      inb     $0x71, %al
        done
expect GENERAL_PROTECTION, 0, "user: out of four bytes"
        movl    $0x80, %edx
2:      outl    %eax, %dx
        done

        .globl  io_snippets_end
io_snippets_end:

        .section .user, "ax"
        .globl  user_read, user_write, user_fetch, user_fill, user_step
user_read:
        movl    (%esp), %edx
        movl    (%edx), %eax
        int     $0x80
user_write:
        movl    (%esp), %edx
        movl    $0x600df00d, (%edx)
        int     $0x80
user_fetch:
        movl    (%esp), %edx
        call    *%edx
        int     $0x80
user_fill:
        movl    (%esp), %edi
        movl    4(%esp), %ecx
        movl    8(%esp), %eax
        cld
        rep stosl
        movl    (%esp), %esi
        movl    4(%esp), %ecx
        xorl    %edx, %edx
1:      lodsl
        addl    %eax, %edx
        loop    1b
        movl    %edx, %eax
        int     $0x80
user_step:
        pushfl
        orl     $0x100, (%esp)          /* TF */
        popfl
        nop
        nop
        nop
        pushfl
        andl    $~0x100, (%esp)
        popfl
        int     $0x80

        .section .note.GNU-stack, "", @progbits
