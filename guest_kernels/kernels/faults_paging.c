/* faults_paging.c: page faults by every kind of access and entry, accessed and dirty bits, large and global pages, in either table format. */
#include "../lib/catch.h"
#include "../lib/cpu.h"
#include "../lib/memory.h"
#include "../lib/paging.h"
#include "../lib/report.h"
#include "faults.h"

#define USER_STACK 0x40000000u                       /* a page of stack for user code */
#define WINDOW 0x48000000u                           /* the page whose entries are tried out; a directory entry of its own */
#define LARGE 0x50000000u                            /* a large page */
#define LARGE_FRAME 0x00c00000u                      /* 12 MiB: where it lies; aligned to 4 MiB, and nobody else's */
#define NO_FAULT 0xffffffffu

#define P PAGE_PRESENT
#define W PAGE_WRITE
#define U PAGE_USER
#define NX PAGE_NO_EXECUTE

static struct address_space space;
static u32 frame;     /* the physical page behind the window, full of RET instructions */
static u32 fetch_bit; /* FAULT_FETCH where fetches are marked in error codes: with PAE and EFER.NXE */

enum access { READ, WRITE, FETCH };
enum mode { KERNEL, USER };

static void attempt(enum mode mode, enum access access, u32 address)
{
    if (mode == USER) {
        u32 *stack = (u32 *)(USER_STACK + PAGE_SIZE - 64);
        *stack = address;
        user_run((u32)(access == READ ? user_read : access == WRITE ? user_write : user_fetch), (u32)stack);
    } else if (access == READ) {
        CATCH("", "movl (%%ebx), %%eax", "b"(address));
    } else if (access == WRITE) {
        CATCH("", "movl $0xc3c3c3c3, (%%ebx)", "b"(address));
    } else {
        CATCH("", "call *%%ebx", "b"(address));
    }
}

static int gave(u32 error, u32 cr2)
{
    if (error == NO_FAULT)
        return caught.vector == NOTHING_CAUGHT;
    return caught.vector == PAGE_FAULT && caught.error == error && caught.cr2 == cr2;
}

static void set_window(u64 directory_flags, u64 flags)
{
    volatile void *entry = table_entry(&space, WINDOW); /* first: it makes the table */
    volatile void *above = directory_entry(&space, WINDOW);
    u64 table = entry_read(&space, above) & 0xfffff000;
    entry_write(&space, above, table | directory_flags);
    entry_write(&space, entry, frame | flags);
    write_cr3(read_cr3()); /* a changed directory entry concerns more than the one page */
}

/* --- permissions --- */

struct permission {
    u64 directory_flags, flags;
    enum mode mode;
    enum access access;
    u32 error; /* NO_FAULT: the access goes through */
    int wp;
    const char *what;
};

