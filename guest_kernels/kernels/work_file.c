/* work_file.c: a file is made on the disk, written, found again, read and removed: a directory in the first sector, its data behind it. */
#include "work.h"
#include "disk_ide.h"
#include "../lib/memory.h"
#include "../lib/rows.h"

enum { FILE_SECTORS = 8, FILES = 16, FIRST_DATA = 1 };

static struct entry {
    u32 number, sectors, checksum;
} directory[SECTOR / sizeof(struct entry)];
static u8 written[FILE_SECTORS * SECTOR], found[FILE_SECTORS * SECTOR];

static int transfer(enum ide_command command, u32 lba, u32 sectors, void *memory)
{
    return ide_transfer(command, lba, sectors, 1, memory, INTERRUPTS);
}

static int sync_directory(void) { return transfer(WRITE_SECTORS, 0, 1, directory); }
static u32 place(u32 number) { return FIRST_DATA + number % FILES * FILE_SECTORS; }

static int file_make(u32 number)
{
    for (u32 i = 0; i < sizeof written; i++)
        written[i] = (u8)(i * 7 + number);
    directory[number % FILES] = (struct entry){number, FILE_SECTORS, work_checksum(written, SECTOR)};
    return transfer(WRITE_SECTORS, place(number), FILE_SECTORS, written) && sync_directory();
}

static int file_check(u32 number)
{
    memset(directory, 0, sizeof directory);
    int read = transfer(READ_SECTORS, 0, 1, directory) && transfer(READ_SECTORS, place(number), FILE_SECTORS, found);
    const struct entry *entry = &directory[number % FILES];
    return read && entry->number == number && entry->checksum == work_checksum(found, SECTOR) && !memcmp(written, found, sizeof written);
}

static int file_remove(u32 number)
{
    directory[number % FILES] = (struct entry){0, 0, 0};
    return sync_directory();
}

int work_file(u32 n)
{
    static u16 words[256];
    u32 right = 0;
    if (!ide_identify(words))
        return 0;
    rows_begin();
    for (u32 i = 1; i <= n; i++)
        right += file_make(i) && file_check(i) && file_remove(i);
    rows_end();
    return right == n;
}
