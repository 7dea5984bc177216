/* remote.h: what fileserver and app, two kernels on one network, say to each other: requests and answers of services.h, in packets of their own type.
 * Whoever asks asks again when no answer comes, so a request may arrive twice: each does the same as it did the first time. */
#pragma once
#include "adapter.h"
#include "services.h"

#define REMOTE_TYPE 0xb588 /* 88B5h, the type for local experiments, as it lies in memory */
#define REMOTE_END 99      /* a request: the server is to end too */

struct packet {
    u8 to[6], from[6];
    u16 type;
    u16 answer; /* whether it is one */
    u32 number; /* of the request */
    struct message message;
};

extern volatile u32 ticks; /* of 10 ms */

/* Set up the machine, timer and adapter; ends the run when there is no adapter. */
void remote_setup(void);
/* Wait for a packet of ours, until so many ticks have passed; 0 when none came. */
int remote_receive(struct packet *packet, u32 patience);
void remote_send(struct packet *packet);
