/* disk_ide.c: the driver: ATA/ATAPI-6, 7 "Interface register definitions", and 9.5 and 9.6, the PIO protocols. */
#include "disk_ide.h"
#include "../lib/cpu.h"
#include "../lib/interrupts.h"
#include "../lib/trap.h"

enum {
    DATA = 0x1f0,
    SECTOR_COUNT = 0x1f2,
    LBA_LOW = 0x1f3,
    LBA_MID = 0x1f4,
    LBA_HIGH = 0x1f5,
    DEVICE = 0x1f6,
    COMMAND = 0x1f7,
    STATUS = 0x1f7,           /* reading it takes back the interrupt */
    ALTERNATE_STATUS = 0x3f6, /* the same without that effect */
    DEVICE_CONTROL = 0x3f6,

    ERR = 0x01,
    DRQ = 0x08,
    DF = 0x20,
    BSY = 0x80,
    NO_DISK = 0xff, /* nobody drives the bus */

    MASTER_LBA = 0xe0,
    NO_INTERRUPTS = 0x02,
};

static volatile u32 interrupts, taken;

static struct trap_frame *interrupt(struct trap_frame *frame)
{
    inb(STATUS);
    interrupts++;
    pic_end(IRQ_DISK);
    return frame;
}

u32 ide_interrupts(void) { return interrupts; }

void ide_setup(void)
{
    trap_set(IRQ_VECTOR(IRQ_DISK), interrupt);
    pic_unmask(IRQ_DISK);
}

static int usable(u8 status) { return status != NO_DISK && !(status & (ERR | DF)); }

/* Wait until the disk is not busy; its status. */
static u8 settle(void)
{
    for (int i = 0; i < 4; i++) /* 400 ns, until BSY may be believed */
        inb(ALTERNATE_STATUS);
    u8 status;
    do
        status = inb(STATUS);
    while (status & BSY && status != NO_DISK);
    return status;
}

static void wait_for(enum ide_wait wait)
{
    if (wait != INTERRUPTS)
        return;
    while (interrupts == taken) { /* interrupts are off here, so none is lost between the check and the halt */
        sti_hlt();
        cli();
    }
    taken++;
}

static void start(u8 command, enum ide_wait wait)
{
    taken = interrupts;
    outb(DEVICE_CONTROL, wait == POLLING ? NO_INTERRUPTS : 0);
    outb(COMMAND, command);
}

int ide_plain(u8 command, u8 count)
{
    outb(DEVICE, MASTER_LBA);
    if (settle() == NO_DISK)
        return 0;
    outb(SECTOR_COUNT, count);
    start(command, POLLING);
    return usable(settle());
}

int ide_identify(u16 words[256])
{
    outb(DEVICE, MASTER_LBA);
    u8 status = settle();
    if (status == NO_DISK || status == 0)
        return 0;
    start(IDENTIFY_DEVICE, POLLING);
    status = settle();
    if (!usable(status) || !(status & DRQ))
        return 0;
    insw(DATA, words, 256);
    return 1;
}

static int is_extended(enum ide_command command) { return command == READ_SECTORS_EXT || command == WRITE_SECTORS_EXT; }
static int is_write(enum ide_command command) { return command == WRITE_SECTORS || command == WRITE_SECTORS_EXT || command == WRITE_MULTIPLE; }

/* The registers are two bytes deep: the 48-bit commands take the byte before the last one too. */
static void set_address(enum ide_command command, u32 lba, u32 sectors)
{
    if (is_extended(command)) {
        outb(SECTOR_COUNT, sectors >> 8 & 0xff);
        outb(LBA_LOW, lba >> 24);
        outb(LBA_MID, 0);
        outb(LBA_HIGH, 0);
        outb(DEVICE, MASTER_LBA);
    } else {
        outb(DEVICE, MASTER_LBA | (lba >> 24 & 0xf));
    }
    outb(SECTOR_COUNT, sectors & 0xff); /* 0 stands for 256, or 65,536 */
    outb(LBA_LOW, lba & 0xff);
    outb(LBA_MID, lba >> 8 & 0xff);
    outb(LBA_HIGH, lba >> 16 & 0xff);
}

int ide_transfer(enum ide_command command, u32 lba, u32 sectors, u32 block, void *memory, enum ide_wait wait)
{
    u8 *at = memory;
    outb(DEVICE, MASTER_LBA);
    if (settle() == NO_DISK)
        return 0;
    set_address(command, lba, sectors);
    start(command, wait);
    while (sectors) {
        u32 now = sectors < block ? sectors : block;
        if (!is_write(command))
            wait_for(wait); /* an interrupt before each block that is read */
        u8 status = settle();
        if (!usable(status) || !(status & DRQ))
            return 0;
        if (is_write(command))
            outsw(DATA, at, now * SECTOR / 2);
        else
            insw(DATA, at, now * SECTOR / 2);
        if (is_write(command))
            wait_for(wait); /* and after each that is written */
        at += now * SECTOR;
        sectors -= now;
    }
    return usable(settle());
}
