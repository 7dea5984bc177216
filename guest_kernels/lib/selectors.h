/* selectors.h: the numbers of segments, for C and assembly. A paravirtual kernel runs at privilege level 1, below the VMM: its selectors say so. */
#pragma once

#ifdef PARAVIRT
#define KERNEL_LEVEL 1
#define KERNEL_CODE_AT_START 0xe019 /* the VMM's own, until there is a GDT */
#define UPCALL_VECTOR 0xf0          /* pending events arrive as if by this vector */
#define RETURN_FROM_TRAP jmp paravirt_iret
#define TRAP_FUNCTION paravirt_trap
#else
#define KERNEL_LEVEL 0
#define RETURN_FROM_TRAP iret
#define TRAP_FUNCTION trap_dispatch
#endif

/* The null descriptor is 0; user selectors carry RPL 3. */
#define KERNEL_CODE (0x08 | KERNEL_LEVEL)
#define KERNEL_DATA (0x10 | KERNEL_LEVEL)
#define USER_CODE 0x1b
#define USER_DATA 0x23
#define TASK_STATE 0x28
#define FIRST_FREE_SELECTOR (0x30 | KERNEL_LEVEL) /* a kernel may fill the entries from here on with segment_set() */
