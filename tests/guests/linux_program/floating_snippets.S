/* floating_snippets.S: all registers of FPU and SSE filled, kept, and looked at. */
#include "addresses.h"
        .globl  keep_registers, read_xmm0
        .text

/* u32 keep_registers(u32 seed, u32 calls, u32 until) */
keep_registers:
        pushl   %ebx
        pushl   %esi
        pushl   %edi
        subl    $192, %esp
        movl    208(%esp), %ebx
        fninit
        .irp n, 0, 1, 2, 3, 4, 5, 6, 7
        leal    \n(%ebx), %eax
        movl    %eax, (%esp)
        fildl   (%esp)
        movd    %eax, %xmm\n
        pshufd  $0, %xmm\n, %xmm\n
        .endr
        movl    212(%esp), %esi
1:      testl   %esi, %esi
        jz      2f
        movl    $158, %eax      /* sched_yield */
        int     $0x80
        decl    %esi
        jmp     1b
2:      movl    216(%esp), %eax
        cmpl    %eax, alarms
        jb      2b
        .irp n, 0, 1, 2, 3, 4, 5, 6, 7
        movups  %xmm\n, 16*\n(%esp)
        fistpl  160-4*\n-4(%esp) /* the last one filled comes first */
        .endr
        xorl    %eax, %eax
        xorl    %ecx, %ecx
3:      leal    (%ebx,%ecx), %edx
        cmpl    %edx, 128(%esp,%ecx,4)
        jne     4f
        incl    %eax
4:      movl    %ecx, %edi
        shll    $4, %edi
        cmpl    %edx, 12(%esp,%edi)
        jne     5f
        incl    %eax
5:      incl    %ecx
        cmpl    $8, %ecx
        jb      3b
        addl    $192, %esp
        popl    %edi
        popl    %esi
        popl    %ebx
        ret

read_xmm0:
        fninit
        fld1
        movl    $0x1f80, DATA
        ldmxcsr DATA
        movl    $0x1234, %eax
        movd    %eax, %xmm0
        ud2
        movd    %xmm0, %eax
        jmp     attempt_passed
        .section .note.GNU-stack, "", @progbits
