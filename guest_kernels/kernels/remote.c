/* remote.c: see remote.h. */
#include "remote.h"
#include "../lib/cpu.h"
#include "../lib/descriptors.h"
#include "../lib/interrupts.h"
#include "../lib/memory.h"
#include "../lib/report.h"
#include "../lib/trap.h"

enum { TIMER_HERTZ = 100 };

volatile u32 ticks;

static struct trap_frame *tick(struct trap_frame *frame)
{
    ticks++;
    pic_end(IRQ_TIMER);
    return frame;
}

static struct trap_frame *came(struct trap_frame *frame)
{
    adapter_quiet();
    pic_end(IRQ_NETWORK);
    return frame;
}

void remote_setup(void)
{
    descriptors_setup();
    pic_setup();
    if (!adapter_setup()) {
        report(0, "an NE2000 adapter at port 300h (vmm run ... --net, or -device ne2k_isa)");
        finish();
    }
    trap_set(IRQ_VECTOR(IRQ_TIMER), tick);
    trap_set(IRQ_VECTOR(IRQ_NETWORK), came);
    pit_setup(TIMER_HERTZ);
    pic_unmask(IRQ_TIMER);
    pic_unmask(IRQ_NETWORK);
}

int remote_receive(struct packet *packet, u32 patience)
{
    static u8 buffer[PACKET_MOST];
    u32 began = ticks;
    for (;;) {
        u32 bytes = adapter_receive(buffer);
        if (bytes >= sizeof *packet) {
            memcpy(packet, buffer, sizeof *packet);
            if (packet->type == REMOTE_TYPE)
                return 1;
        } else if (!bytes) {
            if (ticks - began >= patience)
                return 0;
            sti_hlt(); /* the timer's next tick at the latest */
            cli();
        }
    }
}

void remote_send(struct packet *packet)
{
    memcpy(packet->from, adapter_address, 6);
    packet->type = REMOTE_TYPE;
    adapter_send(packet, sizeof *packet);
}
