/* code_snippets.S: functions of one argument that rewrite themselves, to be copied where they may. */
        .globl  own_next, own_next_end, own_loop, own_loop_end
        .text
/* Writes its argument into its next instruction, and returns it. */
own_next:
        movl    4(%esp), %ecx
        call    1f
1:      popl    %edx
        movl    %ecx, 3f+1-1b(%edx)
3:      movl    $0, %eax
        ret
own_next_end:

/* Adds a number as often as told, and writes after each round what the next one adds: 1, 2, 3 and so on. */
own_loop:
        movl    4(%esp), %ecx
        xorl    %eax, %eax
        call    1f
1:      popl    %edx
        movl    $1, 3f+1-1b(%edx)
2:
3:      .byte   0x05, 1, 0, 0, 0 /* addl $1, %eax with four bytes for the number */
        incl    3b+1-1b(%edx)
        loop    2b
        ret
own_loop_end:
        .section .note.GNU-stack, "", @progbits
