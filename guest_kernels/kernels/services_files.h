/* services_files.h: the file service. ukernel has it in a server, mono in its kernel: the same code, with the same bug. */
#pragma once
#include "services.h"

enum { FILES = 8 };

struct files {
    struct file {
        char name[NAME_BYTES], text[TEXT_BYTES];
    } file[FILES];
};

static inline struct file *file_find(struct files *files, const char *name)
{
    for (struct file *file = files->file; file < files->file + FILES; file++)
        if (text_equal(file->name, name))
            return file;
    return 0;
}

/* The injected fault: 2 KiB are cleared at an address where nothing of the service's own lies. */
static inline void file_fault(u32 stray)
{
    for (volatile u32 *word = (volatile u32 *)stray; word < (volatile u32 *)(stray + 2048); word++)
        *word = 0;
}

/* Answers a request in place. */
static inline void files_answer(struct files *files, struct message *message, u32 stray)
{
    struct file *file = file_find(files, message->name);
    message->status = DONE;
    switch (message->request) {
    case FILE_WRITE:
        if (!file)
            file = file_find(files, "");
        if (!file) {
            message->status = NO_ROOM;
            return;
        }
        text_copy(file->name, message->name, NAME_BYTES);
        text_copy(file->text, message->text, TEXT_BYTES);
        return;
    case FILE_READ:
        if (file)
            text_copy(message->text, file->text, TEXT_BYTES);
        else
            message->status = NO_SUCH_FILE;
        return;
    case FILE_FAULT:
        file_fault(stray);
        return;
    }
}
