/* descriptors.h: the GDT, the IDT and the TSS. */
#pragma once
#include "selectors.h"
#include "types.h"

#define GDT_ENTRIES 16

/* The access byte of a descriptor: SDM 3A 3.4.5 "Segment Descriptors". */
#define SEGMENT_PRESENT 0x80
#define SEGMENT_DPL(n) ((n) << 5)
#define SEGMENT_CODE 0x1a     /* S=1, code, readable */
#define SEGMENT_DATA 0x12     /* S=1, data, writable */
#define SEGMENT_ACCESSED 0x01
#define SYSTEM_TSS 0x09       /* S=0, 32-bit TSS, available; the CPU adds 2, busy, when LTR loads it */
#define SYSTEM_LDT 0x02

/* A gate's access byte: SDM 3A 6.11 "IDT Descriptors". */
#define GATE_INTERRUPT 0x0e
#define GATE_TRAP 0x0f

/* Build GDT, IDT and TSS, load GDTR, IDTR, TR (LDTR null) and every segment register. Interrupts stay off. */
void descriptors_setup(void);
/* Write a GDT entry: a 32-bit segment from base to base+limit, in pages where that is more than 1 MiB. */
void segment_set(u16 selector, u32 base, u32 limit, u8 access);
u64 segment_get(u16 selector);
/* Write an IDT entry that goes to the vector's usual entry point. `access` is a GATE_ kind, SEGMENT_DPL and SEGMENT_PRESENT. */
void gate_set(u8 vector, u8 access);
/* Where an interrupt from user mode puts its frame. */
void kernel_stack_set(u32 esp0);
/* What GDTR and IDTR were loaded with. */
u32 gdt_address(void);
u32 idt_address(void);