static const struct permission permissions[] = {
    {P | W | U, 0, KERNEL, READ, 0, 1, "kernel read of an absent page"},
    {P | W | U, 0, KERNEL, WRITE, FAULT_WRITE, 1, "kernel write to an absent page"},
    {P | W | U, 0, KERNEL, FETCH, FAULT_FETCH, 1, "kernel call of an absent page"},
    {0, P | W | U, KERNEL, READ, 0, 1, "kernel read under an absent table"},
    {P | W | U, P, KERNEL, READ, NO_FAULT, 1, "kernel read of a read-only page"},
    {P | W | U, P, KERNEL, WRITE, FAULT_PRESENT | FAULT_WRITE, 1, "kernel write to a read-only page, WP on"},
    {P | W | U, P, KERNEL, WRITE, NO_FAULT, 0, "kernel write to a read-only page, WP off"},
    {P | W | U, P | U, KERNEL, WRITE, FAULT_PRESENT | FAULT_WRITE, 1, "kernel write to a read-only user page, WP on"},
    {P | W | U, P | U, KERNEL, WRITE, NO_FAULT, 0, "kernel write to a read-only user page, WP off"},
    {P | U, P | W | U, KERNEL, WRITE, FAULT_PRESENT | FAULT_WRITE, 1, "kernel write under a read-only table, WP on"},
    {P | U, P | W | U, KERNEL, WRITE, NO_FAULT, 0, "kernel write under a read-only table, WP off"},
    {P | W | U, P | W, KERNEL, WRITE, NO_FAULT, 1, "kernel write to a writable page"},
    {P | W | U, P | W | U, KERNEL, WRITE, NO_FAULT, 1, "kernel write to a writable user page"},
    {P | W | U, P, KERNEL, FETCH, NO_FAULT, 1, "kernel call of a read-only page"},
    {P | W | U, P | U, KERNEL, FETCH, NO_FAULT, 1, "kernel call of a user page, no SMEP"},

    {P | W | U, 0, USER, READ, FAULT_USER, 1, "user read of an absent page"},
    {P | W | U, 0, USER, WRITE, FAULT_USER | FAULT_WRITE, 1, "user write to an absent page"},
    {P | W | U, 0, USER, FETCH, FAULT_USER | FAULT_FETCH, 1, "user call of an absent page"},
    {0, P | W | U, USER, WRITE, FAULT_USER | FAULT_WRITE, 1, "user write under an absent table"},
    {P | W | U, P | W, USER, READ, FAULT_PRESENT | FAULT_USER, 1, "user read of a kernel page"},
    {P | W | U, P | W, USER, WRITE, FAULT_PRESENT | FAULT_USER | FAULT_WRITE, 1, "user write to a kernel page"},
    {P | W | U, P | W, USER, FETCH, FAULT_PRESENT | FAULT_USER | FAULT_FETCH, 1, "user call of a kernel page"},
    {P | W, P | W | U, USER, READ, FAULT_PRESENT | FAULT_USER, 1, "user read under a kernel table"},
    {P | W | U, P | U, USER, READ, NO_FAULT, 1, "user read of a read-only page"},
    {P | W | U, P | U, USER, WRITE, FAULT_PRESENT | FAULT_USER | FAULT_WRITE, 1, "user write to a read-only page"},
    {P | W | U, P | U, USER, WRITE, FAULT_PRESENT | FAULT_USER | FAULT_WRITE, 0, "user write to a read-only page, WP off"},
    {P | U, P | W | U, USER, WRITE, FAULT_PRESENT | FAULT_USER | FAULT_WRITE, 1, "user write under a read-only table"},
    {P | W | U, P | U, USER, FETCH, NO_FAULT, 1, "user call of a read-only page"},
    {P | W | U, P | W | U, USER, WRITE, NO_FAULT, 1, "user write to a writable page"},
};

/* Only with PAE and EFER.NXE. */
static const struct permission no_execute[] = {
    {P | W | U, P | W | NX, KERNEL, READ, NO_FAULT, 1, "kernel read of an NX page"},
    {P | W | U, P | W | NX, KERNEL, FETCH, FAULT_PRESENT | FAULT_FETCH, 1, "kernel call of an NX page"},
    {P | W | U | NX, P | W, KERNEL, FETCH, FAULT_PRESENT | FAULT_FETCH, 1, "kernel call under an NX table"},
    {P | W | U, P | W | U | NX, USER, WRITE, NO_FAULT, 1, "user write to an NX page"},
    {P | W | U, P | W | U | NX, USER, FETCH, FAULT_PRESENT | FAULT_USER | FAULT_FETCH, 1, "user call of an NX page"},
    {P | W | U | NX, P | W | U, USER, FETCH, FAULT_PRESENT | FAULT_USER | FAULT_FETCH, 1, "user call under an NX table"},
};

