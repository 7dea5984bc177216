/* app.c: works with a file that lies on another machine, and goes on when that machine has been away. Its partner is fileserver.
 * "rounds=N" says how often it writes and reads; default 20. */
#include "../lib/console.h"
#include "../lib/memory.h"
#include "../lib/multiboot.h"
#include "../lib/report.h"
#include "remote.h"

enum { PATIENCE = 30, TRIES = 200 }; /* ticks; requests without an answer in a row, after which it gives up */

static u8 server[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}; /* everybody, until it has answered */
static u32 number, retries, forgotten;

static enum status ask(enum request request, const char *name, char *text)
{
    struct packet packet, answer;
    number++;
    for (u32 tries = 0; tries < TRIES; tries++) {
        memset(&packet, 0, sizeof packet);
        memcpy(packet.to, server, 6);
        packet.number = number;
        packet.message.request = request;
        text_copy(packet.message.name, name, NAME_BYTES);
        text_copy(packet.message.text, text, TEXT_BYTES);
        remote_send(&packet);
        while (remote_receive(&answer, PATIENCE))
            if (answer.answer && answer.number == number) { /* others are answers to earlier tries */
                memcpy(server, answer.from, 6);
                text_copy(text, answer.message.text, TEXT_BYTES);
                return (enum status)answer.message.status;
            }
        if (!tries && number > 1)
            printf("app: no answer: it asks again\n");
        retries += number > 1;
    }
    report(0, "an answer within a minute");
    finish();
}

static u32 rounds_wanted(void)
{
    char text[12] = "20";
    u32 rounds = 0;
    argument_value("rounds", text, sizeof text);
    for (const char *c = text; *c >= '0' && *c <= '9'; c++)
        rounds = 10 * rounds + (u32)(*c - '0');
    return rounds;
}

void main(void)
{
    remote_setup();
    u32 rounds = rounds_wanted();
    for (u32 round = 1; round <= rounds; round++) {
        char text[TEXT_BYTES] = "round ....", seen[TEXT_BYTES] = "";
        for (u32 digit = 0, rest = round; digit < 4; digit++, rest /= 10)
            text[9 - digit] = (char)('0' + rest % 10);
        do {
            char sent[TEXT_BYTES];
            text_copy(sent, text, TEXT_BYTES);
            ask(FILE_WRITE, "motd", sent);
            ask(FILE_READ, "motd", seen);
            if (!text_equal(seen, text)) /* it went back to before that */
                printf("app: the server has forgotten: once more\n"), forgotten++;
        } while (!text_equal(seen, text));
        if (round % 10 == 0)
            printf("app: %u rounds\n", round);
    }
    report(1, "every round read what it wrote");
    if (retries)
        report(1, "it went on when the server came back");
    char nothing[TEXT_BYTES] = "";
    ask((enum request)REMOTE_END, "", nothing);
    finish();
}
