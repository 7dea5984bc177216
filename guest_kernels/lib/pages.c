/* pages.c: a list of free pages, kept in the pages themselves. */
#include "pages.h"
#include "memory.h"

struct free_page {
    struct free_page *next;
};

static struct free_page *first;

void *page_take(void)
{
    struct free_page *page = first;
    if (!page)
        return page_alloc();
    first = page->next;
    u32 *word = (u32 *)page, words = PAGE_SIZE / 4;
    asm volatile("cld; rep stosl" : "+D"(word), "+c"(words) : "a"(0) : "memory", "cc");
    return page;
}

void page_give(void *page)
{
    ((struct free_page *)page)->next = first;
    first = page;
}

void *page_copy(const void *page)
{
    void *copy = page_take(), *to = copy;
    u32 words = PAGE_SIZE / 4;
    asm volatile("cld; rep movsl" : "+D"(to), "+S"(page), "+c"(words) : : "memory", "cc");
    return copy;
}