static void report_permission(const struct permission *row)
{
    u32 error = row->error == NO_FAULT ? NO_FAULT : row->error & ~(FAULT_FETCH & ~fetch_bit);
    set_window(row->directory_flags, row->flags);
    u32 cr0 = read_cr0();
    write_cr0(row->wp ? cr0 | CR0_WP : cr0 & ~CR0_WP);
    attempt(row->mode, row->access, WINDOW + 0x10);
    write_cr0(cr0);
    if (gave(error, WINDOW + 0x10))
        report(1, "#PF: %s", row->what);
    else
        report(0, "#PF: %s: vector %d, error %x, CR2 %08x", row->what, (int)caught.vector, caught.error, caught.cr2);
    memset((void *)frame, 0xc3, PAGE_SIZE);
}

/* A kernel write with WP off must not open the page to user mode. */
static void report_wp_is_for_the_kernel(void)
{
    set_window(P | W | U, P | U);
    write_cr0(read_cr0() & ~CR0_WP);
    attempt(KERNEL, WRITE, WINDOW);
    int kernel = gave(NO_FAULT, 0);
    attempt(USER, READ, WINDOW);
    int user_read_works = gave(NO_FAULT, 0);
    attempt(USER, WRITE, WINDOW);
    int user = gave(FAULT_PRESENT | FAULT_WRITE | FAULT_USER, WINDOW);
    attempt(KERNEL, WRITE, WINDOW);
    kernel = kernel && gave(NO_FAULT, 0);
    write_cr0(read_cr0() | CR0_WP);
    attempt(KERNEL, WRITE, WINDOW);
    report(kernel && user && user_read_works && gave(FAULT_PRESENT | FAULT_WRITE, WINDOW), "WP off opens a page to the kernel only, WP on closes it");
}

/* --- reserved bits --- */

static void report_reserved_bit(const char *what, enum mode mode, enum access access)
{
    u32 error = FAULT_PRESENT | FAULT_RESERVED | (mode == USER ? FAULT_USER : 0) | (access == WRITE ? FAULT_WRITE : 0);
    attempt(mode, access, WINDOW);
    caught.error |= FAULT_PRESENT; /* the manual says that it is set; QEMU 7.2 leaves it out */
    report(gave(error, WINDOW), "#PF: reserved bit: %s", what);
}

static void report_reserved_bits_pae(void)
{
    set_window(P | W | U, P | W | U | 1ull << 61);
    report_reserved_bit("bit 61 of a table entry, kernel read", KERNEL, READ);
    report_reserved_bit("bit 61 of a table entry, user write", USER, WRITE);
    set_window(P | W | U | 1ull << 61, P | W | U);
    report_reserved_bit("bit 61 of a directory entry", KERNEL, WRITE);
    if (!fetch_bit)
        return;
    set_window(P | W | U, P | W | U | NX);
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~(u64)EFER_NXE);
    write_cr3(read_cr3());
    report_reserved_bit("NX without EFER.NXE", KERNEL, READ);
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
    write_cr3(read_cr3());
}

/* SDM 3A Table 4-4: in a 4 MiB page's directory entry bit 21 is reserved. With PAE, in that of a 2 MiB page, bits 20 to 13. */
static void report_reserved_bit_large(void)
{
    volatile void *entry = directory_entry(&space, WINDOW);
    u64 table = entry_read(&space, entry);
    entry_write(&space, entry, LARGE_FRAME | (space.pae ? 1u << 13 : 1u << 21) | PAGE_LARGE | P | W | U);
    write_cr3(read_cr3());
    report_reserved_bit("in the entry of a large page", KERNEL, READ);
    entry_write(&space, entry, table);
}

/* --- precision --- */

