/* disk_ide.h: the primary IDE master, by programmed I/O. */
#pragma once
#include "../lib/types.h"

#define SECTOR 512u

/* How the driver learns that the disk is ready for the next block. */
enum ide_wait { POLLING, INTERRUPTS };

/* ATA/ATAPI-6, 8 "Command descriptions". */
enum ide_command {
    READ_SECTORS = 0x20,
    READ_SECTORS_EXT = 0x24,
    WRITE_SECTORS = 0x30,
    WRITE_SECTORS_EXT = 0x34,
    READ_MULTIPLE = 0xc4,
    WRITE_MULTIPLE = 0xc5,
    SET_MULTIPLE_MODE = 0xc6,
    FLUSH_CACHE = 0xe7,
    FLUSH_CACHE_EXT = 0xea,
    IDENTIFY_DEVICE = 0xec,
};

/* Each returns whether the disk did it without an error. */
int ide_identify(u16 words[256]);
/* Commands without data; `count` goes to the sector count register. */
int ide_plain(u8 command, u8 count);
/* `sectors` from `lba` on, to or from memory. A command named _EXT takes 48-bit addresses (here only the low 32 bits) and up to 65,536
 * sectors, the others 28-bit ones and up to 256. `block` is the number of sectors between two waits: 1, or what SET MULTIPLE MODE set. */
int ide_transfer(enum ide_command command, u32 lba, u32 sectors, u32 block, void *memory, enum ide_wait wait);

/* How many interrupts have come from the disk. */
u32 ide_interrupts(void);
/* Take IRQ 14. */
void ide_setup(void);
