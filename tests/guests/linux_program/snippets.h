/* snippets.h: a piece of code between `try` and `done`, beside its name in the section SNIPPETS; `done` is that nothing came of it. */
.macro try what:vararg
        .pushsection SNIPPETS
        .long   1f, 2f
        .popsection
        .pushsection .rodata.strings
2:      .asciz  \what
        .popsection
1:
.endm
.macro done
        jmp     attempt_passed
.endm
