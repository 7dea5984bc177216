/* hello.c: the smallest kernel: prints one line and ends. It touches no descriptor table, no interrupt and no page table. */
#include "../lib/console.h"
#include "../lib/multiboot.h"

void main(void)
{
    char who[32] = "world";
    argument_value("who", who, sizeof who);
    printf("Hello, %s!\n", who);
}
