/* faults_snippets.S: code that raises a signal, each piece beside its name. One that does not comes to `attempt_passed`. */
#include "addresses.h"
#define SNIPPETS .rodata.table
#include "snippets.h"

        .section SNIPPETS, "a"
        .balign 4
        .globl  fault_snippets, fault_snippets_end
fault_snippets:

        .text
try "divl by zero"
        xorl    %ecx, %ecx
        divl    %ecx
        done
try "idivl that overflows"
        movl    $0x80000000, %eax
        cltd
        movl    $-1, %ecx
        idivl   %ecx
        done
try "aam 0"
        .byte   0xd4, 0
        done
try "int3"
        int3
        done
try "int 3 in two bytes"
        .byte   0xcd, 3
        done
try "into"
        movb    $127, %al
        addb    $1, %al
        into
        done
try "into without overflow"
        xorl    %eax, %eax
        into
        done
try "int 4 in two bytes"
        .byte   0xcd, 4
        done
try "bound"
        pushl   $5
        pushl   $1
        movl    $6, %eax
        bound   %eax, (%esp)
        done
try "ud2"
        ud2
        done
try "mov to cs"
        .byte   0x8e, 0xc8
        done
try "single step"
        pushf
        orl     $0x100, (%esp)
        popf
        nop
        done
try "popf of everything"
        pushl   $0x3ed7
        popf
        done
try "alignment check"
        pushf
        orl     $0x40000, (%esp)
        popf
        movl    DATA+1, %eax
        done

try "hlt"
        hlt
        done
try "cli"
        cli
        done
try "sti"
        sti
        done
try "inb"
        inb     $0x60, %al
        done
try "outb"
        outb    %al, $0x80
        done
try "mov from cr0"
        movl    %cr0, %eax
        done
try "mov to cr3"
        movl    %eax, %cr3
        done
try "mov from dr7"
        movl    %dr7, %eax
        done
try "clts"
        clts
        done
try "lgdt"
        lgdt    DATA
        done
try "ltr"
        ltr     %ax
        done
try "lldt"
        lldt    %ax
        done
try "rdmsr"
        rdmsr
        done
try "wrmsr"
        wrmsr
        done
try "wbinvd"
        wbinvd
        done
try "invlpg"
        invlpg  DATA
        done
try "sysexit"
        sysexit
        done
try "int 20h"
        int     $0x20
        done
try "int 81h"
        int     $0x81
        done
try "int 0dh"
        int     $0x0d
        done

try "mov to ds beyond the GDT"
        movl    $0x1003, %eax
        movl    %eax, %ds
        done
try "mov to ds of the kernel's code"
        movl    $KERNEL_CS, %eax
        movl    %eax, %ds
        done
try "mov to es without an LDT"
        movl    $LDT_SELECTOR(0), %eax
        movl    %eax, %es
        done
try "mov of null to ss"
        xorl    %eax, %eax
        movl    %eax, %ss
        done
try "mov of null to gs"
        xorl    %eax, %eax
        movl    %eax, %gs
        done
try "mov of the user's own code to ss"
        movl    $USER_CS, %eax
        movl    %eax, %ss
        done
try "lss from nowhere"
        lss     HOLE, %esp
        done
try "jmp far to null"
        ljmp    $0, $0
        done
try "jmp far to the kernel's code"
        ljmp    $KERNEL_CS, $KERNEL
        done
try "call far to the task register's segment"
        lcall   $0x80, $0
        done
try "ret far to null"
        pushl   $0
        pushl   $0
        lret
        done
try "ret far to the user's own code"
        pushl   $USER_CS
        pushl   $attempt_passed
        lret
try "iret to the user's own code"
        pushl   $0x2d7
        pushl   $USER_CS
        pushl   $attempt_passed
        iret
try "iret to the kernel's code"
        pushl   $0x202
        pushl   $KERNEL_CS
        pushl   $KERNEL
        iret

try "read of address 0"
        movl    0, %eax
        done
try "write to address 0"
        movl    %eax, 0
        done
try "jmp to address 0"
        xorl    %eax, %eax
        jmp     *%eax
try "call of address 0"
        xorl    %eax, %eax
        call    *%eax
try "read of the kernel"
        movl    KERNEL, %eax
        done