static void report_precision(void)
{
    set_window(P | W | U, P | W | U);
    page_map(&space, WINDOW + PAGE_SIZE, 0, 0);
    entry_write(&space, table_entry(&space, WINDOW + PAGE_SIZE), 0);
    invlpg((void *)(WINDOW + PAGE_SIZE));

    attempt(KERNEL, WRITE, WINDOW + PAGE_SIZE - 2);
    report(gave(FAULT_WRITE, WINDOW + PAGE_SIZE), "#PF: a store over the end of a page gives the next page's address");
    attempt(USER, READ, WINDOW + PAGE_SIZE - 1);
    report(gave(FAULT_USER, WINDOW + PAGE_SIZE), "#PF: a user load over the end of a page gives the next page's address");

    CATCH("cld; leal 4080(%%ebx), %%edi; movl $40, %%ecx; movb $0x77, %%al", "rep stosb", "b"(WINDOW));
    report(gave(FAULT_WRITE, WINDOW + PAGE_SIZE) && caught.eip == catch_at && caught.ecx == 24 && caught.edi == WINDOW + PAGE_SIZE
               && *(u8 *)(WINDOW + PAGE_SIZE - 1) == 0x77,
           "#PF: rep stosb stops with ECX and EDI at the fault");
    memset((void *)frame, 0xc3, PAGE_SIZE);

    CATCH("movl %%ebx, %%esi; movl %%esp, %%edi; leal 4096(%%ebx), %%ecx; movl $5, %%eax", "xchgl %%eax, (%%ecx)", "b"(WINDOW));
    caught.error |= FAULT_WRITE; /* silicon reports a write; QEMU, which loads first, a read */
    report(gave(FAULT_WRITE, WINDOW + PAGE_SIZE) && caught.eax == 5, "#PF: xchg leaves its register alone");
    CATCH("stc; leal 4096(%%ebx), %%ecx", "adcl $1, (%%ecx)", "b"(WINDOW));
    caught.error |= FAULT_WRITE;
    report(gave(FAULT_WRITE, WINDOW + PAGE_SIZE) && caught.eflags & 1, "#PF: adc leaves the carry flag alone");
}

/* --- accessed and dirty bits --- */

static u32 bits(volatile void *entry) { return (u32)entry_read(&space, entry) & (PAGE_ACCESSED | PAGE_DIRTY); }

static void clear_bits(volatile void *entry)
{
    entry_write(&space, entry, entry_read(&space, entry) & ~(u64)(PAGE_ACCESSED | PAGE_DIRTY));
    write_cr3(read_cr3());
}

static void report_accessed_and_dirty(enum mode mode, const char *who)
{
    volatile void *above = directory_entry(&space, WINDOW), *entry = table_entry(&space, WINDOW);
    set_window(P | W | U, P | W | U);
    report(bits(entry) == 0, "%s: A and D stay clear without an access", who);
    attempt(mode, READ, WINDOW);
    report(bits(entry) == PAGE_ACCESSED, "%s: a read sets A and not D", who);
    report((bits(above) & PAGE_ACCESSED) != 0, "%s: a read sets A of the directory entry", who);
    attempt(mode, WRITE, WINDOW);
    report(bits(entry) == (PAGE_ACCESSED | PAGE_DIRTY), "%s: a write after a read sets D", who);
    clear_bits(entry);
    attempt(mode, WRITE, WINDOW);
    report(bits(entry) == (PAGE_ACCESSED | PAGE_DIRTY), "%s: a write sets A and D again after they were cleared", who);
    memset((void *)frame, 0xc3, PAGE_SIZE);
    clear_bits(entry);
    attempt(mode, FETCH, WINDOW);
    report(bits(entry) == PAGE_ACCESSED, "%s: a fetch sets A and not D", who);
}

/* --- large and global pages --- */

