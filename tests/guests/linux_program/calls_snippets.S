/* calls_snippets.S: port accesses. 80h to 82h take what is written to them on every PC. */
#include "addresses.h"
        .globl  port_80, port_81, ports_7f_80, port_70, own_cli, port_string
        .text
port_80:
        outb    %al, $0x80
        jmp     attempt_passed
port_81:
        outb    %al, $0x81
        jmp     attempt_passed
ports_7f_80:
        movl    $0x7f, %edx
        outw    %ax, %dx
        jmp     attempt_passed
port_70:
        inb     $0x71, %al
        movb    $0, %al
        jmp     attempt_passed
port_string:
        movl    $0x80, %edx
        movl    $DATA, %esi
        movl    $3, %ecx
        rep outsb
        jmp     attempt_passed
own_cli:
        cli
        sti
        jmp     attempt_passed
        .section .note.GNU-stack, "", @progbits
