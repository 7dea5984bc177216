/* fileserver.c: the file service of services_files.h for whoever asks on the network. Its partner is app. */
#include "../lib/console.h"
#include "../lib/memory.h"
#include "../lib/multiboot.h"
#include "../lib/report.h"
#include "remote.h"
#include "services_files.h"

static struct files files;

void main(void)
{
    remote_setup();
    printf("fileserver: ready\n");
    for (;;) {
        struct packet packet;
        if (!remote_receive(&packet, 1000) || packet.answer)
            continue;
        int ends = packet.message.request == REMOTE_END;
        if (!ends && packet.message.request != FILE_FAULT)
            files_answer(&files, &packet.message, 0);
        memcpy(packet.to, packet.from, 6);
        packet.answer = 1;
        remote_send(&packet);
        if (ends) {
            report(file_find(&files, "motd") != 0, "the server was used");
            finish();
        }
    }
}
