/* adapter.h: an NE2000 Ethernet adapter at port 300h, IRQ 9. */
#pragma once
#include "../lib/types.h"

#define PACKET_MOST 1514u
#define IRQ_NETWORK 9

extern u8 adapter_address[6];

/* Find the adapter and let it send, receive and interrupt; 0 when there is none. */
int adapter_setup(void);
void adapter_send(const void *packet, u32 bytes);
/* The next packet that has come, at most PACKET_MOST bytes of it; how many, 0 for none. */
u32 adapter_receive(void *packet);
/* Take its interrupt back: what came is in its memory. */
void adapter_quiet(void);
