/* store.c: the client's side of the store's protocol (Xen's public header io/xs_wire.h), one request at a time. */
#include "store.h"
#include "xen.h"

enum { READ = 2, WRITE = 11, ERROR = 16, RING = 1024 };

struct store_ring {
    char requests[RING], answers[RING];
    u32 request_consumed, request_produced, answer_consumed, answer_produced;
};

struct message {
    u32 type, request, transaction, size;
};

static volatile struct store_ring *ring(void) { return (volatile struct store_ring *)address_of(start_info->store_frame); }

static void put(const void *data, u32 size)
{
    volatile struct store_ring *r = ring();
    for (u32 i = 0; i < size; i++)
        r->requests[(r->request_produced + i) % RING] = ((const char *)data)[i];
    r->request_produced += size;
}

/* Takes `size` bytes; those beyond `room` are dropped. */
static void get(void *data, u32 size, u32 room)
{
    volatile struct store_ring *r = ring();
    for (u32 i = 0; i < size; i++) {
        while (r->answer_produced == r->answer_consumed)
            hypercall(SCHED_OP, YIELD, 0, 0, 0, 0);
        if (i < room)
            ((char *)data)[i] = r->answers[r->answer_consumed % RING];
        r->answer_consumed++;
    }
}

static u32 length(const char *text)
{
    u32 n = 0;
    while (text[n])
        n++;
    return n;
}

/* Sends a path with its final zero and `size` bytes of value; the answer's type, with its text in `answer`. */
static u32 ask(u32 type, const char *path, const char *value, u32 size, char *answer, u32 room)
{
    struct message head = {type, 1, 0, length(path) + 1 + size};
    put(&head, sizeof head);
    put(path, length(path) + 1);
    put(value, size);
    hypercall(EVENT_CHANNEL_OP, SEND, (u32)&start_info->store_port, 0, 0, 0);
    get(&head, sizeof head, sizeof head);
    get(answer, head.size, room - 1);
    answer[head.size < room ? head.size : room - 1] = 0;
    return head.type;
}

int store_read(const char *path, char *value, u32 size) { return ask(READ, path, 0, 0, value, size) == READ; }

void store_write(const char *path, const char *value)
{
    char answer[16];
    ask(WRITE, path, value, length(value), answer, sizeof answer);
}

const char *joined(const char *a, const char *b, const char *c)
{
    static char path[256];
    u32 at = 0;
    const char *parts[] = {a, b, c};
    for (u32 i = 0; i < 3; i++)
        for (const char *from = parts[i]; *from && at < sizeof path - 1; from++)
            path[at++] = *from;
    path[at] = 0;
    return path;
}

const char *decimal(u32 number)
{
    static char digits[11];
    char *at = digits + 10;
    do {
        *--at = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    return at;
}

u32 number_of(const char *text)
{
    u32 number = 0;
    while (*text >= '0' && *text <= '9')
        number = number * 10 + (u32)(*text++ - '0');
    return number;
}
