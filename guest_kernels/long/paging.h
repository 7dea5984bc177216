/* paging.h: four-level page tables (SDM 3A 4.5 "4-Level Paging"). */
#pragma once
#include "../lib/types.h"

#define PAGE_PRESENT (1ull << 0)
#define PAGE_WRITABLE (1ull << 1)
#define PAGE_USER (1ull << 2)
#define PAGE_ACCESSED (1ull << 5)
#define PAGE_DIRTY (1ull << 6)
#define PAGE_LARGE (1ull << 7)
#define PAGE_NX (1ull << 63)

/* Map the page at `address` to `physical`, with tables made as needed. PAGE_LARGE: 2 MiB of it. Returns the entry. */
volatile u64 *page_map(u64 address, u64 physical, u64 flags);
