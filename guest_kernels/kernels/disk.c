/* disk.c: reads and writes sectors of an IDE disk in every way of programmed I/O, and checks what the run before it wrote.
 *
 * Each run is a generation, counted in sector 0. What a sector holds follows from its number and the generation that wrote it.
 */
#include "disk_ide.h"
#include "../lib/console.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/memory.h"
#include "../lib/report.h"

#define MAGIC 0x6b736964 /* "disk" */
#define MULTIPLE 16u
#define MOST_SECTORS 300u
#define SECTORS_NEEDED 4096u

struct header {
    u32 magic, generation;
    u32 unused[SECTOR / 4 - 2];
};

/* One way of transfer, over a part of the disk of its own. */
static const struct way {
    const char *what;
    enum ide_command read, write;
    u32 lba, sectors, block;
    enum ide_wait wait;
} ways[] = {
    {"LBA28, one sector, polling", READ_SECTORS, WRITE_SECTORS, 1, 1, 1, POLLING},
    {"LBA28, one sector, interrupts", READ_SECTORS, WRITE_SECTORS, 2, 1, 1, INTERRUPTS},
    {"LBA28, 8 sectors, polling", READ_SECTORS, WRITE_SECTORS, 100, 8, 1, POLLING},
    {"LBA28, 8 sectors, interrupts", READ_SECTORS, WRITE_SECTORS, 200, 8, 1, INTERRUPTS},
    {"LBA28, 256 sectors, polling", READ_SECTORS, WRITE_SECTORS, 500, 256, 1, POLLING},
    {"LBA28, multiple mode, 40 sectors, interrupts", READ_MULTIPLE, WRITE_MULTIPLE, 1000, 40, MULTIPLE, INTERRUPTS},
    {"LBA48, one sector, polling", READ_SECTORS_EXT, WRITE_SECTORS_EXT, 2000, 1, 1, POLLING},
    {"LBA48, 8 sectors, interrupts", READ_SECTORS_EXT, WRITE_SECTORS_EXT, 2100, 8, 1, INTERRUPTS},
    {"LBA48, 300 sectors, polling", READ_SECTORS_EXT, WRITE_SECTORS_EXT, 3000, MOST_SECTORS, 1, POLLING},
};
#define WAYS (sizeof ways / sizeof *ways)

static u32 buffer[MOST_SECTORS * SECTOR / 4];
static struct header header;

static u32 pattern(u32 generation, u32 lba, u32 word) { return (generation * 0x9e3779b1 ^ lba * 0x85ebca6b) + word * 0x01000193; }

static void fill(const struct way *way, u32 generation)
{
    for (u32 i = 0; i < way->sectors * SECTOR / 4; i++)
        buffer[i] = pattern(generation, way->lba + i / (SECTOR / 4), i % (SECTOR / 4));
}

static int matches(const struct way *way, u32 generation)
{
    for (u32 i = 0; i < way->sectors * SECTOR / 4; i++)
        if (buffer[i] != pattern(generation, way->lba + i / (SECTOR / 4), i % (SECTOR / 4)))
            return 0;
    return 1;
}

static int write_way(const struct way *way, u32 generation)
{
    fill(way, generation);
    return ide_transfer(way->write, way->lba, way->sectors, way->block, buffer, way->wait);
}

static int read_way(const struct way *way, u32 generation)
{
    memset(buffer, 0xee, way->sectors * SECTOR);
    return ide_transfer(way->read, way->lba, way->sectors, way->block, buffer, way->wait) && matches(way, generation);
}

static u32 blocks(const struct way *way) { return (way->sectors + way->block - 1) / way->block; }

static void report_identity(void)
{
    static u16 words[256];
    if (!ide_identify(words)) {
        report(0, "there is a disk");
        finish();
    }
    u32 sectors = words[60] | (u32)words[61] << 16;
    printf("disk of %u sectors\n", sectors);
    report(!(words[0] & 0x8000), "IDENTIFY: an ATA device");
    report((words[49] & 0x200) != 0, "IDENTIFY: LBA");
    report((words[83] & 0x400) != 0, "IDENTIFY: 48-bit addresses");
    report((words[100] | (u32)words[101] << 16) == sectors && !words[102] && !words[103], "IDENTIFY: both sizes agree");
    report(sectors >= SECTORS_NEEDED, "IDENTIFY: large enough");
    report((words[47] & 0xff) >= MULTIPLE && ide_plain(SET_MULTIPLE_MODE, MULTIPLE), "SET MULTIPLE MODE");

    report(!ide_transfer(READ_SECTORS, sectors, 1, 1, buffer, POLLING), "a read beyond the end is an error");
    report(!ide_plain(0xff, 0), "an unknown command is an error");
    report(ide_identify(words), "the disk works after an error");
}

static void report_earlier_generation(void)
{
    report(ide_transfer(READ_SECTORS, 0, 1, 1, &header, POLLING), "read of sector 0");
    if (header.magic != MAGIC) {
        header = (struct header){.magic = MAGIC};
        printf("a new disk\n");
        return;
    }
    printf("generation %u was here\n", header.generation);
    for (const struct way *way = ways; way < ways + WAYS; way++)
        report(read_way(way, header.generation), "still there: %s", way->what);
}

static void report_way(const struct way *way, u32 generation)
{
    u32 before = ide_interrupts();
    report(write_way(way, generation), "write: %s", way->what);
    report(read_way(way, generation), "read back: %s", way->what);
    u32 expected = way->wait == INTERRUPTS ? 2 * blocks(way) : 0;
    report(ide_interrupts() - before == expected, "%u interrupts: %s", expected, way->what);
}

void main(void)
{
    descriptors_setup();
    pic_setup();
    ide_setup();
    report_identity();
    report_earlier_generation();

    header.generation++;
    for (const struct way *way = ways; way < ways + WAYS; way++)
        report_way(way, header.generation);
    report(ide_plain(FLUSH_CACHE, 0), "FLUSH CACHE");
    report(ide_transfer(WRITE_SECTORS, 0, 1, 1, &header, INTERRUPTS), "write of sector 0");
    report(ide_plain(FLUSH_CACHE_EXT, 0), "FLUSH CACHE EXT");
    printf("generation %u is written\n", header.generation);
}
