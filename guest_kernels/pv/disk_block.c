/* disk_block.c: the driver of kernels/disk.c over the block device by grants (Xen's public headers, io/blkif.h, io/ring.h, grant_table.h).
 *
 * What disk.c asks of an IDE disk is asked of the device's back half instead: requests in a shared ring, for frames that it has been granted.
 */
#include "../kernels/disk_ide.h"
#include "../lib/cpu.h"
#include "../lib/interrupts.h"
#include "../lib/memory.h"
#include "../lib/paging.h"
#include "../lib/trap.h"
#include "store.h"

enum { BLOCK_READ = 0, BLOCK_WRITE = 1, BLOCK_FLUSH = 3, ENTRIES = 32, BUFFER_PAGES = 2, RING_GRANT = 8, BUFFER_GRANT = 9, INITIALISED = 3, CONNECTED = 4 };
#define DEVICE "device/vbd/51712"
#define BUFFER_SECTORS (BUFFER_PAGES * PAGE_SIZE / SECTOR)

struct request {
    u8 operation, segments;
    u16 device;
    u64 identity, sector;
    struct {
        u32 grant;
        u8 first, last;
        u16 unused;
    } segment[11];
} __attribute__((packed));

struct ring {
    u32 request_produced, request_event, answer_produced, answer_event;
    u32 unused[12];
    union {
        struct request request;
        struct {
            u64 identity;
            u8 operation, unused;
            short status;
        } answer;
    } entry[ENTRIES];
};

struct grant {
    u16 flags, domain;
    u32 frame;
};

static volatile struct ring *ring;
static u8 *buffer[BUFFER_PAGES];
static u32 sectors_of_disk, port, answers;
static volatile u32 interrupts;
static struct grant grants[PAGE_SIZE / sizeof(struct grant)] __attribute__((aligned(4096))); /* another page is mapped here */

static struct trap_frame *interrupt(struct trap_frame *frame)
{
    interrupts++;
    return frame;
}

u32 ide_interrupts(void) { return interrupts; }

static void grant_access(u32 reference, void *page)
{
    grants[reference].frame = frame_of((u32)page);
    grants[reference].domain = 0;
    asm volatile("" : : : "memory");
    grants[reference].flags = 1; /* permit access */
}

static void grants_setup(void)
{
    u32 frame = 0;
    struct {
        u16 domain, unused;
        u32 frames;
        short status;
        u32 *list;
    } setup = {DOMID_SELF, 0, 1, 0, &frame};
    hypercall(GRANT_TABLE_OP, SETUP_TABLE, (u32)&setup, 1, 0, 0);
    hypercall(UPDATE_VA_MAPPING, (u32)grants, frame << 12 | PAGE_PRESENT | PAGE_WRITE, frame >> 20, FLUSH_PAGE, 0);
}

static u32 backend_number(const char *name)
{
    char backend[64], value[16];
    if (!store_read(DEVICE "/backend", backend, sizeof backend) || !store_read(joined(backend, "/", name), value, sizeof value))
        return 0;
    return number_of(value);
}

void ide_setup(void)
{
    struct {
        u16 own, remote;
        u32 port;
    } unbound = {DOMID_SELF, 0, 0};
    if (!backend_number("state"))
        return;
    grants_setup();
    ring = page_alloc();
    grant_access(RING_GRANT, (void *)ring);
    for (u32 i = 0; i < BUFFER_PAGES; i++)
        grant_access(BUFFER_GRANT + i, buffer[i] = page_alloc());
    hypercall(EVENT_CHANNEL_OP, ALLOC_UNBOUND, (u32)&unbound, 0, 0, 0);
    port = unbound.port;
    store_write(DEVICE "/ring-ref", decimal(RING_GRANT));
    store_write(DEVICE "/event-channel", decimal(port));
    store_write(DEVICE "/protocol", "x86_32-abi");
    store_write(DEVICE "/state", decimal(INITIALISED));
    while (backend_number("state") != CONNECTED)
        hypercall(SCHED_OP, YIELD, 0, 0, 0, 0);
    store_write(DEVICE "/state", decimal(CONNECTED));
    sectors_of_disk = backend_number("sectors");
    trap_set(IRQ_VECTOR(IRQ_DISK), interrupt);
    irq_bind(IRQ_DISK, port);
    pic_unmask(IRQ_DISK);
}

/* One request for `sectors` sectors in the buffer, and its end; whether it went well. */
static int transfer(u8 operation, u32 lba, u32 sectors, enum ide_wait wait)
{
    volatile struct request *request = &ring->entry[ring->request_produced % ENTRIES].request;
    u32 before = interrupts;
    *request = (struct request){.operation = operation, .identity = lba, .sector = lba};
    for (u32 done = 0; done < sectors; done += 8) {
        u32 part = sectors - done < 8 ? sectors - done : 8, n = request->segments++;
        request->segment[n].grant = BUFFER_GRANT + n;
        request->segment[n].last = (u8)(part - 1);
    }
    ring->answer_event = wait == INTERRUPTS ? answers + 1 : answers + ENTRIES; /* the latter: never */
    asm volatile("" : : : "memory");
    ring->request_produced++;
    hypercall(EVENT_CHANNEL_OP, SEND, (u32)&port, 0, 0, 0);
    while (wait == INTERRUPTS && interrupts == before) {
        sti_hlt();
        cli();
    }
    while (ring->answer_produced == answers)
        ;
    return ring->entry[answers++ % ENTRIES].answer.status == 0;
}

int ide_plain(u8 command, u8 count)
{
    if (command == SET_MULTIPLE_MODE)
        return count <= BUFFER_SECTORS;
    return sectors_of_disk && (command == FLUSH_CACHE || command == FLUSH_CACHE_EXT) && transfer(BLOCK_FLUSH, 0, 0, POLLING);
}

int ide_identify(u16 words[256])
{
    memset(words, 0, 512);
    words[47] = 0x8000 | BUFFER_SECTORS;
    words[49] = 0x200;
    words[60] = words[100] = (u16)sectors_of_disk;
    words[61] = words[101] = (u16)(sectors_of_disk >> 16);
    words[83] = 0x4400;
    return sectors_of_disk != 0;
}

static int is_write(enum ide_command command) { return command == WRITE_SECTORS || command == WRITE_SECTORS_EXT || command == WRITE_MULTIPLE; }

/* Between the caller's memory and the buffer. */
static void copy(u8 *memory, u32 bytes, int to_buffer)
{
    for (u32 done = 0; done < bytes; done += PAGE_SIZE) {
        u32 part = bytes - done < PAGE_SIZE ? bytes - done : PAGE_SIZE;
        u8 *page = buffer[done / PAGE_SIZE];
        memcpy(to_buffer ? page : memory + done, to_buffer ? memory + done : page, part);
    }
}

int ide_transfer(enum ide_command command, u32 lba, u32 sectors, u32 block, void *memory, enum ide_wait wait)
{
    u8 *at = memory;
    if (!sectors_of_disk)
        return 0;
    while (sectors) {
        u32 most = wait == POLLING ? BUFFER_SECTORS : block, now = sectors < most ? sectors : most;
        if (is_write(command))
            copy(at, now * SECTOR, 1);
        if (!transfer(is_write(command) ? BLOCK_WRITE : BLOCK_READ, lba, now, wait))
            return 0;
        if (!is_write(command))
            copy(at, now * SECTOR, 0);
        at += now * SECTOR;
        lba += now;
        sectors -= now;
    }
    return 1;
}
