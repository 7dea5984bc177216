/* paging.h: page tables in the two 32-bit formats (SDM 3A 4.3 "32-Bit Paging", 4.4 "PAE Paging").
 *
 * The formats differ in the width of an entry and the number of levels; here every entry is a u64 and the format is a fact of the address
 * space. All tables lie in memory that the kernel sees at its physical address.
 */
#pragma once
#include "types.h"

#define PAGE_PRESENT (1u << 0)
#define PAGE_WRITE (1u << 1)
#define PAGE_USER (1u << 2)
#define PAGE_ACCESSED (1u << 5)
#define PAGE_DIRTY (1u << 6)
#define PAGE_LARGE (1u << 7)
#define PAGE_GLOBAL (1u << 8)
#define PAGE_NO_EXECUTE (1ull << 63)

/* The error code of a page fault: SDM 3A 6.15 "Interrupt 14 - Page-Fault Exception (#PF)". */
#define FAULT_PRESENT 1u
#define FAULT_WRITE 2u
#define FAULT_USER 4u
#define FAULT_RESERVED 8u
#define FAULT_FETCH 16u

#define IDENTITY_MIB 16u

struct address_space {
    u32 cr3;
    int pae;
};

/* An address space in which the kernel sees the first 16 MiB at their physical address, writable, supervisor only, in 4 KiB pages;
 * the kernel's user section is user, read-only. */
struct address_space address_space_new(int pae);
/* Load CR3 and turn paging on with CR0.WP; sets or clears CR4.PAE when paging is off so far. */
void address_space_load(const struct address_space *space);

/* The address of the directory entry (4 MiB or 2 MiB) or the table entry (4 KiB) that maps `address`; the table is made when it is missing. */
volatile void *directory_entry(const struct address_space *space, u32 address);
volatile void *table_entry(const struct address_space *space, u32 address);
u64 entry_read(const struct address_space *space, const volatile void *entry);
void entry_write(const struct address_space *space, volatile void *entry, u64 value);

/* Map one 4 KiB page; the caller does INVLPG. */
void page_map(const struct address_space *space, u32 address, u32 physical, u64 flags);
#ifdef PARAVIRT
/* Map what the domain builder has not: must come first. */
void paging_setup(void);
#endif
