/* sensitive_run.S: into a case with all registers set, and out of it from wherever a trap found it. */
#define KERNEL_DATA 0x10

/* struct registers */
#define EAX 0
#define ECX 4
#define EDX 8
#define EBX 12
#define ESP 16
#define EBP 20
#define ESI 24
#define EDI 28
#define EIP 32
#define EFLAGS 36
#define CS 40
#define SS 44
#define DS 48
#define ES 52
#define FS 56
#define GS 60

        .text
        .globl  case_run
        .type   case_run, @function
case_run:
        pushl   %ebp
        pushl   %ebx
        pushl   %esi
        pushl   %edi
        pushfl
        movl    %esp, case_return_esp
        pushl   %esp
        call    kernel_stack_set        /* traps from user mode land right below this frame */
        addl    $4, %esp
        testb   $3, case_registers+CS
        jz      1f
        pushl   case_registers+SS
        pushl   case_registers+ESP
        pushl   case_registers+EFLAGS
        pushl   case_registers+CS
        pushl   case_registers+EIP
        jmp     2f
1:      movl    case_registers+ESP, %esp /* in the kernel IRET pops EIP, CS and EFLAGS only: below the case's stack pointer */
        pushl   case_registers+EFLAGS
        pushl   case_registers+CS
        pushl   case_registers+EIP
2:      movl    case_registers+FS, %eax
        movl    %eax, %fs
        movl    case_registers+GS, %eax
        movl    %eax, %gs
        movl    case_registers+ES, %eax
        movl    %eax, %es
        movl    case_registers+DS, %eax
        movl    %eax, %ds
        movl    case_registers+EAX, %eax
        movl    case_registers+ECX, %ecx
        movl    case_registers+EDX, %edx
        movl    case_registers+EBX, %ebx
        movl    case_registers+EBP, %ebp
        movl    case_registers+ESI, %esi
        movl    case_registers+EDI, %edi
        iret
        .size   case_run, . - case_run

        .globl  case_leave
        .type   case_leave, @function
case_leave:
        movl    $KERNEL_DATA, %eax
        movl    %eax, %ss
        movl    case_return_esp, %esp
        popfl
        popl    %edi
        popl    %esi
        popl    %ebx
        popl    %ebp
        ret
        .size   case_leave, . - case_leave

        .bss
        .balign 4
        .globl  case_registers
case_registers:
        .skip   64
case_return_esp:
        .skip   4

        .section .note.GNU-stack, "", @progbits
