/* adapter.c: see adapter.h. Source: National Semiconductor DP8390D data sheet. Pages 40h to 45h of its memory are for sending, the rest is the ring
 * of what is received. Between two calls page 0 of the registers is selected and no remote DMA is under way. */
#include "adapter.h"
#include "../lib/cpu.h"

enum {
    BASE = 0x300, COMMAND = BASE, DATA = BASE + 0x10, RESET = BASE + 0x1f,
    /* page 0 */
    START_PAGE = BASE + 1, STOP_PAGE, BOUNDARY, SEND_PAGE, SEND_LOW, SEND_HIGH, STATUS, DMA_LOW, DMA_HIGH, COUNT_LOW, COUNT_HIGH, RECEIVE, SEND,
    CONFIGURATION, MASK,
    /* page 1 */
    ADDRESS = BASE + 1, CURRENT = BASE + 7,

    STOPPED = 0x21, RUNNING = 0x22, PAGE_1 = 0x40, DMA_READ = 0x0a, DMA_WRITE = 0x12, TRANSMIT = 0x26,
    RECEIVED = 0x01, DMA_DONE = 0x40, RESET_DONE = 0x80,
    FIRST_TO_SEND = 0x40, FIRST_OF_RING = 0x46, END_OF_RING = 0x80,
};

u8 adapter_address[6];
static u8 next; /* the page of the ring where the next packet will be */

static void dma(u32 at, u32 bytes, u8 direction)
{
    outb(STATUS, DMA_DONE);
    outb(DMA_LOW, at & 0xff);
    outb(DMA_HIGH, at >> 8 & 0xff);
    outb(COUNT_LOW, bytes & 0xff);
    outb(COUNT_HIGH, bytes >> 8 & 0xff);
    outb(COMMAND, direction);
}

static void read_memory(u32 at, u8 *to, u32 bytes)
{
    dma(at, bytes, DMA_READ);
    while (bytes--)
        *to++ = inb(DATA);
    outb(COMMAND, RUNNING);
}

int adapter_setup(void)
{
    outb(RESET, inb(RESET));
    for (u32 tries = 0; !(inb(STATUS) & RESET_DONE); tries++)
        if (tries > 1000)
            return 0;
    outb(COMMAND, STOPPED);
    outb(CONFIGURATION, 0x48); /* bytes, no loop-back, a FIFO of 8 */
    outb(RECEIVE, 0x20);       /* nothing is stored yet */
    outb(SEND, 0x02);          /* and nothing sent */
    u8 prom[32];
    read_memory(0, prom, sizeof prom);
    if (prom[28] != 0x57 || prom[30] != 0x57)
        return 0;
    for (u32 i = 0; i < 6; i++)
        adapter_address[i] = prom[2 * i];
    outb(COMMAND, STOPPED);
    outb(START_PAGE, FIRST_OF_RING);
    outb(STOP_PAGE, END_OF_RING);
    outb(BOUNDARY, FIRST_OF_RING);
    outb(COMMAND, STOPPED | PAGE_1);
    for (u32 i = 0; i < 6; i++)
        outb(ADDRESS + i, adapter_address[i]);
    next = FIRST_OF_RING + 1;
    outb(CURRENT, next);
    outb(COMMAND, RUNNING);
    outb(STATUS, 0xff);
    outb(MASK, RECEIVED);
    outb(SEND, 0);
    outb(RECEIVE, 0x04); /* what is for this station, or for all */
    return 1;
}

void adapter_send(const void *packet, u32 bytes)
{
    const u8 *from = packet;
    while (inb(COMMAND) & 0x04)
        ;
    dma(FIRST_TO_SEND << 8, bytes, DMA_WRITE);
    for (u32 i = 0; i < bytes; i++)
        outb(DATA, from[i]);
    while (!(inb(STATUS) & DMA_DONE))
        ;
    outb(COMMAND, RUNNING);
    outb(SEND_PAGE, FIRST_TO_SEND);
    outb(SEND_LOW, bytes & 0xff);
    outb(SEND_HIGH, bytes >> 8 & 0xff);
    outb(COMMAND, TRANSMIT);
}

u32 adapter_receive(void *packet)
{
    outb(COMMAND, RUNNING | PAGE_1);
    u8 current = inb(CURRENT);
    outb(COMMAND, RUNNING);
    if (next == current)
        return 0;
    u8 header[4]; /* status, the page of the next packet, and the length, header included */
    read_memory((u32)next << 8, header, sizeof header);
    u32 bytes = (u32)(header[2] | header[3] << 8) - 4;
    if (bytes > PACKET_MOST)
        bytes = PACKET_MOST;
    read_memory(((u32)next << 8) + 4, packet, bytes); /* the adapter goes from the end of the ring to its start */
    next = header[1];
    outb(BOUNDARY, next == FIRST_OF_RING ? END_OF_RING - 1 : next - 1);
    return bytes;
}

void adapter_quiet(void) { outb(STATUS, RECEIVED); }
