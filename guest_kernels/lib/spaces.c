/* spaces.c: address spaces in both formats, of two levels and of three. */
#include "spaces.h"
#include "cpu.h"
#include "memory.h"
#include "multiboot.h"
#include "pages.h"

#define TABLE_ADDRESS 0xfffff000u
enum { KERNEL_TABLES = IDENTITY_MIB / 4, TOP_ENTRIES = 4, WINDOW_TOP = WINDOW >> 30 };

extern u8 kernel_start_address[], user_end[]; /* link.ld: code and constants lie between the two */

static u32 *window_table(const struct address_space *space) { return (u32 *)((u32)entry_read(space, directory_entry(space, WINDOW)) & TABLE_ADDRESS); }

static int no_execute(void)
{
    if (argument("noexec=off") || !(cpuid(1).edx & 1u << 6) || cpuid(0x80000000).eax < 0x80000001 || !(cpuid(0x80000001).edx & 1u << 20))
        return 0;
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
    return 1;
}

struct address_space space_of_kernel(u64 *data)
{
    int pae = no_execute();
    struct address_space space = address_space_new(pae);
    *data = pae ? PAGE_NO_EXECUTE : 0;
    for (u32 at = 0; pae && at < IDENTITY_MIB << 20; at += PAGE_SIZE)
        if (at < (u32)kernel_start_address || at >= (u32)user_end)
            page_map(&space, at, at, PAGE_WRITE | PAGE_NO_EXECUTE);
    return space;
}

/* With PAE, a directory for the window; the kernel's own are shared. */
static u32 top_new(const struct address_space *kernel)
{
    u64 *top = page_take();
    for (u32 i = 0; i < TOP_ENTRIES; i++)
        top[i] = i == WINDOW_TOP ? (u32)page_take() | PAGE_PRESENT : ((const u64 *)kernel->cr3)[i];
    return (u32)top;
}

static u32 directory_new(const struct address_space *kernel)
{
    u32 *directory = page_take();
    for (u32 i = 0; i < KERNEL_TABLES; i++)
        directory[i] = ((const u32 *)kernel->cr3)[i];
    return (u32)directory;
}

struct address_space space_new(const struct address_space *kernel)
{
    struct address_space space = {kernel->pae ? top_new(kernel) : directory_new(kernel), kernel->pae};
    entry_write(&space, directory_entry(&space, WINDOW), (u32)page_take() | PAGE_PRESENT | PAGE_WRITE | PAGE_USER);
    return space;
}

struct address_space space_fork(const struct address_space *parent, u32 pages)
{
    struct address_space child = space_new(parent);
    volatile u32 *from = window_table(parent), *to = window_table(&child);
    u32 words = parent->pae ? 2 : 1;
    for (u32 i = 0; i < pages * words; i += words) {
        if (words == 2)
            to[i + 1] = from[i + 1];
        from[i] = to[i] = from[i] & ~PAGE_WRITE;
    }
    return child;
}

void space_free(const struct address_space *space)
{
    page_give(window_table(space));
    if (space->pae)
        page_give((void *)((u32)((const u64 *)space->cr3)[WINDOW_TOP] & TABLE_ADDRESS));
    page_give((void *)space->cr3);
}

void entries_write(const struct address_space *space, volatile void *first, const u64 *values, u32 count)
{
    u32 size = space->pae ? 8 : 4;
    for (u32 i = 0; i < count; i++)
        entry_write(space, (volatile u8 *)first + i * size, values[i]);
}