static void report_large_page(void)
{
    u32 size = space.pae ? 2u << 20 : 4u << 20;
    volatile void *entry = directory_entry(&space, LARGE);
    volatile u32 *inside = (volatile u32 *)(LARGE + size - 8), *identity = (volatile u32 *)(LARGE_FRAME + size - 8);
    write_cr4(read_cr4() | CR4_PSE);
    entry_write(&space, entry, LARGE_FRAME | PAGE_LARGE | P | W | U);
    write_cr3(read_cr3());

    *identity = 0x1234;
    report(*inside == 0x1234, "a large page shows its memory");
    report(bits(entry) == PAGE_ACCESSED, "a read sets A of a large page and not D");
    *inside = 0x5678;
    report(*identity == 0x5678, "a store to a large page arrives");
    report(bits(entry) == (PAGE_ACCESSED | PAGE_DIRTY), "a write sets D of a large page");
    attempt(USER, WRITE, LARGE + size - 4);
    report(gave(NO_FAULT, 0) && *(volatile u32 *)(LARGE_FRAME + size - 4) == 0x600df00d, "user code writes to a large page");

    entry_write(&space, entry, LARGE_FRAME | PAGE_LARGE | P | U);
    invlpg((void *)LARGE);
    attempt(USER, WRITE, LARGE + 0x1000);
    report(gave(FAULT_PRESENT | FAULT_WRITE | FAULT_USER, LARGE + 0x1000), "#PF: user write to a read-only large page");
    attempt(KERNEL, WRITE, LARGE + 0x2000);
    report(gave(FAULT_PRESENT | FAULT_WRITE, LARGE + 0x2000), "#PF: kernel write to a read-only large page");
    report_reserved_bit_large();

    /* Split it: the same memory by small pages, one of them another. */
    u32 other = (u32)page_alloc();
    entry_write(&space, entry, 0);
    for (u32 at = 0; at < size; at += PAGE_SIZE)
        page_map(&space, LARGE + at, LARGE_FRAME + at, W | U);
    page_map(&space, LARGE + PAGE_SIZE, other, W | U);
    write_cr3(read_cr3());
    *(volatile u32 *)(LARGE + PAGE_SIZE) = 7;
    report(*inside == 0x5678 && *(u32 *)other == 7, "a large page split into small ones");
}

static u32 through(u32 physical, u64 flags)
{
    page_map(&space, WINDOW, physical, flags);
    write_cr3(read_cr3());
    return *(volatile u32 *)WINDOW;
}

static void report_global_page(void)
{
    u32 first = (u32)page_alloc(), second = (u32)page_alloc();
    *(u32 *)first = 1;
    *(u32 *)second = 2;
    set_window(P | W | U, P | W);
    write_cr4(read_cr4() | CR4_PGE);
    report(through(first, W) == 1 && through(second, W) == 2, "a CR3 load drops a page that is not global");
    report(through(first, W | PAGE_GLOBAL) == 1, "a global page shows its memory");
    u32 stale = through(second, W | PAGE_GLOBAL); /* the old or the new one: a TLB may keep it, and need not */
    invlpg((void *)WINDOW);
    report((stale == 1 || stale == 2) && *(volatile u32 *)WINDOW == 2, "INVLPG drops a global page");
    through(first, W | PAGE_GLOBAL);
    write_cr4(read_cr4() & ~CR4_PGE);
    report(*(volatile u32 *)WINDOW == 1, "clearing CR4.PGE drops global pages");
}

/* --- all of it --- */

static void no_execute_setup(void)
{
    if (space.pae && cpuid(0x80000000).eax >= 0x80000001 && cpuid(0x80000001).edx & 1u << 20) {
        wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
        fetch_bit = FAULT_FETCH;
    }
}

void report_paging(int pae)
{
    space = address_space_new(pae);
    page_map(&space, USER_STACK, (u32)page_alloc(), W | U);
    frame = (u32)page_alloc();
    memset((void *)frame, 0xc3, PAGE_SIZE);
    address_space_load(&space);
    no_execute_setup();

    for (u32 i = 0; i < sizeof permissions / sizeof *permissions; i++)
        report_permission(&permissions[i]);
    for (u32 i = 0; fetch_bit && i < sizeof no_execute / sizeof *no_execute; i++)
        report_permission(&no_execute[i]);
    report_wp_is_for_the_kernel();
    if (pae)
        report_reserved_bits_pae();
    report_precision();
    report_accessed_and_dirty(KERNEL, "kernel");
    report_accessed_and_dirty(USER, "user");
    report_large_page();
    report_global_page();
}
