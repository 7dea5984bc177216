/* pages.h: physical pages that are given back. */
#pragma once
#include "types.h"

/* One zeroed page: one that was given back, else a new one. */
void *page_take(void);
/* The page may be taken by the next who asks. */
void page_give(void *page);
/* A copy of a page, word by word. */
void *page_copy(const void *page);