try "write to the kernel"
        movl    %eax, KERNEL
        done
try "jmp to the kernel"
        movl    $KERNEL, %eax
        jmp     *%eax
try "write to a page to read only"
        movl    %eax, CONSTANT
        done
try "addl to a page to read only"
        addl    %eax, CONSTANT
        done
try "addl to an absent page"
        addl    %eax, HOLE
        done
try "lock incl of an absent page"
        lock incl HOLE
        done
try "xchg with an absent page"
        xchg    %eax, HOLE
        done
try "cmpxchg that differs, with a page to read only"
        cmpxchg %ecx, CONSTANT
        done
try "movl over the end of a page"
        movl    HOLE-2, %eax
        done
try "write over the end of a page"
        movl    %eax, HOLE-2
        done
try "rep movsb over the end of a page"
        movl    $CONSTANT, %esi
        movl    $HOLE-10, %edi
        movl    $20, %ecx
        rep movsb
        done
try "rep movsl backwards from an absent page"
        movl    $HOLE+8, %esi
        movl    $DATA+0x100, %edi
        movl    $20, %ecx
        std
        rep movsl
        done
try "repne scasb to the end of a page"
        movl    $HOLE-10, %edi
        movl    $20, %ecx
        movb    $0x77, %al
        repne scasb
        done
try "push below a page"
        movl    $CONSTANT+4, %esp
        pushl   %eax
        done
try "pusha over the end of a page"
        movl    $HOLE+16, %esp
        pusha
        done
try "popa over the end of a page"
        movl    $HOLE-16, %esp
        popa
        done
try "pop to an absent page"
        popl    HOLE
        done
try "enter on an absent stack"
        movl    $HOLE+0x100, %esp
        enter   $16, $0
        done
try "leave to an absent stack"
        movl    $HOLE, %ebp
        leave
        done
try "call on an absent stack"
        movl    $HOLE+0x100, %esp
        call    1f
1:      done
try "ret on an absent stack"
        movl    $HOLE, %esp
        ret
try "pushf on an absent stack"
        movl    $HOLE+0x100, %esp
        pushf
        done
try "int 80h on an absent stack"
        movl    $HOLE+0x100, %esp
        movl    $20, %eax
        int     $0x80
        xorl    %eax, %eax
        done
try "an instruction over the end of a page"
        movl    $BORDER+0xffd, %eax
        jmp     *%eax
try "data that is executed"
        movb    $0xcc, DATA
        movl    $DATA, %eax
        jmp     *%eax
try "xlat from an absent page"
        movl    $HOLE, %ebx
        xlat
        done
try "lods with a prefix for fs, which is null"
        movl    $HOLE, %esi
        lodsl   %fs:(%esi)
        done
try "cmpxchg8b with an absent page"
        lock cmpxchg8b HOLE
        done

try "x87 division by zero"
        fninit
        pushw   $0x37b
        fldcw   (%esp)
        fld1
        fldz
        fdivrp  %st, %st(1)
        fwait
        done
try "x87 stack overflow"
        fninit
        pushw   $0x37e
        fldcw   (%esp)
        .rept 9
        fld1
        .endr
        fwait
        done
try "SSE division by zero"
        pushl   $0x1d80
        ldmxcsr (%esp)
        pxor    %xmm0, %xmm0
        movl    $0x3f800000, DATA
        movss   DATA, %xmm1
        divss   %xmm0, %xmm1
        done
try "fld from an absent page"
        fldl    HOLE
        done
try "fxsave that is not aligned"
        fxsave  DATA+8
        done
try "fxrstor with reserved bits of MXCSR"
        fxsave  DATA
        movl    $-1, DATA+24
        fxrstor DATA
        done
try "ldmxcsr with reserved bits"
        pushl   $-1
        ldmxcsr (%esp)
        done
try "movaps to an absent page"
        movaps  %xmm0, HOLE
        done
try "movaps that is not aligned"
        movaps  DATA+8, %xmm0
        done
try "maskmovdqu to an absent page"
        movl    $HOLE, %edi
        pcmpeqd %xmm1, %xmm1
        maskmovdqu %xmm1, %xmm0
        done

        .section SNIPPETS, "a"
fault_snippets_end:
        .section .note.GNU-stack, "", @progbits
